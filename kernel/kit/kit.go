// Package kit holds kernel kits: what is needed to build a module for exactly
// one kernel, without the kernel's source and without its signing key.
//
// A kit is made from the distribution's packages of kernel headers, and is three
// directories that refer to each other by relative paths only, so that it can
// be unpacked anywhere and by any user:
//
//	build/   headers and configuration of the kernel, Module.symvers: make -C here
//	common/  headers that the distribution's kernels of one version share
//	kbuild/  the kernel's makefiles (scripts/) and the programs they run (modpost,
//	         fixdep, objtool, …), which are for the Host architecture
//
// It is stored as an OCI artifact in an image layout: one manifest for an
// architecture, whose config is a small JSON document (Config) and whose only
// layer is a tar archive, compressed with zstd.
//
// Compile builds modules with a kit. It is the one part of kiln that runs
// programs: make, a C compiler, and what the module's own makefiles ask for.
package kit

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
)

// Media types of the artifact.
const (
	ConfigType types.MediaType = "application/vnd.kiln.kernel.kit.v1+json"
	LayerType  types.MediaType = types.OCILayerZStd
)

// Directories of a kit.
const (
	buildDir  = "build"
	commonDir = "common"
	kbuildDir = "kbuild"
)

// Limits of what is read of a kit. That of a Debian kernel has 10,000 files with
// 70 MB.
const (
	maxConfig  = 1 << 20 // bytes
	maxEntries = 1 << 18
	maxBytes   = 2 << 30 // unpacked
)

// Errors returned, wrapped, by this package.
var (
	ErrFormat  = errors.New("not a kernel kit")
	ErrRefused = errors.New("refused")
)

// Config is what a kit is for and came from.
type Config struct {
	Version  int      `json:"version"`  // of this format: 1
	Arch     string   `json:"arch"`     // of the kernel: amd64, arm64
	Host     string   `json:"host"`     // of the machine on which its programs run
	Release  string   `json:"release"`  // of the kernel, as uname -r
	Compiler string   `json:"compiler"` // of the kernel, CONFIG_CC_VERSION_TEXT
	GCC      int      `json:"gcc"`      // major version of the compiler
	Symvers  string   `json:"symvers"`  // SHA-256 of Module.symvers, lower-case hexadecimal
	Packages []string `json:"packages"` // name_version_arch, sorted
}

// Kit is a kit that has been opened.
type Kit struct {
	Config Config
	Digest string // of the manifest, "sha256:…"

	layer  *extent.FileSource
	digest v1.Hash // of the layer
}

// Open opens the kit for arch in the OCI image layout at path.
func Open(path, arch string) (*Kit, error) {
	k, err := open(path, arch)
	if err != nil {
		return nil, fmt.Errorf("kernel kit %s: %w", path, err)
	}
	return k, nil
}

func open(path, arch string) (*Kit, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w; make one with 'kiln kernel kit'", err)
	}
	m, err := ocilayout.Open(path, arch)
	if err != nil {
		return nil, layoutError(err)
	}
	if m.Config.MediaType != ConfigType || len(m.Layers) != 1 || m.Layers[0].MediaType != LayerType {
		return nil, fmt.Errorf("%w: config of type %s and %d layers, want %s and one of type %s",
			ErrFormat, m.Config.MediaType, len(m.Layers), ConfigType, LayerType)
	}
	k := &Kit{Digest: m.Digest.String(), digest: m.Layers[0].Digest}
	if k.layer, err = m.Blob(m.Layers[0]); err != nil {
		return nil, layoutError(err)
	}
	config, err := m.ReadBlob(m.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", layoutError(err))
	}
	if err := json.Unmarshal(config, &k.Config); err != nil {
		return nil, fmt.Errorf("%w: config: %w", ErrFormat, err)
	}
	if k.Config.Version != 1 {
		return nil, fmt.Errorf("%w: version %d, want 1", ErrFormat, k.Config.Version)
	}
	if k.Config.Arch != arch {
		return nil, fmt.Errorf("%w for %s: it is for %s", ErrFormat, arch, k.Config.Arch)
	}
	if !validRelease(k.Config.Release) {
		return nil, fmt.Errorf("%w: kernel release %q", ErrFormat, k.Config.Release)
	}
	return k, nil
}

// layoutError marks what is wrong with the layout as ErrFormat.
func layoutError(err error) error {
	if errors.Is(err, ocilayout.ErrFormat) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}

// Extract unpacks the kit into the directory dir, which must be empty or not be
// there. Then 'make -C dir/build M=…' builds modules.
func (k *Kit) Extract(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		return errors.Join(err, fmt.Errorf("kernel kit: %s is not empty", dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := ocilayout.Verify(ctx, k.layer, k.digest); err != nil {
		return fmt.Errorf("kernel kit %s: %w", k.layer.Path(), layoutError(err))
	}
	if err := extract(ctx, root, bufio.NewReaderSize(extent.Reader(k.layer), 1<<20)); err != nil {
		return fmt.Errorf("kernel kit %s: %w", k.layer.Path(), err)
	}
	return nil
}

// extract unpacks a compressed tar archive of directories, files and symbolic
// links below root. Times are not kept: to make, all files are equally old.
func extract(ctx context.Context, root *os.Root, r io.Reader) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	tr := tar.NewReader(io.LimitReader(z, maxBytes))
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Clean(hdr.Name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%w: %q: leaves the kit", ErrRefused, hdr.Name)
		}
		if n >= maxEntries || hdr.Size > maxBytes {
			return fmt.Errorf("%w: %s: more than %d entries or %d bytes", ErrRefused, name, maxEntries, maxBytes)
		}
		if err := extractEntry(root, name, hdr, tr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func extractEntry(root *os.Root, name string, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		return writeFile(root, name, fs.FileMode(hdr.Mode), r)
	case tar.TypeSymlink:
		if path.IsAbs(hdr.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), hdr.Linkname)) {
			return fmt.Errorf("%w: symbolic link to %s leaves the kit", ErrRefused, hdr.Linkname)
		}
		return root.Symlink(hdr.Linkname, name)
	default:
		return fmt.Errorf("%w: entry of type %q, want directories, files and symbolic links", ErrRefused, hdr.Typeflag)
	}
}

// writeFile makes a new file; of mode only whether it is executable counts.
func writeFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	perm := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// validRelease says whether a kernel release can be a part of a path and of a
// makefile.
func validRelease(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_~") == "" && s[0] != '.'
}

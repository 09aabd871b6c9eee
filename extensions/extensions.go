// Package extensions reads and writes system extensions: what adds files, above
// all kernel modules, to an image without touching its base.
//
// An extension is a file manifest.yaml and a directory rootfs/ or, instead of
// that, its content in a squashfs image, rootfs.sqsh. A systemd-sysext
// tree is one too: its root file system says in
// usr/lib/extension-release.d/extension-release.NAME what it is. They come as
//
//   - a directory,
//   - a tar, plain or compressed with gzip or zstd,
//   - a squashfs image,
//   - an image in an OCI image layout, which is a directory or a tar,
//   - an image as "docker save" writes it,
//   - an image in a registry.
//
// On the node the root file system becomes one read-only squashfs layer above
// the base's. The format is described in docs/extensions.md.
package extensions

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	manifestName = "manifest.yaml"
	rootName     = "rootfs"
	rootImage    = "rootfs.sqsh"
)

// Extension is a system extension that has been read and validated.
type Extension struct {
	Manifest    Manifest
	RootFS      *tree.Tree
	Ref         string // how the user named it
	Digest      string // "sha256:…" over manifest and root file system, whatever the form
	ImageDigest string // "sha256:…" of the image's manifest; empty if it was no OCI image

	manifest []byte   // as it was, or as it was made
	image    v1.Image // nil if it was none
}

// String names the extension in messages: name@sha256:….
func (e *Extension) String() string {
	return e.Manifest.Metadata.Name + "@" + e.Digest[:len("sha256:")+12]
}

// ErrFormat is wrapped by errors for something that is not an extension.
var ErrFormat = errors.New("not a system extension")

// Open reads the extension at ref, a path or a registry reference, for a
// machine of the given architecture, "amd64" or "arm64". What it has unpacked
// it holds in memory and, if that is much, in a nameless temporary file.
func Open(ctx context.Context, ref, arch string, limits Limits) (*Extension, error) {
	e, err := open(ctx, ref, arch, limits.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", ref, err)
	}
	e.Ref = ref
	return e, nil
}

func open(ctx context.Context, ref, arch string, limits Limits) (*Extension, error) {
	fi, err := os.Stat(ref)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		img, err := pull(ctx, ref, arch, limits.Insecure)
		if err != nil {
			return nil, err
		}
		return fromImage(ctx, img, nil, arch, limits)
	case err != nil:
		return nil, err
	case fi.IsDir():
		return openDir(ctx, ref, arch, limits)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s, want a file or a directory", ErrFormat, fi.Mode().Type())
	}
	return openFile(ctx, ref, arch, limits)
}

// openDir reads a directory. Its owners, permissions and times are those of
// whoever made it, and mean nothing.
func openDir(ctx context.Context, name, arch string, limits Limits) (*Extension, error) {
	known := false
	for _, mark := range []string{manifestName, layoutName, savedManifest, releaseDir} {
		_, err := os.Stat(filepath.Join(name, mark))
		known = known || err == nil
	}
	if !known {
		return nil, fmt.Errorf("%w: no %s in the directory, nor is it an OCI image layout or a systemd-sysext tree", ErrFormat, manifestName)
	}
	entries, strange := 0, error(nil)
	t, err := dir.Read(ctx, name, dir.Options{Keep: func(name string, mode fs.FileMode) bool {
		entries++
		if mode.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 && strange == nil {
			strange = fmt.Errorf("%w: %s: %s, want only files, directories and symbolic links", ErrHostile, name, mode.Type())
		}
		return entries < limits.Entries && strange == nil
	}})
	switch {
	case err != nil:
		return nil, err
	case strange != nil:
		return nil, strange
	case entries >= limits.Entries:
		return nil, fmt.Errorf("%w: more than %d entries", ErrHostile, limits.Entries)
	}
	if image := t.Lookup(rootImage); image != nil && image.Mode.IsRegular() && t.Lookup(manifestName) != nil {
		t.Remove(rootImage)
		if err := graft(t, image.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", rootImage, err)
		}
	}
	return fromFiles(ctx, t, arch, limits)
}

// graft puts what a squashfs image holds in the place of the root file system.
func graft(t *tree.Tree, image tree.Content) error {
	root, err := squashfs.Open(image, image.Size())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for name, ino := range root.All() {
		if err := t.Add(path.Join(rootName, name), ino); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	return nil
}

// openFile reads a squashfs image or a tar; contents stay in it unless it is
// compressed.
func openFile(ctx context.Context, name, arch string, limits Limits) (*Extension, error) {
	src, err := extent.File(name)
	if err != nil {
		return nil, err
	}
	switch what := sniff(src); what {
	case "":
	case squashfsImage:
		t, err := squashfs.Open(src, src.Size())
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return fromFiles(ctx, t, arch, limits)
	default:
		return nil, fmt.Errorf("%w: %s", ErrFormat, what)
	}
	r, plain, err := decompress(extent.Reader(src))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defer r.Close()
	var at io.ReaderAt
	if plain {
		at = src
	}
	t := tree.New()
	if err := untar(r, at, t, false, limits); err != nil {
		if errors.Is(err, ErrHostile) || t.Len() > 1 {
			return nil, err
		}
		return nil, fmt.Errorf("neither a directory, a tar nor a squashfs image: %w", err)
	}
	return fromFiles(ctx, t, arch, limits)
}

const squashfsImage = "a squashfs image"

// sniff names what a file is that is not a tar, told by its magic numbers.
func sniff(src io.ReaderAt) string {
	for _, m := range []struct {
		off   int64
		magic string
		what  string
	}{
		{0, "hsqs", squashfsImage},
		{512, "EFI PART", "a disk image with a partition table (a DDI); want the squashfs image of its root partition"},
		{4096, "EFI PART", "a disk image with a partition table (a DDI); want the squashfs image of its root partition"},
		{1024, "\xe2\xe1\xf5\xe0", "an EROFS image; want a squashfs image, or a tar"},
		{1080, "\x53\xef", "an ext4 image; want a squashfs image, or a tar"},
		{0, "\xfd7zXZ\x00", "compressed with xz; want gzip, zstd or no compression"},
		{0, "BZh", "compressed with bzip2; want gzip, zstd or no compression"},
		{0, "PK\x03\x04", "a zip archive; want a tar"},
		{0, "\x7fELF", "an ELF file; kernel modules are made an extension with 'kiln extension build'"},
	} {
		got := make([]byte, len(m.magic))
		if n, _ := src.ReadAt(got, m.off); n == len(got) && string(got) == m.magic && !(m.off > 0 && isTar(src)) {
			return m.what
		}
	}
	return ""
}

// isTar says whether the file begins with a header of a tar, whose contents
// could be anything.
func isTar(src io.ReaderAt) bool {
	var magic [5]byte
	n, _ := src.ReadAt(magic[:], 257)
	return n == len(magic) && string(magic[:]) == "ustar"
}

// decompress unpacks gzip and zstd, told by their magic numbers.
func decompress(r io.Reader) (_ io.ReadCloser, plain bool, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		return z, false, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, false, err
		}
		return z.IOReadCloser(), false, nil
	}
	return io.NopCloser(br), true, nil
}

// fromFiles reads what a directory, a tar or a squashfs image holds.
func fromFiles(ctx context.Context, t *tree.Tree, arch string, limits Limits) (*Extension, error) {
	switch {
	case t.Lookup(manifestName) != nil || t.Lookup(releaseDir) != nil:
		return fromTree(t, arch, limits)
	case t.Lookup(layoutName) != nil:
		index, err := openLayout(t)
		if err != nil {
			return nil, err
		}
		img, err := pick(index, arch)
		if err != nil {
			return nil, err
		}
		return fromImage(ctx, img, t, arch, limits)
	case t.Lookup(savedManifest) != nil:
		root, err := unpackSaved(ctx, t, arch, limits)
		if err != nil {
			return nil, err
		}
		return fromTree(root, arch, limits)
	}
	if top := t.Children("."); len(top) == 1 && t.Lookup(top[0]+"/"+manifestName) != nil {
		return nil, fmt.Errorf("%w: %s is in %s/, want it at the top", ErrFormat, manifestName, top[0])
	}
	return nil, fmt.Errorf("%w: no %s at the top, nor is it an OCI image layout, an image from docker save or a systemd-sysext tree", ErrFormat, manifestName)
}

func fromImage(ctx context.Context, img v1.Image, files *tree.Tree, arch string, limits Limits) (*Extension, error) {
	root, err := unpackImage(ctx, img, files, arch, limits)
	if err != nil {
		return nil, err
	}
	e, err := fromTree(root, arch, limits)
	if err != nil {
		return nil, err
	}
	h, err := img.Digest()
	if err != nil {
		return nil, err
	}
	e.image, e.ImageDigest = img, h.String()
	return e, nil
}

// FromTree is Open for what has been made already: a tree with manifest.yaml
// and rootfs/, for whatever architecture. ref names it.
func FromTree(ref string, t *tree.Tree) (*Extension, error) {
	e, err := fromTree(t, "", Limits{}.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", ref, err)
	}
	e.Ref = ref
	return e, nil
}

// fromTree validates what all forms have in common. arch may be empty.
func fromTree(t *tree.Tree, arch string, limits Limits) (*Extension, error) {
	e := new(Extension)
	rootfs, prefix := t, ""
	var err error
	switch {
	case t.Lookup(manifestName) != nil:
		if rootfs, err = e.read(t); err != nil {
			return nil, err
		}
		prefix = rootName + "/"
	case t.Lookup(releaseDir) != nil:
		if e.Manifest, err = sysextManifest(t); err != nil {
			return nil, err
		}
		if e.manifest, err = yaml.Marshal(e.Manifest); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: neither %s nor %s at the top", ErrFormat, manifestName, releaseDir)
	}
	if want := e.Manifest.Kernel.Arch; want != "" && arch != "" && want != arch {
		return nil, wrongArch("linux/"+want, arch)
	}
	if err := vet(rootfs, prefix, limits); err != nil {
		return nil, err
	}
	if e.RootFS, err = normal(rootfs); err != nil {
		return nil, err
	}
	if err := vetServices(e.RootFS, prefix); err != nil {
		return nil, err
	}
	// The digest is over what matters, so that all forms of one extension
	// share it.
	root, err := e.RootFS.Digest()
	if err != nil {
		return nil, err
	}
	whole := tree.New()
	for name, data := range map[string][]byte{manifestName: e.manifest, rootName: root[:]} {
		if err := whole.Add(name, &tree.Inode{Mode: 0o644, Content: extent.Bytes(data)}); err != nil {
			return nil, err
		}
	}
	sum, err := whole.Digest()
	if err != nil {
		return nil, err
	}
	e.Digest = "sha256:" + hex.EncodeToString(sum[:])
	return e, nil
}

// read reads the manifest of t and returns its root file system.
func (e *Extension) read(t *tree.Tree) (*tree.Tree, error) {
	for _, name := range t.Children(".") {
		if name != manifestName && name != rootName {
			return nil, fmt.Errorf("%w: unexpected %s at the top, want only %s and %s/", ErrFormat, name, manifestName, rootName)
		}
	}
	var err error
	if e.manifest, err = readFile(t, manifestName, maxManifest); err != nil {
		return nil, err
	}
	if e.Manifest, err = ParseManifest(manifestName, e.manifest); err != nil {
		return nil, err
	}
	if root := t.Lookup(rootName); root == nil || !root.Mode.IsDir() {
		return nil, fmt.Errorf("%w: no directory %s/", ErrFormat, rootName)
	}
	return sub(t, rootName)
}

// sub returns the part of t below directory name as a tree of its own.
func sub(t *tree.Tree, name string) (*tree.Tree, error) {
	out := tree.New()
	for p, ino := range t.All() {
		if p == name {
			p = name + "/."
		}
		rest, ok := strings.CutPrefix(p, name+"/")
		if !ok {
			continue
		}
		if err := out.Add(path.Clean(rest), ino); err != nil {
			return nil, err
		}
	}
	return out, nil
}

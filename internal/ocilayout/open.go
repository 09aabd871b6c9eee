package ocilayout

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/extent"
)

// maxManifest bounds the bytes of index.json and of a manifest, as registries do.
const maxManifest = 4 << 20

// ErrFormat is wrapped by errors about a layout that is none, or is damaged.
var ErrFormat = errors.New("invalid OCI layout")

// Manifest is one manifest of a layout.
type Manifest struct {
	v1.Manifest
	Digest v1.Hash

	dir string
}

// ErrArch is wrapped, with ErrFormat, by Open's errors for a layout without a
// manifest for the architecture.
var ErrArch = errors.New("nothing in it for")

// Open reads the manifest for arch, as Go names it, in the layout in the directory
// dir: the first that is for arch or says of no architecture that it is for it. If
// arch is "" it reads the only one there is.
func Open(dir, arch string) (*Manifest, error) {
	var mark struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := readJSON(filepath.Join(dir, "oci-layout"), &mark); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(mark.Version, "1.") {
		return nil, fmt.Errorf("%w: oci-layout: version %q, want 1.0.0", ErrFormat, mark.Version)
	}
	var index v1.IndexManifest
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return nil, err
	}
	var others []string
	if n := len(index.Manifests); arch == "" && n > 1 {
		return nil, fmt.Errorf("%w: %d manifests, want one or an architecture", ErrFormat, n)
	}
	for _, d := range index.Manifests {
		if p := d.Platform; p != nil && arch != "" && p.Architecture != arch {
			others = append(others, p.Architecture)
			continue
		}
		m := &Manifest{Digest: d.Digest, dir: dir}
		data, err := m.ReadBlob(d, maxManifest)
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if err := json.Unmarshal(data, &m.Manifest); err != nil {
			return nil, fmt.Errorf("%w: manifest %s: %w", ErrFormat, d.Digest, err)
		}
		return m, nil
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("%w: %w %s: it is for %q", ErrFormat, ErrArch, arch, others)
	}
	return nil, fmt.Errorf("%w: index.json is empty", ErrFormat)
}

// Blob returns the blob that a descriptor in the manifest names. Its size has been
// checked, its content not.
func (m *Manifest) Blob(d v1.Descriptor) (*extent.FileSource, error) {
	if b, err := hex.DecodeString(d.Digest.Hex); d.Digest.Algorithm != "sha256" || err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("%w: digest %q, want sha256:…", ErrFormat, d.Digest)
	}
	src, err := openFile(m.path(d.Digest))
	if err != nil {
		return nil, err
	}
	if src.Size() != d.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, the manifest says %d; it is damaged, make or copy it again", ErrFormat, d.Digest, src.Size(), d.Size)
	}
	return src, nil
}

func (m *Manifest) path(h v1.Hash) string {
	return filepath.Join(m.dir, filepath.FromSlash(blobName(h)))
}

// ReadBlob returns the content of a blob of at most limit bytes, compared with its
// digest.
func (m *Manifest) ReadBlob(d v1.Descriptor, limit int64) ([]byte, error) {
	src, err := m.Blob(d)
	if err != nil {
		return nil, err
	}
	data, err := read(src, limit)
	if err != nil {
		return nil, err
	}
	return data, compare(sha256.Sum256(data), d.Digest)
}

// Verify reads src and compares it with its digest.
func Verify(ctx context.Context, src extent.Source, want v1.Hash) error {
	h := sha256.New()
	buf := make([]byte, max(1, min(src.Size(), 1<<20)))
	if _, err := io.CopyBuffer(h, &watchedReader{ctx, extent.Reader(src)}, buf); err != nil {
		return err
	}
	return compare([sha256.Size]byte(h.Sum(nil)), want)
}

func compare(sum [sha256.Size]byte, want v1.Hash) error {
	if got := hex.EncodeToString(sum[:]); want.Algorithm != "sha256" || got != want.Hex {
		return fmt.Errorf("%w: content is sha256:%s, want %s; it is damaged, make or copy it again", ErrFormat, got, want)
	}
	return nil
}

// openFile opens a file that has to be there in a layout.
func openFile(name string) (*extent.FileSource, error) {
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrFormat, name)
	}
	return extent.File(name)
}

func read(src *extent.FileSource, limit int64) ([]byte, error) {
	if src.Size() > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, want at most %d", ErrFormat, src.Path(), src.Size(), limit)
	}
	data := make([]byte, src.Size())
	_, err := io.ReadFull(extent.Reader(src), data)
	return data, err
}

func readJSON(name string, to any) error {
	src, err := openFile(name)
	if err != nil {
		return err
	}
	data, err := read(src, maxManifest)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
	}
	return nil
}

package imagecache

import (
	"archive/tar"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/extent"
)

// Files of a layout, and what "docker save" has besides or instead.
const (
	layoutFile = "oci-layout"
	indexFile  = "index.json"
	savedFile  = "manifest.json"
)

// maxEntries bounds the files of an archive.
const maxEntries = 1 << 17

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// store is a directory of files, or a tar archive with them.
type store struct {
	path  string
	dir   bool
	files map[string]blob // of an archive, and blobs that were made
}

// open opens a source.
func open(name string) (*store, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	s := &store{path: name, dir: fi.IsDir(), files: map[string]blob{}}
	if !s.dir {
		if err := s.readTar(); err != nil {
			return nil, err
		}
	}
	if !s.has(indexFile) && !s.has(savedFile) {
		return nil, fmt.Errorf("%w: it has neither %s nor %s", ErrFormat, indexFile, savedFile)
	}
	return s, nil
}

// readTar finds the files of an archive, whose contents stay in it.
func (s *store) readTar() error {
	whole, err := extent.File(s.path)
	if err != nil {
		return err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 6)
	n, _ := f.ReadAt(magic, 0) // too short a file is no archive either
	for _, c := range []struct{ magic, name, with string }{
		{"\x1f\x8b", "gzip", "gunzip"}, {"\x28\xb5\x2f\xfd", "zstd", "unzstd"}, {"\xfd7zXZ\x00", "xz", "unxz"}, {"BZh", "bzip2", "bunzip2"},
	} {
		if strings.HasPrefix(string(magic[:n]), c.magic) {
			return fmt.Errorf("%w: the archive is compressed with %s; unpack it with %s, its layers are compressed themselves", ErrFormat, c.name, c.with)
		}
	}
	links := map[string]string{}
	tr := tar.NewReader(f)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if entries == maxEntries {
			return fmt.Errorf("%w: more than %d files", ErrFormat, maxEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent) // the reader takes no more than it needs
			if err != nil {
				return err
			}
			src, err := extent.Section(whole, at, h.Size)
			if err != nil {
				return fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
			}
			s.files[name] = blob{src, s.path + ":" + name}
		case tar.TypeSymlink: // an old docker's, for a layer that comes twice
			links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
		case tar.TypeLink:
			links[name] = path.Clean("/" + h.Linkname)[1:]
		}
	}
	for name, target := range links {
		if b, ok := s.files[target]; ok && links[target] == "" {
			s.files[name] = b
		}
	}
	return nil
}

func (s *store) has(name string) bool {
	if _, ok := s.files[name]; ok || !s.dir {
		return ok
	}
	fi, err := os.Stat(filepath.Join(s.path, filepath.FromSlash(name)))
	return err == nil && fi.Mode().IsRegular()
}

// file returns one that has to be there.
func (s *store) file(name string) (blob, error) {
	if b, ok := s.files[name]; ok {
		return b, nil
	}
	if !s.dir {
		return blob{}, fmt.Errorf("%w: %s is not in the archive", ErrMissing, name)
	}
	where := filepath.Join(s.path, filepath.FromSlash(name))
	fi, err := os.Stat(where)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return blob{}, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if err != nil {
		return blob{}, err
	}
	if !fi.Mode().IsRegular() {
		return blob{}, fmt.Errorf("%w: %s is not a regular file", ErrFormat, where)
	}
	src, err := extent.File(where)
	return blob{src, where}, err
}

// read returns the content of a small file.
func (b blob) read() ([]byte, error) {
	if b.Size() > maxJSON {
		return nil, fmt.Errorf("%w: %s has %d bytes, want at most %d", ErrFormat, b.file, b.Size(), maxJSON)
	}
	data := make([]byte, b.Size())
	if _, err := io.ReadFull(extent.Reader(b), data); err != nil {
		return nil, fmt.Errorf("%s: %w", b.file, err)
	}
	return data, nil
}

// json reads a small file.
func (s *store) json(name string, to any) error {
	b, err := s.file(name)
	if err != nil {
		return err
	}
	data, err := b.read()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
	}
	return nil
}

// index returns the images of a layout.
func (s *store) index() ([]v1.Descriptor, error) {
	var mark struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := s.json(layoutFile, &mark); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(mark.Version, "1.") {
		return nil, fmt.Errorf("%w: %s: version %q, want 1.0.0", ErrFormat, layoutFile, mark.Version)
	}
	var index v1.IndexManifest
	if err := s.json(indexFile, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) > maxImages {
		return nil, fmt.Errorf("%w: %s: more than %d images", ErrFormat, indexFile, maxImages)
	}
	return index.Manifests, nil
}

// blob returns the one that a descriptor names. Its size has been compared, its
// content not.
func (s *store) blob(d v1.Descriptor) (blob, error) {
	if b, err := hex.DecodeString(d.Digest.Hex); d.Digest.Algorithm != "sha256" || err != nil || len(b) != 32 || strings.ToLower(d.Digest.Hex) != d.Digest.Hex {
		return blob{}, fmt.Errorf("%w: digest %.100q, want sha256:…", ErrFormat, d.Digest)
	}
	b, err := s.file(blobName(d.Digest))
	if err != nil {
		return blob{}, err
	}
	if b.Size() != d.Size {
		return blob{}, fmt.Errorf("%w: %s has %d bytes, %s has %d; it is damaged, make or copy it again", ErrDigest, b.file, b.Size(), d.Digest, d.Size)
	}
	return b, nil
}

// readBlob returns the content of a small one, compared with its digest.
func (s *store) readBlob(d v1.Descriptor) ([]byte, blob, error) {
	b, err := s.blob(d)
	if err != nil {
		return nil, b, err
	}
	data, err := b.read()
	if err != nil {
		return nil, b, err
	}
	return data, b, same(b.file, digestOf(data), d.Digest)
}

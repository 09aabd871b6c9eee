//go:build linux

package installer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Limits of what an archive may hold.
const (
	maxBytes = 8 << 30 // of all files
	maxFiles = 20_000
)

// An Unpacker puts an image into a directory.
type Unpacker struct {
	dir, arch string
	json      map[string][]byte // blobs that are no layers, by digest
	layers    map[string]bool   // that are in the directory
	bytes     int64             // that files have
	files     int
}

// New returns an Unpacker that writes below dir, which must be there, and takes
// images for arch, as Go has it.
func New(dir, arch string) *Unpacker {
	return &Unpacker{dir: dir, arch: arch, json: map[string][]byte{}, layers: map[string]bool{}}
}

// Archive unpacks what r has, an OCI image layout in a tar archive.
func (u *Unpacker) Archive(ctx context.Context, r io.Reader) (*Image, error) {
	var index []byte
	archive := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) {
			return nil, refuse("it is no tar archive: %w", err)
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		digest, isBlob := strings.CutPrefix(name, "blobs/sha256/")
		switch {
		case h.Typeflag != tar.TypeReg:
		case name == "index.json":
			if index, err = limited(archive, maxJSON); err != nil {
				return nil, fmt.Errorf("index.json: %w", err)
			}
		case isBlob:
			if err := u.Blob(ctx, "sha256:"+digest, archive); err != nil {
				return nil, err
			}
		}
	}
	// What is behind the end belongs to whom r is of.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	if index == nil {
		return nil, refuse("it has no index.json; want what 'kiln build installer' or, since version 25, 'docker save' writes")
	}
	return u.Image(index)
}

// limited reads what r has, at most limit bytes.
func limited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = refuse("more than %d bytes", limit)
	}
	return data, err
}

// Blob takes a blob with a digest: a layer, whose files are written, or one in JSON.
func (u *Unpacker) Blob(ctx context.Context, digest string, r io.Reader) error {
	h := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(r, h), 256<<10)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	id, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(id); !ok || err != nil || len(raw) != sha256.Size {
		return refuse("digest %q, want sha256: and 64 hexadecimal digits", digest)
	}
	var data []byte
	isLayer := true
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		var z *gzip.Reader
		if z, err = gzip.NewReader(in); err == nil {
			err = u.layer(ctx, id, z)
		}
	case len(head) == 512 && bytes.HasPrefix(head[257:], []byte("ustar")):
		err = u.layer(ctx, id, in)
	case bytes.HasPrefix(bytes.TrimSpace(head), []byte("{")):
		isLayer = false
		data, err = limited(in, maxJSON)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		err = refuse("a layer is compressed with zstd, want gzip or nothing")
	default:
		isLayer, err = false, nil // an attestation, perhaps
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, tar.ErrHeader) {
		err = refuse("it is damaged: %w", err)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", digest, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != id {
		return refuse("blob %s has the digest sha256:%s: it is damaged", digest, got)
	}
	if isLayer {
		u.layers[digest] = true
	} else {
		u.json[digest] = data
	}
	return nil
}

// layerDir is where the files of a layer are until all are there.
func (u *Unpacker) layerDir(id string) string { return filepath.Join(u.dir, "layers", id) }

// layer writes the files of a layer.
func (u *Unpacker) layer(ctx context.Context, id string, r io.Reader) error {
	dir := u.layerDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // nothing leads out of it
	if err != nil {
		return err
	}
	defer root.Close()
	for archive := tar.NewReader(r); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if u.files++; u.files > maxFiles {
			return refuse("more than %d files", maxFiles)
		}
		if u.bytes += h.Size; h.Size < 0 || u.bytes > maxBytes {
			return refuse("files of more than %d bytes", int64(maxBytes))
		}
		if err := add(root, h, archive); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// add adds an entry of an archive. Owners, times and what may be done to a file do
// not matter, but for programs.
func add(root *os.Root, h *tar.Header, content io.Reader) error {
	name := within(h.Name)
	if name == "" {
		return nil
	}
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return refuse("a layer that removes files of others")
	}
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeLink:
		return root.Link(within(h.Linkname), name)
	case tar.TypeReg:
	default:
		return refuse("an entry of type %q, want files and directories", h.Typeflag)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600|h.FileInfo().Mode()&0o100)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// Image puts the layers together that index, a manifest or an index of some, names.
func (u *Unpacker) Image(index []byte) (*Image, error) {
	m, err := find(index, u.arch, u.blob)
	if err != nil {
		return nil, err
	}
	data, err := u.blob(m.Config)
	if err != nil {
		return nil, err
	}
	tool, source, err := parseConfig(data, u.arch)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(u.dir, "root")
	for _, l := range m.Layers {
		if !u.layers[l.Digest] {
			return nil, refuse("layer %s is missing", l.Digest)
		}
		if err := merge(u.layerDir(strings.TrimPrefix(l.Digest, "sha256:")), root); err != nil {
			return nil, err
		}
	}
	img := &Image{Root: root, Tool: filepath.Join(root, tool), Source: filepath.Join(root, source)}
	if fi, err := os.Lstat(img.Tool); err != nil || !fi.Mode().IsRegular() {
		return nil, refuse("it has no program %s", tool)
	}
	if fi, err := os.Lstat(img.Source); err != nil || !fi.IsDir() {
		return nil, refuse("it has no directory %s", source)
	}
	return img, nil
}

// blob returns one in JSON.
func (u *Unpacker) blob(d descriptor) ([]byte, error) {
	data := u.json[d.Digest]
	if data == nil {
		return nil, refuse("blob %s is missing", d.Digest)
	}
	return data, nil
}

// merge moves what is in from to to, where it replaces what is there.
func merge(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		fi, err := os.Lstat(target)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = os.Rename(source, target)
		case err != nil:
		case e.IsDir() && fi.IsDir():
			err = merge(source, target)
		case e.IsDir() || fi.IsDir():
			err = refuse("%s is a file in one layer and a directory in another", e.Name())
		default:
			err = os.Rename(source, target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

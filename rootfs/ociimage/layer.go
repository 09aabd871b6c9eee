package ociimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Compression is how a layer is compressed.
type Compression string

// The compressions there are. Whatever takes images takes None and Gzip. Docker
// takes Zstd since version 23, containerd since 1.5.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// layer is a layer that is made when it is read.
type layer struct {
	archive        *extent.Map
	compression    Compression
	digest, diffID v1.Hash
	size           int64
}

// Layer returns a layer of all of t but the root directory. Its bytes depend on t
// alone: where a tree is in two images they share the layer. Contents of files stay
// where they are, and must not change.
func Layer(ctx context.Context, t *tree.Tree, c Compression) (v1.Layer, error) {
	archive, err := tarOf(ctx, t)
	if err != nil {
		return nil, err
	}
	l := &layer{archive: archive, compression: c}
	if _, err := l.MediaType(); err != nil {
		return nil, err
	}
	// Both digests at once.
	group, ctx := errgroup.WithContext(ctx)
	diffID, digest := sha256.New(), &counter{Writer: io.Discard}
	sum := sha256.New()
	group.Go(func() error {
		_, err := archive.WriteTo(&watched{ctx, diffID})
		return err
	})
	if c != None {
		digest.Writer = sum
		group.Go(func() error { return l.write(ctx, digest) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(diffID.Sum(nil))}
	l.digest, l.size = l.diffID, archive.Size()
	if c != None {
		l.digest, l.size = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, digest.n
	}
	return l, nil
}

// write writes the layer as it is in an image.
func (l *layer) write(ctx context.Context, w io.Writer) error {
	switch l.compression {
	case Gzip:
		return compress.Write(ctx, w, l.archive, compress.Options{Format: compress.Gzip}, nil)
	case Zstd:
		return compress.Write(ctx, w, l.archive, compress.Options{Format: compress.Zstd}, nil)
	}
	_, err := l.archive.WriteTo(&watched{ctx, w})
	return err
}

func (l *layer) Digest() (v1.Hash, error) { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error) { return l.diffID, nil }
func (l *layer) Size() (int64, error)     { return l.size, nil }

func (l *layer) MediaType() (types.MediaType, error) {
	switch l.compression {
	case None:
		return types.OCIUncompressedLayer, nil
	case Gzip:
		return types.OCILayer, nil
	case Zstd:
		return types.OCILayerZStd, nil
	}
	return "", fmt.Errorf("%w: compression %q, want %q, %q or %q", ErrInvalid, l.compression, None, Gzip, Zstd)
}

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(extent.Reader(l.archive)), nil
}

func (l *layer) Compressed() (io.ReadCloser, error) {
	if l.compression == None {
		return l.Uncompressed()
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(l.write(ctx, w))
		cancel()
	}()
	return &stoppable{r, cancel}, nil
}

// stoppable is the end of a pipe that ends what writes to it when it is closed.
type stoppable struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (s *stoppable) Close() error {
	s.cancel()
	return s.PipeReader.Close()
}

// counter counts what is written.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}

// watched fails when the context ends.
type watched struct {
	ctx context.Context
	w   io.Writer
}

func (w *watched) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// tarOf returns t as a tar archive in the POSIX format, of which no content has
// been read.
func tarOf(ctx context.Context, t *tree.Tree) (*extent.Map, error) {
	const block = 512
	var parts []extent.Source
	first := map[*tree.Inode]string{}
	for name, ino := range t.All() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if name == "." {
			continue
		}
		h, err := header(name, ino, first)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
		}
		parts = append(parts, extent.Bytes(b.Bytes()))
		if h.Typeflag == tar.TypeReg && ino.Content != nil {
			parts = append(parts, ino.Content)
		}
	}
	return extent.Concat(block, append(parts, extent.New(2*block))...)
}

// header returns that of an inode. first has the names of those before it.
func header(name string, ino *tree.Inode, first map[*tree.Inode]string) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Mode: int64(ino.Mode.Perm()), Uid: int(ino.UID), Gid: int(ino.GID),
		ModTime: time.Unix(ino.ModTime, 0).UTC(), Format: tar.FormatPAX,
	}
	for _, b := range []struct {
		mode fs.FileMode
		tar  int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if ino.Mode&b.mode != 0 {
			h.Mode |= b.tar
		}
	}
	if target, again := first[ino]; again && !ino.Mode.IsDir() {
		h.Typeflag, h.Linkname = tar.TypeLink, target
		return h, nil
	}
	first[ino] = name
	for k, v := range ino.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = string(v)
	}
	switch ino.Mode.Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, ino.Size()
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, ino.Target
	case fs.ModeDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(ino.Major), int64(ino.Minor)
	case fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(ino.Major), int64(ino.Minor)
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("%w: %s is a %s", ErrInvalid, name, ino.Mode.Type())
	}
	return h, nil
}

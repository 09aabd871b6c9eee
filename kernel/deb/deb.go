// Package deb reads Debian binary packages as deb(5) describes them: an ar
// archive that holds, in this order,
//
//	debian-binary     the format's version, "2.0\n"
//	control.tar.*     the control file (deb822(5)) and maintainer scripts
//	data.tar.*        the files, relative to the root directory
//
// The two tar archives may be uncompressed or compressed with gzip, xz or zstd.
// Maintainer scripts are never run and never kept.
//
// Packages come from outside and are not trusted: names that leave the root,
// device nodes and anything beyond the size limits are refused.
package deb

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/kilnhq/kiln/imager/extent"
)

// Errors that errors of this package wrap.
var (
	ErrFormat    = errors.New("not a Debian package")
	ErrTruncated = errors.New("truncated")
	ErrLimit     = errors.New("larger than allowed")
)

// DefaultMaxBytes is how much a package may unpack to unless told otherwise.
// A distribution kernel with all its modules takes 600 MB uncompressed.
const DefaultMaxBytes = 4 << 30

// maxDict bounds the memory in bytes that decompression may take; xz -9 and
// zstd --ultra -22 stay within it.
const maxDict = 128 << 20

// Package is a Debian binary package whose control file has been read.
type Package struct {
	Control

	// MaxBytes bounds what Tree unpacks, counting the tar headers too.
	MaxBytes int64

	name string
	r    io.ReaderAt
	data member
}

// Open reads the package in the file at path. The package holds no descriptor.
func Open(path string) (*Package, error) {
	f, err := extent.File(path)
	if err != nil {
		return nil, err
	}
	return Read(path, f, f.Size())
}

// Read reads the package of size bytes in r. name stands for it in errors.
// r is used until the last call of Tree.
func Read(name string, r io.ReaderAt, size int64) (*Package, error) {
	p := &Package{MaxBytes: DefaultMaxBytes, name: name, r: r}
	if err := p.read(size); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// Name returns the file name that Debian's tools would give the package,
// without ".deb": name_version_architecture, the version without its epoch.
func (p *Package) Name() string {
	version := p.Version
	if _, after, ok := strings.Cut(version, ":"); ok {
		version = after
	}
	return p.Control.Package + "_" + version + "_" + p.Architecture
}

func (p *Package) read(size int64) error {
	members, err := readAr(p.r, size)
	if err != nil {
		return err
	}
	var found []member
	for _, m := range members {
		if !strings.HasPrefix(m.name, "_") { // deb(5): to be ignored
			found = append(found, m)
		}
	}
	for i, want := range []string{"debian-binary", "control.tar", "data.tar"} {
		if i == len(found) {
			return fmt.Errorf("%w: the archive ends before %s", ErrTruncated, want)
		}
		if got := found[i].name; got != want && (i == 0 || !strings.HasPrefix(got, want+".")) {
			return fmt.Errorf("%w: member %d is %q, want %q", ErrFormat, i+1, got, want)
		}
	}
	version := make([]byte, min(found[0].size, 16))
	if _, err := p.r.ReadAt(version, found[0].offset); err != nil && err != io.EOF {
		return err
	}
	if !strings.HasPrefix(string(version), "2.") {
		return fmt.Errorf("%w: format version %q, want \"2.0\\n\"", ErrFormat, version)
	}
	p.data = found[2]
	c, err := p.readControl(found[1])
	if err != nil {
		return fmt.Errorf("%s: %w", found[1].name, err)
	}
	p.Control = *c
	return nil
}

func (p *Package) readControl(m member) (*Control, error) {
	r, err := p.decompress(context.Background(), m, 64<<20)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil, fmt.Errorf("%w: no control file", ErrFormat)
		}
		if err != nil {
			return nil, r.explain(err)
		}
		if path.Clean(h.Name) != "control" || h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(tr, maxControl+1))
		if err != nil {
			return nil, r.explain(err)
		}
		return ParseControl(data)
	}
}

// stream is the uncompressed content of a member. It fails rather than yield
// more than limit bytes.
type stream struct {
	ctx   context.Context
	r     io.Reader
	n     int64 // bytes yielded
	limit int64
	close func()
}

func (s *stream) Close() { s.close() }

func (s *stream) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(b)
	if s.n += int64(n); s.n > s.limit {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes", ErrLimit, s.limit)
	}
	return n, err
}

// explain makes an error that came up while s was read say where, and a stream
// that stopped early ErrTruncated.
func (s *stream) explain(err error) error {
	switch {
	case errors.Is(err, ErrLimit) || s.ctx.Err() != nil:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, xz.ErrBuf):
		return fmt.Errorf("%w after %d bytes uncompressed: %w", ErrTruncated, s.n, err)
	}
	return fmt.Errorf("after %d bytes uncompressed: %w", s.n, err)
}

// decompress opens member m for reading.
func (p *Package) decompress(ctx context.Context, m member, limit int64) (*stream, error) {
	in := bufio.NewReaderSize(io.NewSectionReader(p.r, m.offset, m.size), 256<<10)
	s := &stream{ctx: ctx, limit: limit, close: func() {}}
	switch ext := path.Ext(m.name); ext {
	case ".tar":
		s.r = in
	case ".gz":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, s.explain(err)
		}
		s.r = z
	case ".xz":
		z, err := xz.NewReader(in, maxDict)
		if err != nil {
			return nil, s.explain(err)
		}
		s.r = z
	case ".zst":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDict), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, s.explain(err)
		}
		s.r, s.close = z, z.Close
	default:
		return nil, fmt.Errorf("%w: compressed as %q, want .gz, .xz or .zst", ErrFormat, ext)
	}
	return s, nil
}

package compress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	// maxBlocks bounds what Open keeps in memory: 4 TiB in blocks of 1 MiB.
	maxBlocks = 1 << 22

	// maxBlock is the largest block that is decompressed as a whole.
	maxBlock = 64 << 20

	// maxSize is what a disk may have, so that sums do not overflow.
	maxSize = 1 << 60

	// zeroRatio is how much a block must be compressed to be taken for zeros, and
	// looked at when the stream is opened.
	zeroRatio = 256

	// trialSize is how much is decompressed to find zeros when a stream is opened.
	trialSize = 256 << 20

	// cacheSize is the number of bytes of decompressed blocks that are kept.
	cacheSize = 16 << 20

	// maxWindow bounds the memory that a stream may ask for.
	maxWindow = 128 << 20
)

// span is a compressed block: packed bytes at an offset of the file, of which
// size bytes come.
type span struct {
	at, packed, size int64
	check, padding   byte // of xz: the kind, and the number of bytes of it in packed
}

func checkCount(n int64) error {
	if n > maxBlocks {
		return fmt.Errorf("%w: %d blocks, %d are the most", ErrCorrupt, n, maxBlocks)
	}
	return nil
}

func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: ends at %d", ErrCorrupt, off+int64(n))
	}
	return err
}

// Open returns what is in a compressed stream as a map, of which blocks are
// decompressed when they are read. Blocks of zeros are holes. The stream must be
// one that Write has written, or in the seekable zstd format, or an xz file with
// blocks of up to 64 MiB, such as "xz -T2" writes; others are ErrSequential.
//
// Of zstd and xz, blocks are checked against the checksums in the stream; of gzip
// there is only one for the whole, which is not.
func Open(src extent.Source) (*extent.Map, error) {
	format, err := detect(src)
	if err != nil {
		return nil, err
	}
	var spans []span
	switch format {
	case Zstd:
		spans, err = openZstd(src)
	case Gzip:
		spans, err = openGzip(src)
	case XZ:
		spans, err = openXZ(src)
	}
	if err != nil {
		return nil, err
	}
	var size int64
	for _, s := range spans {
		if s.size > maxSize-size {
			return nil, fmt.Errorf("%w: blocks of more than %d bytes in all", ErrCorrupt, int64(maxSize))
		}
		size += s.size
	}
	f := &file{src: src, format: format}
	m := extent.New(size)
	var at int64
	z := zeroFinder{file: f, budget: trialSize}
	for _, s := range spans {
		hole, err := z.isZero(s)
		if err != nil {
			return nil, err
		}
		if !hole {
			if s.size > maxBlock {
				return nil, fmt.Errorf("%w: a block of %d bytes, %d are the most", ErrSequential, s.size, maxBlock)
			}
			if err := m.Put(at, &blockSource{f, s}); err != nil {
				return nil, err
			}
		}
		at += s.size
	}
	return m, nil
}

// zeroFinder tells blocks that are surely zeros from others.
type zeroFinder struct {
	*file
	known  []byte // the last block of zeros, as it is in the file
	budget int64  // bytes that may be decompressed yet
}

// isZero looks at what is compressed a lot, and decompresses it, but only once
// what is the same.
func (z *zeroFinder) isZero(s span) (bool, error) {
	if s.size == 0 {
		return true, nil
	}
	if s.packed > 1<<10+s.size/zeroRatio {
		return false, nil
	}
	b := make([]byte, s.packed)
	if err := readFull(z.src, b, s.at); err != nil {
		return false, err
	}
	if z.format == Zstd && s.packed == zeroFrameSize(s.size) && bytes.Equal(b, zeroFrame(s.size)) {
		return true, nil
	}
	if bytes.Equal(b, z.known) {
		return true, nil
	}
	if s.size > min(maxBlock, z.budget) {
		return false, nil
	}
	z.budget -= s.size
	content, err := z.unpack(s, b)
	if err != nil || !allZero(content) {
		return false, err
	}
	z.known = b
	return true, nil
}

// file is an open stream.
type file struct {
	src    extent.Source
	format Format

	mu    sync.Mutex
	cache []cached // the one used last is the last
	held  int64    // bytes in it
}

type cached struct {
	at      int64
	content []byte
}

// block returns the content of a block.
func (f *file) block(s span) ([]byte, error) {
	if b := f.lookup(s.at); b != nil {
		return b, nil
	}
	b := make([]byte, s.packed)
	if err := readFull(f.src, b, s.at); err != nil {
		return nil, err
	}
	content, err := f.unpack(s, b)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cache = append(f.cache, cached{s.at, content})
	f.held += s.size
	for f.held > cacheSize && len(f.cache) > 1 {
		f.held -= int64(len(f.cache[0].content))
		f.cache[0] = cached{}
		f.cache = f.cache[1:]
	}
	return content, nil
}

func (f *file) lookup(at int64) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range f.cache {
		if c.at == at {
			f.cache = append(append(f.cache[:i], f.cache[i+1:]...), c)
			return c.content
		}
	}
	return nil
}

func (f *file) unpack(s span, b []byte) ([]byte, error) {
	var content []byte
	var err error
	switch f.format {
	case Zstd:
		content, err = unpackZstd(b, s.size)
	case Gzip:
		content, err = unpackGzip(b, s.size)
	case XZ:
		content, err = unpackXZ(b, s)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: block at %d: %w", ErrCorrupt, s.at, err)
	}
	if int64(len(content)) != s.size {
		return nil, fmt.Errorf("%w: block at %d has %d bytes, want %d", ErrCorrupt, s.at, len(content), s.size)
	}
	return content, nil
}

// blockSource is the content of a block.
type blockSource struct {
	f    *file
	span span
}

func (b *blockSource) Size() int64 { return b.span.size }

func (b *blockSource) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= b.span.size {
		return 0, io.EOF
	}
	content, err := b.f.block(b.span)
	if err != nil {
		return 0, err
	}
	n := copy(p, content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NewReader returns a reader of what is in any compressed stream, from start to
// end. The format is told by the first bytes. Streams that need more than 128 MiB
// to decompress are refused.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	start := make([]byte, 6)
	n, err := io.ReadFull(r, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(start[:n]), r)
	switch Detect(start[:n]) {
	case Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case Gzip:
		return gzip.NewReader(r)
	case XZ:
		d, err := xz.NewReader(r, xz.DefaultDictMax)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return io.NopCloser(d), nil
	}
	return nil, fmt.Errorf("%w: begins with % x", ErrFormat, start[:n])
}

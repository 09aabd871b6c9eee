// Package compress writes disks as compressed streams, and reads them back at
// any offset.
//
// The disk is cut into blocks, which are compressed independently, in parallel,
// and which every format can put in a row so that the usual program takes them
// for one stream:
//
//   - zstd (RFC 8878): a frame for each block, and at the end a seek table in a
//     skippable frame, as the "Zstandard Seekable Format" of the zstd project has
//     it.
//   - gzip (RFC 1952): one member, in which the deflate stream (RFC 1951) of each
//     block ends at a byte boundary, as after a full flush. An empty member after
//     it has the lengths of the blocks in its extra field, see gzip.go.
//   - xz ("The .xz File Format", version 1.2): one stream of blocks, whose index
//     is part of the format.
//
// Holes cost next to nothing: the compressed form of zeros is made once and
// repeated. A block that is compressed already, which a fast compressor finds
// out in no time, is not given to a slow one.
package compress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kilnhq/kiln/imager/extent"
)

// Format is a format of compressed streams.
type Format string

// The formats there are, by the usual suffix of their files.
const (
	Zstd Format = "zst"
	Gzip Format = "gz"
	XZ   Format = "xz"
)

// Errors, returned wrapped.
var (
	// ErrSequential is returned by Open for streams that can only be read from
	// their start to their end, with NewReader.
	ErrSequential = errors.New("not compressed in blocks that can be read alone")

	// ErrCorrupt is returned for streams that break the rules of their format.
	ErrCorrupt = errors.New("corrupt compressed stream")

	// ErrFormat is returned for what is in none of the formats.
	ErrFormat = errors.New("not a zstd, gzip or xz stream")

	// ErrLevel is returned for levels that a format does not have.
	ErrLevel = errors.New("compression level out of range")
)

// Options are how Write compresses.
type Options struct {
	Format Format

	// Level is the effort, as the usual program numbers it: 1 to 22 for zstd, of
	// which there are four in fact, 1 to 9 for gzip and xz. 0 is the usual
	// program's default: 3 for zstd, 6 for gzip and xz.
	Level int
}

// encoding is how one format writes blocks. The methods but
// the first three are called in order, from one goroutine.
type encoding interface {
	// blockSize is the number of bytes of all data blocks but the last.
	blockSize() int64

	// maxWorkers is how many goroutines may compress, so that all of them take
	// less than 200 MB.
	maxWorkers() int

	// packer returns what compresses the blocks, in one goroutine. There may be
	// many.
	packer() (packer, error)

	start() error
	data(p packed) error
	zeros(n int64) error
	finish() error
}

// packer compresses a block, appending to dst. What it makes of a block does not
// depend on what it compressed before.
type packer func(dst, block []byte) (packed, error)

// packed is a compressed block.
type packed struct {
	bytes []byte
	size  int64  // of the block
	crc   uint32 // of the block, CRC-32 as in RFC 1952, where the format needs it
}

// Write compresses m to w. Holes are not read. The bytes it writes are a function
// of the content of m and of the options: it compresses on several processors, 8 at
// the most, fewer at high levels, and takes less than 200 MB.
//
// If progress is not nil it is called, from one goroutine at a time, with the
// number of bytes of m, holes included, that are dealt with since the last call.
func Write(ctx context.Context, w io.Writer, m *extent.Map, o Options, progress func(n int64)) error {
	e, err := newEncoding(w, o)
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	if err := e.start(); err != nil {
		return err
	}
	if err := compressBlocks(ctx, e, m, progress); err != nil {
		return err
	}
	return e.finish()
}

func newEncoding(w io.Writer, o Options) (encoding, error) {
	level := func(usual, highest int) error {
		if o.Level == 0 {
			o.Level = usual
		}
		if o.Level < 1 || o.Level > highest {
			return fmt.Errorf("%w: %s has 1 to %d, not %d", ErrLevel, o.Format, highest, o.Level)
		}
		return nil
	}
	switch o.Format {
	case Zstd:
		if err := level(3, 22); err != nil {
			return nil, err
		}
		return &zstdWriter{w: w, level: o.Level}, nil
	case Gzip:
		if err := level(6, 9); err != nil {
			return nil, err
		}
		return &gzipWriter{w: w, level: o.Level}, nil
	case XZ:
		if err := level(6, 9); err != nil {
			return nil, err
		}
		return &xzWriter{w: w, level: o.Level}, nil
	}
	return nil, fmt.Errorf("%w: cannot write %q", ErrFormat, o.Format)
}

// Detect returns the format of a stream by its first bytes, six at least, or "".
func Detect(start []byte) Format {
	for _, f := range []struct {
		magic  string
		format Format
	}{{zstdMagic, Zstd}, {gzipMagic, Gzip}, {xzMagic, XZ}} {
		if bytes.HasPrefix(start, []byte(f.magic)) {
			return f.format
		}
	}
	return ""
}

// detect is Detect for a whole stream.
func detect(src extent.Source) (Format, error) {
	start := make([]byte, 6)
	n, err := src.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if f := Detect(start[:n]); f != "" {
		return f, nil
	}
	return "", fmt.Errorf("%w: begins with % x", ErrFormat, start[:n])
}

// allZero reports whether all bytes of p are 0.
func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

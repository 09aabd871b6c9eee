package compress

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	zstdMagic = "\x28\xb5\x2f\xfd"

	// zstdBlock is the content of a frame. Larger ones gain little, and cost
	// whoever reads a few bytes.
	zstdBlock = 1 << 20

	// zeroFrameMax is the most content a frame may have in the seekable format.
	zeroFrameMax = 1 << 30

	// The seek table: a skippable frame of entries of two little-endian uint32,
	// the compressed and the other size of each frame, and a footer of their
	// number, a byte of flags, and a magic number.
	seekTableMagic  = 0x184d2a5e
	seekFooterMagic = 0x8f92eab1
	seekHeaderSize  = 8
	seekEntrySize   = 8
	seekFooterSize  = 9
	seekChecksums   = 0x80 // flag: entries are 4 bytes longer
	seekReserved    = 0x7c
)

// zstdWriter writes frames.
type zstdWriter struct {
	w     io.Writer
	level int
	table []byte // entries of the seek table
}

func (z *zstdWriter) blockSize() int64 { return zstdBlock }
func (z *zstdWriter) start() error     { return nil }

func (z *zstdWriter) maxWorkers() int {
	if zstd.EncoderLevelFromZstd(z.level) == zstd.SpeedBestCompression {
		return 4
	}
	return 8
}

func (z *zstdWriter) packer() (packer, error) {
	fast, err := newZstdEncoder(zstd.SpeedFastest)
	if err != nil {
		return nil, err
	}
	level := zstd.EncoderLevelFromZstd(z.level)
	good := fast
	if level != zstd.SpeedFastest {
		if good, err = newZstdEncoder(level); err != nil {
			return nil, err
		}
	}
	return func(dst, block []byte) (packed, error) {
		out := fast.EncodeAll(block, dst)
		if good != fast && !incompressible(len(out), len(block)) {
			out = good.EncodeAll(block, dst)
		}
		return packed{bytes: out}, nil
	}, nil
}

func newZstdEncoder(level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(zstdBlock), zstd.WithEncoderCRC(true))
}

// incompressible reports whether effort is wasted on a block of which the fast
// encoder of zstd made so much.
func incompressible(packed, size int) bool { return packed > size-size/32 }

func (z *zstdWriter) data(p packed) error { return z.frame(p.bytes, p.size) }

func (z *zstdWriter) frame(b []byte, size int64) error {
	z.table = binary.LittleEndian.AppendUint32(z.table, uint32(len(b)))
	z.table = binary.LittleEndian.AppendUint32(z.table, uint32(size))
	_, err := z.w.Write(b)
	return err
}

func (z *zstdWriter) zeros(n int64) error {
	for n > 0 {
		size := min(n, zeroFrameMax)
		if err := z.frame(zeroFrame(size), size); err != nil {
			return err
		}
		n -= size
	}
	return nil
}

func (z *zstdWriter) finish() error {
	count := len(z.table) / seekEntrySize
	if len(z.table)+seekFooterSize > math.MaxUint32 {
		return fmt.Errorf("the seek table of %d frames is too large", count)
	}
	if count == 0 { // a stream has a frame at least
		z.table = make([]byte, seekEntrySize)
		empty := zeroFrame(0)
		binary.LittleEndian.PutUint32(z.table, uint32(len(empty)))
		if _, err := z.w.Write(empty); err != nil {
			return err
		}
		count = 1
	}
	b := binary.LittleEndian.AppendUint32(nil, seekTableMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(z.table)+seekFooterSize))
	b = append(b, z.table...)
	b = binary.LittleEndian.AppendUint32(b, uint32(count))
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint32(b, seekFooterMagic)
	_, err := z.w.Write(b)
	return err
}

// repeatMax is the most that a block of a zstd frame may stand for.
const repeatMax = 128 << 10

// zeroFrame returns a frame of n zeros, n below 4 GiB: blocks that repeat one
// byte, which take 4 bytes for 128 KiB. The first is one plain byte, as programs
// up to zstd 1.4.3 fail where the first repeats.
func zeroFrame(n int64) []byte {
	const (
		fieldOf4 = 0x80   // frame header: content size in 4 bytes
		window   = 7 << 3 // window descriptor: 128 KiB, so it needs no memory
		last     = 1 << 0
		plain    = 0 << 1
		repeat   = 1 << 1
	)
	b := append([]byte(zstdMagic), fieldOf4, window)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	block := func(kind, size int64) {
		n -= size
		if n == 0 {
			kind |= last
		}
		h := kind | size<<3
		b = append(b, byte(h), byte(h>>8), byte(h>>16))
		if size > 0 {
			b = append(b, 0)
		}
	}
	block(plain, min(n, 1))
	for n > 0 {
		block(repeat, min(n, repeatMax))
	}
	return b
}

// zeroFrameSize is the number of bytes of zeroFrame(n), n > 0.
func zeroFrameSize(n int64) int64 { return 10 + 4 + 4*((n-1+repeatMax-1)/repeatMax) }

// openZstd returns the blocks of a stream that ends with a seek table.
func openZstd(src extent.Source) ([]span, error) {
	footer := make([]byte, seekFooterSize)
	if src.Size() < seekHeaderSize+seekFooterSize {
		return nil, ErrSequential
	}
	if err := readFull(src, footer, src.Size()-seekFooterSize); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(footer[5:]) != seekFooterMagic {
		return nil, fmt.Errorf("%w: a zstd stream without a seek table", ErrSequential)
	}
	count, flags, entry := int64(binary.LittleEndian.Uint32(footer)), footer[4], int64(seekEntrySize)
	if flags&seekReserved != 0 {
		return nil, fmt.Errorf("%w: seek table with unknown flags %#x", ErrCorrupt, flags)
	}
	if flags&seekChecksums != 0 {
		entry += 4
	}
	if err := checkCount(count); err != nil {
		return nil, err
	}
	start := src.Size() - seekFooterSize - count*entry - seekHeaderSize
	if start < 0 {
		return nil, fmt.Errorf("%w: seek table of %d frames in %d bytes", ErrCorrupt, count, src.Size())
	}
	table := make([]byte, seekHeaderSize+count*entry)
	if err := readFull(src, table, start); err != nil {
		return nil, err
	}
	if magic, size := binary.LittleEndian.Uint32(table), int64(binary.LittleEndian.Uint32(table[4:])); magic != seekTableMagic || size != count*entry+seekFooterSize {
		return nil, fmt.Errorf("%w: seek table begins with %#x and %d bytes, want %#x and %d", ErrCorrupt, magic, size, uint32(seekTableMagic), count*entry+seekFooterSize)
	}
	spans := make([]span, 0, count)
	var at int64
	for e := table[seekHeaderSize:]; len(e) > 0; e = e[entry:] {
		s := span{at: at, packed: int64(binary.LittleEndian.Uint32(e)), size: int64(binary.LittleEndian.Uint32(e[4:]))}
		at += s.packed
		spans = append(spans, s)
	}
	if at != start {
		return nil, fmt.Errorf("%w: frames of %d bytes in the seek table, %d before it", ErrCorrupt, at, start)
	}
	return spans, nil
}

// unpackZstd decompresses a frame.
func unpackZstd(frame []byte, size int64) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(frame, make([]byte, 0, size))
}

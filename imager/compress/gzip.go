package compress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	gzipMagic = "\x1f\x8b\x08"

	// gzipBlock is what is compressed independently. The window of deflate is 32
	// KiB, so hardly anything is lost.
	gzipBlock = 1 << 20

	gzipHeaderSize  = 10
	gzipTrailerSize = 8
	gzipExtra       = 1 << 2 // flag: there is an extra field
	gzipUnknownOS   = 255

	// The index is in members of no data after the one with all of it. Their
	// extra field has one subfield, "KI", of runs: three little-endian uint32 are
	// the number of blocks one after the other that are compressed to the same
	// number of bytes, this number, and the size of each. The last of the members
	// has besides a subfield "KE" of one little-endian uint64, the offset of the
	// first: its place is fixed, 20 bytes before the end of the file.
	runSize      = 12
	runsPerExtra = 5000
	endSize      = 8
)

// finalBlock is a last block of deflate with nothing in it.
var finalBlock = []byte{0x03, 0x00}

// gzipWriter writes one member.
type gzipWriter struct {
	w     io.Writer
	level int
	at    int64  // bytes written
	size  int64  // bytes compressed
	crc   uint32 // of them
	runs  []gzipRun
	zero  packed // a block of zeros
}

type gzipRun struct{ count, packed, size uint32 }

func (g *gzipWriter) blockSize() int64 { return gzipBlock }
func (g *gzipWriter) maxWorkers() int  { return 8 }

func (g *gzipWriter) write(b []byte) error {
	n, err := g.w.Write(b)
	g.at += int64(n)
	return err
}

func (g *gzipWriter) start() error {
	return g.write([]byte{gzipMagic[0], gzipMagic[1], gzipMagic[2], 0, 0, 0, 0, 0, 0, gzipUnknownOS})
}

func (g *gzipWriter) packer() (packer, error) {
	trial, err := newZstdEncoder(zstd.SpeedFastest)
	if err != nil {
		return nil, err
	}
	good, err := flate.NewWriter(nil, g.level)
	if err != nil {
		return nil, err
	}
	fast, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	var tried []byte
	return func(dst, block []byte) (packed, error) {
		z := good
		if tried = trial.EncodeAll(block, tried[:0]); incompressible(len(tried), len(block)) {
			z = fast
		}
		b, err := deflate(z, dst, block)
		return packed{bytes: b, crc: crc32.ChecksumIEEE(block)}, err
	}, nil
}

// deflate appends the blocks of deflate for p, none of them the last, up to a
// byte boundary.
func deflate(z *flate.Writer, dst, p []byte) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	z.Reset(out)
	if _, err := z.Write(p); err != nil {
		return nil, err
	}
	err := z.Flush()
	return out.Bytes(), err
}

func (g *gzipWriter) data(p packed) error {
	g.size += p.size
	g.crc = combineCRC(g.crc, p.crc, p.size)
	g.add(1, p)
	return g.write(p.bytes)
}

// add notes count blocks like p in the index.
func (g *gzipWriter) add(count int64, p packed) {
	run := gzipRun{uint32(count), uint32(len(p.bytes)), uint32(p.size)}
	if last := len(g.runs) - 1; last >= 0 && g.runs[last].packed == run.packed && g.runs[last].size == run.size {
		g.runs[last].count += run.count
		return
	}
	g.runs = append(g.runs, run)
}

func (g *gzipWriter) zeros(n int64) error {
	if n >= gzipBlock && g.zero.bytes == nil {
		var err error
		if g.zero, err = zeroDeflate(gzipBlock); err != nil {
			return err
		}
	}
	count := n / gzipBlock
	if count > 0 {
		const several = 256
		b := bytes.Repeat(g.zero.bytes, int(min(count, several)))
		for left := count; left > 0; left -= several {
			if err := g.write(b[:min(left, several)*int64(len(g.zero.bytes))]); err != nil {
				return err
			}
		}
		g.add(count, g.zero)
		g.size += count * gzipBlock
		g.crc = combineCRC(g.crc, zerosCRC(count*gzipBlock), count*gzipBlock)
	}
	if rest := n % gzipBlock; rest > 0 {
		p, err := zeroDeflate(rest)
		if err != nil {
			return err
		}
		return g.data(p)
	}
	return nil
}

// zeroDeflate compresses n zeros, which the highest level makes the least of, and
// as fast as others.
func zeroDeflate(n int64) (packed, error) {
	z, err := flate.NewWriter(nil, flate.BestCompression)
	if err != nil {
		return packed{}, err
	}
	b, err := deflate(z, nil, make([]byte, n))
	return packed{bytes: b, size: n, crc: zerosCRC(n)}, err
}

func (g *gzipWriter) finish() error {
	b := slices.Clone(finalBlock)
	b = binary.LittleEndian.AppendUint32(b, g.crc)
	b = binary.LittleEndian.AppendUint32(b, uint32(g.size))
	if err := g.write(b); err != nil {
		return err
	}
	index := g.at
	for first := true; first || len(g.runs) > 0; first = false {
		n := min(len(g.runs), runsPerExtra)
		extra := []byte{'K', 'I'}
		extra = binary.LittleEndian.AppendUint16(extra, uint16(n*runSize))
		for _, r := range g.runs[:n] {
			extra = binary.LittleEndian.AppendUint32(extra, r.count)
			extra = binary.LittleEndian.AppendUint32(extra, r.packed)
			extra = binary.LittleEndian.AppendUint32(extra, r.size)
		}
		if g.runs = g.runs[n:]; len(g.runs) == 0 {
			extra = append(extra, 'K', 'E', endSize, 0)
			extra = binary.LittleEndian.AppendUint64(extra, uint64(index))
		}
		b := []byte{gzipMagic[0], gzipMagic[1], gzipMagic[2], gzipExtra, 0, 0, 0, 0, 0, gzipUnknownOS}
		b = binary.LittleEndian.AppendUint16(b, uint16(len(extra)))
		b = append(b, extra...)
		b = append(b, finalBlock...)
		b = append(b, make([]byte, gzipTrailerSize)...)
		if err := g.write(b); err != nil {
			return err
		}
	}
	return nil
}

// openGzip returns the blocks of a member that has an index after it.
func openGzip(src extent.Source) ([]span, error) {
	const tail = 4 + endSize + 2 + gzipTrailerSize // subfield "KE", no data
	if src.Size() < gzipHeaderSize+tail {
		return nil, ErrSequential
	}
	b := make([]byte, tail)
	if err := readFull(src, b, src.Size()-tail); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte{'K', 'E', endSize, 0}) || !bytes.Equal(b[4+endSize:], append(slices.Clone(finalBlock), make([]byte, gzipTrailerSize)...)) {
		return nil, fmt.Errorf("%w: a gzip stream without an index after it", ErrSequential)
	}
	index := int64(binary.LittleEndian.Uint64(b[4:]))
	const least = gzipHeaderSize + 2 + gzipTrailerSize
	if index < least || index > src.Size()-tail || src.Size()-index > maxBlocks*runSize {
		return nil, fmt.Errorf("%w: gzip index at %d of %d bytes", ErrCorrupt, index, src.Size())
	}
	members := make([]byte, src.Size()-index)
	if err := readFull(src, members, index); err != nil {
		return nil, err
	}
	runs, err := parseRuns(members)
	if err != nil {
		return nil, err
	}
	var spans []span
	at := int64(gzipHeaderSize)
	for _, r := range runs {
		if err := checkCount(int64(len(spans)) + int64(r.count)); err != nil {
			return nil, err
		}
		for range r.count {
			spans = append(spans, span{at: at, packed: int64(r.packed), size: int64(r.size)})
			at += int64(r.packed)
		}
	}
	if want := index - 2 - gzipTrailerSize; at != want {
		return nil, fmt.Errorf("%w: gzip index of blocks up to %d, they end at %d", ErrCorrupt, at, want)
	}
	return spans, nil
}

// parseRuns reads the members with the index, of which the end has been checked.
func parseRuns(b []byte) ([]gzipRun, error) {
	var runs []gzipRun
	for len(b) > 0 {
		if len(b) < gzipHeaderSize+2+4 || string(b[:3]) != gzipMagic || b[3] != gzipExtra || string(b[12:14]) != "KI" {
			return nil, fmt.Errorf("%w: a gzip member without an index among those with one", ErrCorrupt)
		}
		extra, n := int(binary.LittleEndian.Uint16(b[10:])), int(binary.LittleEndian.Uint16(b[14:]))
		size := gzipHeaderSize + 2 + extra + len(finalBlock) + gzipTrailerSize
		if n%runSize != 0 || n+4 > extra || size > len(b) {
			return nil, fmt.Errorf("%w: gzip index of %d bytes in a field of %d", ErrCorrupt, n, extra)
		}
		for e := b[16 : 16+n]; len(e) > 0; e = e[runSize:] {
			runs = append(runs, gzipRun{binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:])})
		}
		b = b[size:]
	}
	return runs, nil
}

// unpackGzip decompresses a block, which must end where it does and not refer to
// what is before it.
func unpackGzip(block []byte, size int64) ([]byte, error) {
	r := flate.NewReader(io.MultiReader(bytes.NewReader(block), bytes.NewReader(finalBlock)))
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("more than %d bytes: %v", size, err)
	}
	return out, nil
}

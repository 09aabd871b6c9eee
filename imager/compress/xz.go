package compress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/kilnhq/kiln/imager/extent"
)

// A stream is a header, blocks, an index with the sizes of the blocks, and a
// footer with the size of the index. Header and footer are 12 bytes. A block is
// a header, LZMA2 data, zeros up to a multiple of 4, and the CRC-32 of the
// content. All integers are little-endian, or of variable length: 7 bits in each
// byte, the lowest first, and the highest bit set in all bytes but the last.
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzEnds        = 12

	checkCRC32 = 1

	// Flags of a block: both sizes are in its header, and there is one filter.
	xzBothSizes  = 0xc0
	filterLZMA2  = 0x21
	chunkMax     = 1 << 16 // bytes in a chunk of LZMA2 that is not compressed
	chunkFirst   = 1       // and resets the dictionary
	chunkNext    = 2
	chunkEnd     = 0
	maxXZIndexes = 64 << 20
)

// xzWriter writes one stream.
type xzWriter struct {
	w        io.Writer
	level    int
	index    []byte // records
	count    uint64 // of them
	zero     []byte // the last block of zeros
	zeroSize int64  // how many
}

// blockSize is also the size of the dictionary. Larger ones gain a few percent,
// but more of what is compressed already, or a hole, is then in a block with
// something that is worth the effort.
func (x *xzWriter) blockSize() int64 {
	if x.level <= 6 {
		return 1 << 20
	}
	return 2 << 20
}

func (x *xzWriter) maxWorkers() int {
	if x.level <= 6 {
		return 5
	}
	return 3
}

// streamFlags are those of header and footer.
func streamFlags(check byte) []byte { return []byte{0, check} }

func xzHeader(check byte) []byte {
	b := append([]byte(xzMagic), streamFlags(check)...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:]))
}

func xzFooter(check byte, indexSize int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(indexSize/4-1))
	b = append(b, streamFlags(check)...)
	b = append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)), b...)
	return append(b, xzFooterMagic...)
}

// xzIndex returns the index with count records.
func xzIndex(count uint64, records []byte) []byte {
	b := binary.AppendUvarint([]byte{0}, count)
	b = pad4(append(b, records...))
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func pad4(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

func (x *xzWriter) start() error {
	_, err := x.w.Write(xzHeader(checkCRC32))
	return err
}

func (x *xzWriter) packer() (packer, error) {
	trial, err := newZstdEncoder(zstd.SpeedFastest)
	if err != nil {
		return nil, err
	}
	var tried []byte
	return func(dst, block []byte) (packed, error) {
		tried = trial.EncodeAll(block, tried[:0])
		b, err := x.block(dst, block, incompressible(len(tried), len(block)))
		return packed{bytes: b}, err
	}, nil
}

// block appends a block for content.
func (x *xzWriter) block(dst, content []byte, stored bool) ([]byte, error) {
	// The header says how long the data is, and how long it is is known after it:
	// there is room for the longest.
	const room = 32
	at := len(dst)
	out := bytes.NewBuffer(append(dst, make([]byte, room)...))
	if stored {
		storeLZMA2(out, content)
	} else {
		z, err := lzma.Writer2Config{DictCap: int(x.blockSize())}.NewWriter2(out)
		if err != nil {
			return nil, err
		}
		if _, err := z.Write(content); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
	}
	b := out.Bytes()
	size := len(b) - at - room
	header := []byte{0, xzBothSizes}
	header = binary.AppendUvarint(header, uint64(size))
	header = binary.AppendUvarint(header, uint64(len(content)))
	header = append(header, filterLZMA2, 1, byte(2*bits.Len64(uint64(x.blockSize()))-2-24))
	for len(header) < room-4 {
		header = append(header, 0)
	}
	header[0] = room/4 - 1
	header = binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
	copy(b[at:], header)
	b = append(b, make([]byte, -size&3)...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(content)), nil
}

// storeLZMA2 writes content as it is.
func storeLZMA2(out *bytes.Buffer, content []byte) {
	kind := byte(chunkFirst)
	for len(content) > 0 {
		n := min(len(content), chunkMax)
		out.Write([]byte{kind, byte((n - 1) >> 8), byte(n - 1)})
		out.Write(content[:n])
		content, kind = content[n:], chunkNext
	}
	out.WriteByte(chunkEnd)
}

func (x *xzWriter) data(p packed) error {
	// The unpadded size. How much is padding is in the header of the block.
	data, _ := binary.Uvarint(p.bytes[2:])
	size := uint64(len(p.bytes)) - -data&3
	x.index = binary.AppendUvarint(x.index, size)
	x.index = binary.AppendUvarint(x.index, uint64(p.size))
	x.count++
	_, err := x.w.Write(p.bytes)
	return err
}

func (x *xzWriter) zeros(n int64) error {
	for n > 0 {
		size := min(n, x.blockSize())
		if size != x.zeroSize {
			b, err := x.block(nil, make([]byte, size), false)
			if err != nil {
				return err
			}
			x.zero, x.zeroSize = b, size
		}
		if err := x.data(packed{bytes: x.zero, size: size}); err != nil {
			return err
		}
		n -= size
	}
	return nil
}

func (x *xzWriter) finish() error {
	index := xzIndex(x.count, x.index)
	if _, err := x.w.Write(index); err != nil {
		return err
	}
	_, err := x.w.Write(xzFooter(checkCRC32, len(index)))
	return err
}

// openXZ returns the blocks of all streams of a file.
func openXZ(src extent.Source) ([]span, error) {
	var streams [][]span
	count := int64(0)
	end := src.Size()
	for end > 0 {
		footer := make([]byte, xzEnds)
		if end < 2*xzEnds || end%4 != 0 {
			return nil, fmt.Errorf("%w: xz stream of %d bytes", ErrCorrupt, end)
		}
		if err := readFull(src, footer, end-xzEnds); err != nil {
			return nil, err
		}
		if len(streams) > 0 && bytes.Equal(footer[8:], make([]byte, 4)) { // padding between streams
			end -= 4
			continue
		}
		spans, start, err := openXZStream(src, footer, end)
		if err != nil {
			return nil, err
		}
		count += int64(len(spans))
		if err := checkCount(count); err != nil {
			return nil, err
		}
		streams = append(streams, spans)
		end = start
	}
	var spans []span
	for i := range streams {
		spans = append(spans, streams[len(streams)-1-i]...)
	}
	return spans, nil
}

// openXZStream returns the blocks and the start of the stream that ends at end.
func openXZStream(src extent.Source, footer []byte, end int64) ([]span, int64, error) {
	check := footer[9]
	if string(footer[10:]) != xzFooterMagic || footer[8] != 0 || check > 15 || crc32.ChecksumIEEE(footer[4:10]) != binary.LittleEndian.Uint32(footer) {
		return nil, 0, fmt.Errorf("%w: no xz footer at %d", ErrCorrupt, end-xzEnds)
	}
	size := (int64(binary.LittleEndian.Uint32(footer[4:])) + 1) * 4
	if size > maxXZIndexes || size > end-2*xzEnds {
		return nil, 0, fmt.Errorf("%w: xz index of %d bytes before %d", ErrCorrupt, size, end)
	}
	index := make([]byte, size)
	at := end - xzEnds - size
	if err := readFull(src, index, at); err != nil {
		return nil, 0, err
	}
	sum := len(index) - 4
	if index[0] != 0 || crc32.ChecksumIEEE(index[:sum]) != binary.LittleEndian.Uint32(index[sum:]) {
		return nil, 0, fmt.Errorf("%w: xz index at %d has the wrong checksum", ErrCorrupt, at)
	}
	rest := index[1:sum]
	bad := fmt.Errorf("%w: xz index at %d", ErrCorrupt, at)
	number := func() int64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 || v >= 1<<62 {
			rest = nil
			return -1
		}
		rest = rest[n:]
		return int64(v)
	}
	count := number()
	if count < 0 || count > int64(len(rest))/2 {
		return nil, 0, bad
	}
	spans := make([]span, 0, count)
	var blocks int64
	for range count {
		packed, size := number(), number()
		if packed < 5 || packed > at || size < 0 {
			return nil, 0, bad
		}
		padded := extent.Align(packed, 4)
		spans = append(spans, span{at: blocks, packed: padded, size: size, check: check, padding: byte(padded - packed)})
		blocks += padded
		if blocks > at-xzEnds {
			return nil, 0, bad
		}
	}
	start := at - blocks - xzEnds
	header := make([]byte, xzEnds)
	if err := readFull(src, header, start); err != nil {
		return nil, 0, err
	}
	if !bytes.Equal(header, xzHeader(check)) {
		return nil, 0, fmt.Errorf("%w: no xz header at %d", ErrCorrupt, start)
	}
	for i := range spans {
		spans[i].at += start + xzEnds
	}
	return spans, start, nil
}

// unpackXZ decompresses a block, as the only one of a stream.
func unpackXZ(block []byte, s span) ([]byte, error) {
	records := binary.AppendUvarint(nil, uint64(len(block))-uint64(s.padding))
	records = binary.AppendUvarint(records, uint64(s.size))
	index := xzIndex(1, records)
	stream := io.MultiReader(bytes.NewReader(xzHeader(s.check)), bytes.NewReader(block), bytes.NewReader(index),
		bytes.NewReader(xzFooter(s.check, len(index))))
	r, err := xz.NewReader(stream, xz.DefaultDictMax)
	if err != nil {
		return nil, err
	}
	out := make([]byte, s.size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("more than %d bytes: %v", s.size, err)
	}
	return out, nil
}

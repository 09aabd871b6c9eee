package vhd

import (
	"bytes"
	"encoding/binary"
	"io"
	"sort"
	"time"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
)

// Options are what an image says besides the disk.
type Options struct {
	// Fixed makes the image as large as the disk, as Azure wants it. It is
	// dynamic otherwise.
	Fixed bool
	// ID is the unique identifier of the image.
	ID uuid.UUID
	// Time is when the image was made, in whole seconds. The format begins
	// with the year 2000 and ends in 2136; a time outside is stored as the
	// nearest inside.
	Time time.Time
}

// Map returns the image of a disk, whose size must be a multiple of 512 and at
// most MaxSize. Nothing is read.
//
// In a dynamic image a block that no extent of the disk touches is not
// allocated, and a sector that none touches is marked as never written. The
// data of every block begins at a multiple of 4096 bytes, so that it is aligned
// on the disk where the image is kept.
func Map(disk *extent.Map, o Options) (*extent.Map, error) {
	if err := checkSize(disk.Size()); err != nil {
		return nil, err
	}
	if o.Fixed {
		return fixed(disk, footer(disk.Size(), typeFixed, o.ID, o.Time))
	}
	return dynamic(disk, footer(disk.Size(), typeDynamic, o.ID, o.Time))
}

func fixed(disk *extent.Map, footer []byte) (*extent.Map, error) {
	image := extent.New(disk.Size() + footerSize)
	if err := image.Put(0, disk); err != nil {
		return nil, err
	}
	return image, image.PutBytes(disk.Size(), footer)
}

const (
	bitmapLen = blockSize / sector / 8 // one sector
	align     = 4096                   // of the data of blocks
)

func dynamic(disk *extent.Map, footer []byte) (*extent.Map, error) {
	const tableAt = footerSize + headerSize
	blocks := (disk.Size() + blockSize - 1) / blockSize
	table := bytes.Repeat([]byte{0xff}, int(extent.Align(blocks*entrySize, sector)))

	// Where the data of each block is that there is; its bitmap is before it.
	var at []int64
	next := tableAt + int64(len(table))
	last := int64(-1)
	for _, e := range disk.Extents() {
		for b := max(last+1, e.Offset/blockSize); b <= (e.End()-1)/blockSize; b++ {
			dataAt := extent.Align(next+bitmapLen, align)
			binary.BigEndian.PutUint32(table[b*entrySize:], uint32((dataAt-bitmapLen)/sector))
			at = append(at, dataAt)
			next, last = dataAt+blockSize, b
		}
	}

	image := extent.New(next + footerSize)
	for _, part := range []struct {
		at      int64
		content []byte
	}{{0, footer}, {footerSize, header(blocks)}, {tableAt, table}} {
		if err := image.PutBytes(part.at, part.content); err != nil {
			return nil, err
		}
	}
	i := -1
	last = -1
	for _, e := range disk.Extents() {
		for off := e.Offset; off < e.End(); {
			b := off / blockSize
			end := min(e.End(), (b+1)*blockSize)
			if b != last {
				i, last = i+1, b
				if err := image.Put(at[i]-bitmapLen, bitmap{disk, b * blockSize}); err != nil {
					return nil, err
				}
			}
			piece, err := extent.Section(e.Source, e.At+off-e.Offset, end-off)
			if err == nil {
				err = image.Put(at[i]+off%blockSize, piece)
			}
			if err != nil {
				return nil, err
			}
			off = end
		}
	}
	return image, image.PutBytes(next, footer)
}

// bitmap is a Source: which sectors of the block at start extents of the disk
// touch, the first in the highest bit of the first byte.
type bitmap struct {
	disk  *extent.Map
	start int64
}

func (b bitmap) Size() int64 { return bitmapLen }

func (b bitmap) ReadAt(p []byte, off int64) (int, error) {
	var bits [bitmapLen]byte
	list := b.disk.Extents()
	first := sort.Search(len(list), func(i int) bool { return list[i].End() > b.start })
	for _, e := range list[first:] {
		if e.Offset >= b.start+blockSize {
			break
		}
		from := max(0, e.Offset-b.start) / sector
		to := (min(blockSize, e.End()-b.start) + sector - 1) / sector
		for s := from; s < to; {
			if s%8 == 0 && to-s >= 8 {
				bits[s/8] = 0xff
				s += 8
				continue
			}
			bits[s/8] |= 0x80 >> (s % 8)
			s++
		}
	}
	if off < 0 || off >= bitmapLen {
		return 0, io.EOF
	}
	n := copy(p, bits[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

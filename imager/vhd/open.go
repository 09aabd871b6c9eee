package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	// maxExtents bounds the memory for an image with holes everywhere.
	maxExtents = 1 << 22
	// Sizes, in bytes, of the smallest and largest blocks that are read.
	minBlock = 8 * sector // one byte of bitmap
	maxBlock = 256 << 20
)

// Open returns the disk in a fixed or dynamic image. Blocks of a dynamic image
// that are not allocated, and sectors that were never written, are holes.
//
// The size of the disk is the one in bytes in the footer; that of the geometry
// if Virtual PC or QEMU has made the image, as QEMU reads it too. The copy of
// the footer at the beginning of a dynamic image serves if the one at the end is
// damaged.
//
// A differencing image is refused with ErrUnsupported; one that contradicts
// itself, fails a checksum or has been cut off with ErrCorrupt.
func Open(src extent.Source) (*extent.Map, error) {
	f, end, err := findFooter(src)
	if err != nil {
		return nil, err
	}
	switch f.kind {
	case typeFixed:
		if f.size > end {
			return nil, fmt.Errorf("%w: a disk of %d bytes, but the file has %d before the footer", ErrCorrupt, f.size, end)
		}
		disk := extent.New(f.size)
		content, err := extent.Section(src, 0, f.size)
		if err != nil {
			return nil, err
		}
		return disk, disk.Put(0, content)
	case typeDynamic:
		return openDynamic(src, f, end)
	case typeDifferencing:
		return nil, fmt.Errorf("%w: it is a differencing disk, which only has what differs from its parent; merge them with Merge-VHD or vhd-util coalesce",
			ErrUnsupported)
	}
	return nil, fmt.Errorf("%w: disk type %d, want 2 (fixed), 3 (dynamic) or 4 (differencing)", ErrCorrupt, f.kind)
}

// foot is what a footer says.
type foot struct {
	kind   diskType
	size   int64 // of the disk
	header int64 // offset of the dynamic header
}

// findFooter returns the footer and the end of what may lie before it.
func findFooter(src extent.Source) (foot, int64, error) {
	b := make([]byte, footerSize)
	end := src.Size() - footerSize
	if end < 0 {
		return foot{}, 0, fmt.Errorf("%w: a file of %d bytes has no room for a footer", ErrCorrupt, src.Size())
	}
	if err := readAt(src, b, end); err != nil {
		return foot{}, 0, err
	}
	f, err := parseFooter(b)
	if err == nil {
		return f, end, nil
	}
	if err := readAt(src, b, 0); err != nil {
		return foot{}, 0, err
	}
	if f, err := parseFooter(b); err == nil && f.kind != typeFixed {
		return f, src.Size(), nil
	}
	return foot{}, 0, err
}

func parseFooter(b []byte) (foot, error) {
	be := binary.BigEndian
	if string(b[:8]) != footerCookie {
		return foot{}, fmt.Errorf("%w: no footer (%q) in the last 512 bytes", ErrCorrupt, footerCookie)
	}
	if got, want := be.Uint32(b[footerChecksum:]), checksum(b, footerChecksum); got != want {
		return foot{}, fmt.Errorf("%w: checksum of the footer is %#08x, want %#08x", ErrCorrupt, got, want)
	}
	if v := be.Uint32(b[12:]); v>>16 != version>>16 {
		return foot{}, fmt.Errorf("%w: version %d.%d, want 1.0", ErrUnsupported, v>>16, v&0xffff)
	}
	f := foot{
		kind:   diskType(be.Uint32(b[60:])),
		size:   int64(be.Uint64(b[48:])),
		header: int64(be.Uint64(b[16:])),
	}
	g := geometry{be.Uint16(b[56:]), b[58], b[59]}
	if name := string(b[footerCreator : footerCreator+4]); (name == "vpc " || name == "qemu") && g != maxGeometry {
		f.size = g.bytes()
	}
	if f.size <= 0 || f.size > MaxSize || f.size%sector != 0 {
		return foot{}, fmt.Errorf("%w: a disk of %d bytes, want whole sectors and at most 2040 GiB", ErrCorrupt, f.size)
	}
	return f, nil
}

// table is a block allocation table and what its header says of it.
type table struct {
	foot
	at    int64
	count int64 // entries, of which the disk may need less
	block int64 // bytes of data in a block
}

func readHeader(src extent.Source, f foot, end int64) (table, error) {
	b := make([]byte, headerSize)
	if f.header < 0 || f.header > end-headerSize || f.header%sector != 0 {
		return table{}, fmt.Errorf("%w: dynamic header at %d in a file of %d bytes", ErrCorrupt, f.header, end)
	}
	if err := readAt(src, b, f.header); err != nil {
		return table{}, err
	}
	be := binary.BigEndian
	if string(b[:8]) != headerCookie {
		return table{}, fmt.Errorf("%w: no dynamic header (%q) at %d", ErrCorrupt, headerCookie, f.header)
	}
	if got, want := be.Uint32(b[headerChecksum:]), checksum(b, headerChecksum); got != want {
		return table{}, fmt.Errorf("%w: checksum of the dynamic header is %#08x, want %#08x", ErrCorrupt, got, want)
	}
	t := table{
		foot:  f,
		at:    int64(be.Uint64(b[16:])),
		count: int64(be.Uint32(b[28:])),
		block: int64(be.Uint32(b[32:])),
	}
	if v := be.Uint32(b[24:]); v>>16 != version>>16 {
		return table{}, fmt.Errorf("%w: dynamic header of version %d.%d, want 1.0", ErrUnsupported, v>>16, v&0xffff)
	}
	if t.block < minBlock || t.block > maxBlock || bits.OnesCount64(uint64(t.block)) != 1 {
		return table{}, fmt.Errorf("%w: blocks of %d bytes, want a power of two from %d to %d", ErrCorrupt, t.block, minBlock, maxBlock)
	}
	if need := t.blocks(); t.count < need {
		return table{}, fmt.Errorf("%w: a table of %d blocks, a disk of %d bytes needs %d", ErrCorrupt, t.count, t.size, need)
	}
	if t.at < 0 || t.at > end-t.blocks()*entrySize || t.at%sector != 0 {
		return table{}, fmt.Errorf("%w: a table of %d blocks at %d in a file of %d bytes", ErrCorrupt, t.count, t.at, end)
	}
	return t, nil
}

// blocks is the number of blocks of the disk.
func (t table) blocks() int64 { return (t.size + t.block - 1) / t.block }

// dynamicReader builds the map of the disk in a dynamic image.
type dynamicReader struct {
	table
	src    extent.Source
	end    int64 // of the blocks, in the file
	disk   *extent.Map
	bitmap []byte
	made   int      // extents
	used   []uint32 // sectors of the file that blocks begin at
}

func openDynamic(src extent.Source, f foot, end int64) (*extent.Map, error) {
	t, err := readHeader(src, f, end)
	if err != nil {
		return nil, err
	}
	r := &dynamicReader{table: t, src: src, end: end, disk: extent.New(t.size), bitmap: make([]byte, bitmapSize(t.block))}
	const step = 64 << 10
	entries := make([]byte, step)
	for first := int64(0); first < t.blocks(); first += step / entrySize {
		part := entries[:min(step, (t.blocks()-first)*entrySize)]
		if err := readAt(src, part, t.at+first*entrySize); err != nil {
			return nil, err
		}
		for i := range int64(len(part) / entrySize) {
			entry := binary.BigEndian.Uint32(part[i*entrySize:])
			if entry == notAllocated {
				continue
			}
			if err := r.putBlock(first+i, entry); err != nil {
				return nil, err
			}
		}
	}
	return r.disk, r.checkOverlap()
}

// putBlock puts what was written of block n, which begins at the given sector of
// the file, into the map.
func (r *dynamicReader) putBlock(n int64, at uint32) error {
	start := int64(at) * sector
	data := start + int64(len(r.bitmap))
	size := min(r.block, r.size-n*r.block)
	if data > r.end-size {
		return fmt.Errorf("%w: block %d is at %d, but the file ends at %d", ErrCorrupt, n, start, r.end)
	}
	for _, other := range []struct {
		name    string
		at, end int64
	}{
		{"footer", 0, footerSize},
		{"dynamic header", r.header, r.header + headerSize},
		{"table", r.at, r.at + r.count*entrySize},
	} {
		if start < other.end && data+size > other.at {
			return fmt.Errorf("%w: block %d is at %d, in the %s", ErrCorrupt, n, start, other.name)
		}
	}
	if r.used = append(r.used, at); len(r.used) > maxExtents {
		return tooMany()
	}
	if err := readAt(r.src, r.bitmap, start); err != nil {
		return err
	}
	sectors := int(size / sector)
	for s := 0; s < sectors; {
		from := s + r.run(s, sectors, 0)
		s = from + r.run(from, sectors, 0xff)
		if s == from {
			break
		}
		if r.made++; r.made > maxExtents {
			return tooMany()
		}
		content, err := extent.Section(r.src, data+int64(from)*sector, int64(s-from)*sector)
		if err == nil {
			err = r.disk.Put(n*r.block+int64(from)*sector, content)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run is the number of bits from the one given, before end, that are all as in
// the byte same: 0 or 0xff.
func (r *dynamicReader) run(from, end int, same byte) int {
	s := from
	for s < end {
		b := r.bitmap[s/8]
		if s%8 == 0 && b == same {
			s += 8
			continue
		}
		if (b^same)&(0x80>>(s%8)) != 0 {
			break
		}
		s++
	}
	return min(s, end) - from
}

// checkOverlap makes sure that no two blocks share a part of the file.
func (r *dynamicReader) checkOverlap() error {
	slices.Sort(r.used)
	for i := 1; i < len(r.used); i++ {
		a, b := int64(r.used[i-1])*sector, int64(r.used[i])*sector
		if b-a < int64(len(r.bitmap))+r.block {
			return fmt.Errorf("%w: blocks at %d and %d overlap", ErrCorrupt, a, b)
		}
	}
	return nil
}

func tooMany() error {
	return fmt.Errorf("%w: more than %d fragments; defragment it with qemu-img convert", ErrUnsupported, maxExtents)
}

// readAt reads len(p) bytes.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%d bytes at %d: %w", len(p), off, err)
}

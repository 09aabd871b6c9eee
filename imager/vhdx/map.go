package vhdx

import (
	"encoding/binary"
	"io"
	"sort"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
)

// physicalSector is the physical sector size, in bytes, that the guest is told,
// as by Hyper-V: it had better write 4 KiB at a time.
const physicalSector = 4096

// Options are what an image says besides the disk.
type Options struct {
	// Fixed allocates every block, so that the image is as large as the disk.
	// It is dynamic otherwise.
	Fixed bool
	// BlockSize is a power of two from 1 MiB to 256 MiB, in bytes, or 0 for
	// DefaultBlockSize.
	BlockSize int64
	// SectorSize is the logical sector size of the disk in bytes: 512, which 0
	// means too, or 4096.
	SectorSize int64

	// FileWriteID stands for the bytes of the image, DataWriteID for those of
	// the disk: whoever changes them puts another one there.
	FileWriteID, DataWriteID uuid.UUID
	// DiskID is what the guest sees as the identifier of the disk (SCSI page
	// 0x83).
	DiskID uuid.UUID
}

// Map returns the image of a disk, whose size must be a multiple of the sector
// size and at most MaxSize.
//
// Nothing is read. In a dynamic image a block that no extent of the disk touches
// is not allocated; it is marked as zero, because one that is merely not present
// may have any content. The BAT is computed when the map is read and takes no
// memory, whatever the size of the disk.
func Map(disk *extent.Map, o Options) (*extent.Map, error) {
	s := shape{disk.Size(), o.BlockSize, o.SectorSize}
	if s.block == 0 {
		s.block = DefaultBlockSize
	}
	if s.sector == 0 {
		s.sector = 512
	}
	if err := s.check(ErrInvalid); err != nil {
		return nil, err
	}
	t := &bat{shape: s, runs: []run{{0, s.blocks(), 0}}}
	if !o.Fixed {
		t.runs = s.runs(disk)
	}
	batSize := extent.Align(t.Size(), mib)
	t.payload = batAt + batSize

	var blocks int64
	if n := len(t.runs); n > 0 {
		last := t.runs[n-1]
		blocks = last.before + last.end - last.first
	}
	image := extent.New(t.payload + blocks*s.block)
	regions := regionTable(batSize)
	table, items := metadata(s, o)
	for _, part := range []struct {
		at  int64
		src extent.Source
	}{
		{0, extent.Bytes(identifier())},
		{headersAt[0], extent.Bytes(header(1, o))},
		{headersAt[1], extent.Bytes(header(2, o))},
		{regionTablesAt[0], extent.Bytes(regions)},
		{regionTablesAt[1], extent.Bytes(regions)},
		{metadataAt, extent.Bytes(table)},
		{metadataAt + itemsAt, extent.Bytes(items)},
		{batAt, t},
	} {
		if err := image.Put(part.at, part.src); err != nil {
			return nil, err
		}
	}
	// An extent lies in one run: the run is what extents touch.
	i := 0
	for _, e := range disk.Extents() {
		for t.runs[i].end*s.block <= e.Offset {
			i++
		}
		content, err := extent.Section(e.Source, e.At, e.Length)
		if err == nil {
			err = image.Put(t.payload+(t.runs[i].before-t.runs[i].first)*s.block+e.Offset, content)
		}
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// run is a run of blocks of the disk that are allocated.
type run struct {
	first, end int64
	before     int64 // number of blocks in the runs before this one
}

// runs returns the blocks that extents of the disk touch.
func (s shape) runs(disk *extent.Map) []run {
	var list []run
	var n int64
	for _, e := range disk.Extents() {
		first, end := e.Offset/s.block, (e.End()+s.block-1)/s.block
		if i := len(list) - 1; i >= 0 && first <= list[i].end {
			n += max(0, end-list[i].end)
			list[i].end = max(list[i].end, end)
			continue
		}
		list = append(list, run{first, end, n})
		n += end - first
	}
	return list
}

// bat is a Source: the block allocation table of a disk whose allocated blocks
// lie in the image in the order that they have on the disk.
type bat struct {
	shape
	runs    []run
	payload int64 // offset of the first block in the image
}

func (t *bat) Size() int64 { return t.entries() * batEntrySize }

func (t *bat) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= t.Size() {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > t.Size()-off {
		p, eof = p[:t.Size()-off], io.EOF
	}
	entry := off / batEntrySize
	first, _ := t.blockOf(entry)
	r := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].end > first })
	var b [batEntrySize]byte
	for n := 0; n < len(p); entry++ {
		var v uint64
		if block, ok := t.blockOf(entry); ok {
			for r < len(t.runs) && t.runs[r].end <= block {
				r++
			}
			v = uint64(zero)
			if r < len(t.runs) && t.runs[r].first <= block {
				v = uint64(t.payload+(t.runs[r].before+block-t.runs[r].first)*t.block) | uint64(fullyPresent)
			}
		}
		binary.LittleEndian.PutUint64(b[:], v)
		n += copy(p[n:], b[(off+int64(n))%batEntrySize:])
	}
	return len(p), eof
}

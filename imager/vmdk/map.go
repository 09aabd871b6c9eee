package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sort"

	"github.com/kilnhq/kiln/imager/extent"
)

// Values of createType.
const (
	monolithicSparse = "monolithicSparse"
	streamOptimized  = "streamOptimized"
)

// Map returns the monolithicSparse image of a disk.
//
// Nothing is read. A grain that no extent of the disk touches is not allocated,
// so that holes take no space; zeros that an extent covers do. The grain tables
// are computed when the map is read. The size of the disk must be a multiple of
// 512, and its data must fit into a file of 2 TiB.
func Map(disk *extent.Map, o Options) (*extent.Map, error) {
	h, descriptor, err := o.layout(disk, monolithicSparse)
	if err != nil {
		return nil, err
	}
	count := tableCount(h.capacity)
	directory := extent.Align(count*entrySize, sector) / sector
	h.flags |= flagRedundant
	h.redundant = dataStart
	h.directory = h.redundant + uint64(directory+count*tableSectors)
	h.overhead = uint64(extent.Align(int64(h.directory)+directory+count*tableSectors, grainSectors))

	t := &tables{runs: runs(disk), count: count, overhead: int64(h.overhead)}
	var grains int64
	if n := len(t.runs); n > 0 {
		last := t.runs[n-1]
		grains = last.before + last.end - last.first
	}
	end := int64(h.overhead) + grains*grainSectors
	if end > math.MaxUint32+1 {
		return nil, fmt.Errorf("%w: %d GiB of data; a sparse file ends at 2 TiB", ErrInvalid, grains*grainSize>>30)
	}

	image := extent.New(end * sector)
	if err := image.PutBytes(0, h.marshal()); err != nil {
		return nil, err
	}
	if err := image.PutBytes(sector, descriptor); err != nil {
		return nil, err
	}
	for _, at := range []uint64{h.redundant, h.directory} {
		if err := t.put(image, int64(at), directory); err != nil {
			return nil, err
		}
	}
	for _, r := range t.runs {
		start := r.first * grainSize
		content, err := extent.Section(disk, start, min(r.end*grainSize, disk.Size())-start)
		if err == nil {
			err = image.Put((int64(h.overhead)+r.before*grainSectors)*sector, content)
		}
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// tables is a Source: all grain tables, one after the other.
type tables struct {
	runs     []run
	count    int64
	overhead int64 // sector of the first grain
}

// put places the grain directory at sector at and the tables behind it. All
// tables have their place; those of holes are holes.
func (t *tables) put(image *extent.Map, at, directory int64) error {
	first := at + directory
	var gd []byte
	for i := range t.count {
		gd = binary.LittleEndian.AppendUint32(gd, uint32(first+i*tableSectors))
	}
	if err := image.PutBytes(at*sector, gd); err != nil {
		return err
	}
	const tableSize = tableSectors * sector
	done := int64(0) // tables before are in the image
	for _, r := range t.runs {
		from, to := max(done, r.first/perTable), (r.end+perTable-1)/perTable
		if from >= to {
			continue
		}
		section, err := extent.Section(t, from*tableSize, (to-from)*tableSize)
		if err == nil {
			err = image.Put(first*sector+from*tableSize, section)
		}
		if err != nil {
			return err
		}
		done = to
	}
	return nil
}

func (t *tables) Size() int64 { return t.count * perTable * entrySize }

func (t *tables) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= t.Size() {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > t.Size()-off {
		p, eof = p[:t.Size()-off], io.EOF
	}
	for n := 0; n < len(p); {
		pos := off + int64(n)
		var entry [entrySize]byte
		binary.LittleEndian.PutUint32(entry[:], t.entry(pos/entrySize))
		n += copy(p[n:], entry[pos%entrySize:])
	}
	return len(p), eof
}

// entry is the position of a grain.
func (t *tables) entry(grain int64) uint32 {
	i := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].end > grain })
	if i == len(t.runs) || t.runs[i].first > grain {
		return 0
	}
	r := t.runs[i]
	return uint32(t.overhead + (r.before+grain-r.first)*grainSectors)
}

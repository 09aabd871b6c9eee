package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
)

// Bounds of what is read.
const (
	maxGrain   = 8 << 20 / sector
	maxTables  = 1 << 22
	maxExtents = 1 << 22
	maxSectors = 1 << 53
	maxPending = 1 << 14

	// direct is the number of bytes that must lie in a row in the file to become
	// an extent of the file: worth copying without looking at it.
	direct = 1 << 20
)

// Open returns the disk in an image that is one file: monolithicSparse, or
// streamOptimized with or without a footer. Grains that are not allocated or
// are marked as zeros are holes; compressed ones are decompressed when they are
// read.
//
// An image that has a parent, is encrypted, was not closed, or is of another kind
// (ESX redo logs, SE sparse) is refused with ErrUnsupported, and so is a
// descriptor whose data is in other files: those need OpenFiles. One that
// contradicts itself or has been cut off is refused with ErrCorrupt. The second
// grain directory is not looked at.
func Open(src extent.Source) (*extent.Map, error) { return OpenFiles(src, nil) }

// OpenFiles is Open for images of more than one file (monolithicFlat, vmfs,
// twoGbMaxExtentSparse, twoGbMaxExtentFlat): src is the descriptor, and files
// returns the file of the given name beside it. The names come from the image;
// those with a slash are refused before files sees them.
func OpenFiles(src extent.Source, files func(name string) (extent.Source, error)) (*extent.Map, error) {
	start := make([]byte, min(sector, src.Size()))
	if err := readAt(src, start, 0); err != nil {
		return nil, err
	}
	if len(start) == sector && binary.LittleEndian.Uint32(start) == magic {
		return openSparse(src, start, true)
	}
	switch {
	case bytes.HasPrefix(start, []byte("COWD")):
		return nil, fmt.Errorf("%w: an ESX redo log (COWD)", ErrUnsupported)
	case bytes.HasPrefix(start, []byte("\xbe\xba\xfe\xca\x00\x00\x00\x00")):
		return nil, fmt.Errorf("%w: a space-efficient (SE sparse) snapshot", ErrUnsupported)
	case bytes.HasPrefix(start, []byte("vmdk")):
		return nil, fmt.Errorf("%w: whoever wrote it did not come to the end", ErrCorrupt)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(start, "# \t"), []byte("Disk DescriptorFile")) {
		return nil, fmt.Errorf("%w: begins neither with a sparse header nor with a descriptor", ErrCorrupt)
	}
	if src.Size() > maxDescriptor {
		return nil, fmt.Errorf("%w: a descriptor of %d bytes, want at most %d", ErrCorrupt, src.Size(), maxDescriptor)
	}
	text := make([]byte, src.Size())
	if err := readAt(src, text, 0); err != nil {
		return nil, err
	}
	d, err := parseDescriptor(text)
	if err != nil {
		return nil, err
	}
	return d.open(files)
}

// open puts the extents of a descriptor one after the other.
func (d *descriptor) open(files func(name string) (extent.Source, error)) (*extent.Map, error) {
	var size uint64
	for _, row := range d.extents {
		if size += row.sectors; size > maxSectors {
			return nil, fmt.Errorf("%w: more than %d sectors", ErrCorrupt, uint64(maxSectors))
		}
		if row.kind == "ZERO" {
			continue
		}
		if row.kind != "FLAT" && row.kind != "VMFS" && row.kind != "SPARSE" {
			return nil, fmt.Errorf("%w: an extent of type %.40q", ErrUnsupported, row.kind)
		}
		if strings.ContainsAny(row.name, "/\\\x00") || row.name == "." || row.name == ".." {
			return nil, fmt.Errorf("%w: an extent in another directory (%.80q)", ErrUnsupported, row.name)
		}
		if files == nil {
			return nil, fmt.Errorf("%w: a descriptor only (%s); its data is in %.80q", ErrUnsupported, d.createType, row.name)
		}
	}
	disk := extent.New(int64(size) * sector)
	var at int64
	for _, row := range d.extents {
		n := int64(row.sectors) * sector
		if row.kind != "ZERO" {
			src, err := row.open(files)
			if err == nil {
				err = disk.Put(at, src)
			}
			if err != nil {
				return nil, fmt.Errorf("%.80q: %w", row.name, err)
			}
		}
		at += n
	}
	return disk, nil
}

func (row extentRow) open(files func(name string) (extent.Source, error)) (extent.Source, error) {
	src, err := files(row.name)
	if err != nil {
		return nil, err
	}
	if row.kind != "SPARSE" {
		section, err := extent.Section(src, int64(row.offset)*sector, int64(row.sectors)*sector)
		if err != nil {
			return nil, fmt.Errorf("%w: has %d bytes, want %d sectors at %d", ErrCorrupt, src.Size(), row.sectors, row.offset)
		}
		return section, nil
	}
	start := make([]byte, sector)
	if err := readAt(src, start, 0); err != nil || binary.LittleEndian.Uint32(start) != magic {
		return nil, fmt.Errorf("%w: does not begin with a sparse header", ErrCorrupt)
	}
	part, err := openSparse(src, start, false)
	if err == nil && part.Size() != int64(row.sectors)*sector {
		err = fmt.Errorf("%w: an extent of %d sectors, the descriptor has %d", ErrCorrupt, part.Size()/sector, row.sectors)
	}
	return part, err
}

// openSparse opens a sparse extent, of which start is the first sector. If it is
// whole, it is all of a disk and has the descriptor.
func openSparse(src extent.Source, start []byte, whole bool) (*extent.Map, error) {
	var h header
	h.unmarshal(start)
	if err := h.check(); err != nil {
		return nil, err
	}
	if whole {
		if err := h.checkDescriptor(src); err != nil {
			return nil, err
		}
	}
	if h.directory == gdAtEnd {
		if err := h.footer(src); err != nil {
			return nil, err
		}
	}
	grain := int64(h.grain) * sector
	size := int64(h.capacity) * sector
	count := (size + grain*perTable - 1) / (grain * perTable)
	if count > maxTables {
		return nil, fmt.Errorf("%w: %d grain tables, at most %d are read", ErrUnsupported, count, maxTables)
	}
	if h.directory > maxSectors || int64(h.directory)*sector > src.Size()-count*entrySize {
		return nil, fmt.Errorf("%w: grain directory of %d entries at sector %d in a file of %d bytes", ErrCorrupt, count, h.directory, src.Size())
	}
	gd := make([]byte, count*entrySize)
	if err := readAt(src, gd, int64(h.directory)*sector); err != nil {
		return nil, err
	}
	r := &reader{sparse: &sparse{src: src, grain: grain, packed: h.flags&flagCompressed != 0}, header: h,
		disk: extent.New(size), seen: make(map[int64]bool)}
	r.sparse.cache.limit = max(2, int(cacheSize/grain))
	return r.disk, r.tables(gd)
}

// check refuses headers that make no sense or want too much.
func (h *header) check() error {
	switch {
	case h.version < 1 || h.version > 3:
		return fmt.Errorf("%w: version %d, want 1 to 3", ErrUnsupported, h.version)
	case h.flags&flagNewlines != 0 && string(h.newlines[:]) != endOfLines:
		return fmt.Errorf("%w: the bytes %q are %q: it was transferred as text", ErrCorrupt, endOfLines, h.newlines[:])
	case h.flags>>16&^((flagCompressed|flagMarkers)>>16) != 0:
		return fmt.Errorf("%w: unknown flags %#x", ErrUnsupported, h.flags)
	case h.flags&flagCompressed != 0 && h.flags&flagMarkers == 0:
		return fmt.Errorf("%w: compressed grains without markers", ErrUnsupported)
	case h.flags&flagCompressed != 0 && h.method != compression:
		return fmt.Errorf("%w: compression %d, want 1 (deflate)", ErrUnsupported, h.method)
	case h.unclean != 0:
		return fmt.Errorf("%w: it was not closed; let the virtual machine shut down", ErrUnsupported)
	case h.grain < 8 || h.grain > maxGrain || h.grain&(h.grain-1) != 0:
		return fmt.Errorf("%w: grains of %d sectors, want a power of two from 8 to %d", ErrCorrupt, h.grain, maxGrain)
	case h.perTable != perTable:
		return fmt.Errorf("%w: grain tables of %d entries, want 512", ErrUnsupported, h.perTable)
	case h.capacity > maxSectors:
		return fmt.Errorf("%w: a disk of %d sectors", ErrCorrupt, h.capacity)
	}
	return nil
}

// checkDescriptor reads the descriptor inside the extent.
func (h *header) checkDescriptor(src extent.Source) error {
	if h.descriptor == 0 {
		return fmt.Errorf("%w: an extent without a descriptor; open the descriptor it belongs to", ErrUnsupported)
	}
	if h.descSize > maxDescriptor/sector || h.descriptor > maxSectors || int64(h.descriptor+h.descSize)*sector > src.Size() {
		return fmt.Errorf("%w: descriptor of %d sectors at sector %d in a file of %d bytes", ErrCorrupt, h.descSize, h.descriptor, src.Size())
	}
	text := make([]byte, h.descSize*sector)
	if err := readAt(src, text, int64(h.descriptor)*sector); err != nil {
		return err
	}
	d, err := parseDescriptor(text)
	if err != nil {
		return err
	}
	if d.createType != monolithicSparse && d.createType != streamOptimized {
		return fmt.Errorf("%w: a descriptor of %.40q inside an extent", ErrUnsupported, d.createType)
	}
	if n := len(d.extents); n != 1 || d.extents[0].kind != "SPARSE" {
		return fmt.Errorf("%w: the descriptor has %d extents, want this file as a sparse one", ErrUnsupported, n)
	}
	return nil
}

// footer replaces the header by the footer, which is before the last marker.
func (h *header) footer(src extent.Source) error {
	const length = 3 * sector
	if src.Size() < sector+length {
		return fmt.Errorf("%w: it ends before the footer", ErrCorrupt)
	}
	b := make([]byte, length)
	if err := readAt(src, b, src.Size()-length); err != nil {
		return err
	}
	le := binary.LittleEndian
	marker, foot, end := b[:sector], b[sector:2*sector], b[2*sector:]
	if le.Uint32(marker[8:]) != 0 || le.Uint32(marker[12:]) != markerFooter || le.Uint32(foot) != magic || !zero(end[:16]) {
		return fmt.Errorf("%w: it does not end with a footer; it was cut off, or not written to the end", ErrCorrupt)
	}
	old := *h
	h.unmarshal(foot)
	if h.directory == gdAtEnd || h.capacity != old.capacity || h.grain != old.grain || h.perTable != old.perTable || h.flags != old.flags ||
		h.method != old.method {
		return fmt.Errorf("%w: header and footer differ", ErrCorrupt)
	}
	return h.check()
}

// reader builds the map of the disk. It collects grains that are not holes until
// there is a hole, or enough that lie in a row in the file.
type reader struct {
	*sparse
	header header
	disk   *extent.Map
	seen   map[int64]bool // tables
	made   int            // number of extents

	first   int64    // grain of the disk that is first in pending
	pending []uint32 // entries of the grains that are not in the map yet
	inRow   int      // how many of the last of them lie in a row in the file
}

// tables reads the grain tables of a directory, those that lie in a row at once.
func (r *reader) tables(gd []byte) error {
	const most = direct / (perTable * entrySize)
	at := func(i int) int64 { return int64(binary.LittleEndian.Uint32(gd[i*entrySize:])) }
	count := len(gd) / entrySize
	for i := 0; i < count; {
		n := 1
		if at(i) == 0 {
			if err := r.flush(); err != nil {
				return err
			}
			i++
			continue
		}
		for n < most && i+n < count && at(i+n) == at(i)+int64(n)*tableSectors {
			n++
		}
		if err := r.row(int64(i), at(i)*sector, n); err != nil {
			return err
		}
		i += n
	}
	return r.flush()
}

// row reads n grain tables that are at an offset.
func (r *reader) row(first, at int64, n int) error {
	grains := (r.disk.Size() + r.grain - 1) / r.grain
	entries := make([]byte, min(int64(n)*perTable, grains-first*perTable)*entrySize)
	if at > r.src.Size()-int64(len(entries)) {
		return fmt.Errorf("%w: grain table %d at %d in a file of %d bytes", ErrCorrupt, first, at, r.src.Size())
	}
	for i := range int64(n) {
		table := at + i*tableSectors*sector
		if r.seen[table] {
			return fmt.Errorf("%w: grain table at %d used twice", ErrCorrupt, table)
		}
		r.seen[table] = true
	}
	if err := readAt(r.src, entries, at); err != nil {
		return err
	}
	for i := range int64(len(entries) / entrySize) {
		if err := r.entry(first*perTable+i, binary.LittleEndian.Uint32(entries[i*entrySize:])); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) entry(grain int64, entry uint32) error {
	if entry == 0 || entry == 1 && r.header.flags&flagZeroGrains != 0 {
		return r.flush()
	}
	at, need := int64(entry)*sector, int64(sector) // a marker
	if !r.packed {
		need = min(r.grain, r.disk.Size()-grain*r.grain)
	}
	if at > r.src.Size()-need {
		return fmt.Errorf("%w: grain %d is at %d, but the file ends at %d", ErrCorrupt, grain, at, r.src.Size())
	}
	enough := int(max(1, direct/r.grain))
	n := len(r.pending)
	if !r.packed && r.inRow > 0 && r.pending[n-1]+uint32(r.grain/sector) == entry {
		r.inRow++
	} else {
		if r.inRow >= enough {
			if err := r.flush(); err != nil {
				return err
			}
		}
		if r.inRow = 1; r.packed {
			r.inRow = 0
		}
	}
	if len(r.pending) == 0 {
		r.first = grain
	}
	r.pending = append(r.pending, entry)
	if r.inRow == enough || r.inRow == 0 && len(r.pending) == maxPending {
		// What came before is an extent of its own.
		return r.put(len(r.pending) - r.inRow)
	}
	return nil
}

// flush puts the pending grains into the map.
func (r *reader) flush() error {
	err := r.put(len(r.pending))
	r.inRow = 0
	return err
}

// put puts the first n of the pending grains into the map.
func (r *reader) put(n int) error {
	if n == 0 {
		return nil
	}
	if r.made++; r.made > maxExtents {
		return fmt.Errorf("%w: more than %d fragments; defragment it", ErrUnsupported, maxExtents)
	}
	start := r.first * r.grain
	size := min(int64(n)*r.grain, r.disk.Size()-start)
	var src extent.Source
	var err error
	if r.inRow == n && int64(n) >= max(1, direct/r.grain) {
		src, err = extent.Section(r.src, int64(r.pending[0])*sector, size)
	} else {
		src = &grains{sparse: r.sparse, first: r.first, entries: append([]uint32(nil), r.pending[:n]...), size: size}
	}
	if err == nil {
		err = r.disk.Put(start, src)
	}
	r.first += int64(n)
	r.pending = append(r.pending[:0], r.pending[n:]...)
	return err
}

// readAt reads len(p) bytes.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	// maxExtents bounds the memory for an image with holes everywhere.
	maxExtents = 1 << 22
	// maxFile is the size, in bytes, of the largest file: the largest disk twice.
	maxFile = 2 * MaxSize
)

// Open returns the disk in a fixed or dynamic image. Blocks that are not
// allocated are holes.
//
// A differencing image is refused with ErrUnsupported, as are one whose log is
// not empty and one with a required region or item of metadata of which nothing
// is known; one that contradicts itself, fails a checksum or has been cut off is
// refused with ErrCorrupt.
func Open(src extent.Source) (*extent.Map, error) {
	if src.Size() > maxFile {
		return nil, fmt.Errorf("%w: a file of %d bytes, want at most %d", ErrUnsupported, src.Size(), int64(maxFile))
	}
	r := &reader{src: src, used: make(space, src.Size()/mib/64+1)}
	b := make([]byte, 8)
	if err := r.read(b, 0); err != nil {
		return nil, err
	}
	if string(b) != "vhdxfile" {
		return nil, fmt.Errorf("%w: does not begin with %q", ErrCorrupt, "vhdxfile")
	}
	if err := r.claim(0, mib); err != nil {
		return nil, fmt.Errorf("%w: headers: %w", ErrCorrupt, err)
	}
	if err := r.readHeader(); err != nil {
		return nil, err
	}
	batRegion, metadataRegion, err := r.readRegions()
	if err == nil {
		err = r.readMetadata(metadataRegion)
	}
	if err != nil {
		return nil, err
	}
	if have := batRegion.size / batEntrySize; have < r.entries() {
		return nil, fmt.Errorf("%w: BAT of %d entries, a disk of %d bytes needs %d", ErrCorrupt, have, r.size, r.entries())
	}
	r.disk = extent.New(r.size)
	return r.disk, r.readBAT(batRegion.at)
}

type reader struct {
	shape
	src  extent.Source
	used space
	disk *extent.Map

	made    int   // extents
	first   int64 // offset on the disk of blocks that are not in the map yet,
	at, end int64 // and from where to where in the file they are
}

// space is a set of MiB of the file that are in use.
type space []uint64

// claim marks part of the file as used. The error, which wraps nothing, is for
// a part that cannot be, or is used already.
func (r *reader) claim(at, size int64) error {
	switch {
	case at%mib != 0 || size%mib != 0:
		return fmt.Errorf("%d bytes at %d, want multiples of 1 MiB", size, at)
	case at < 0 || size < 0 || at > r.src.Size()-size:
		return fmt.Errorf("%d bytes at %d, but the file ends at %d", size, at, r.src.Size())
	}
	for i := at / mib; i < (at+size)/mib; i++ {
		if r.used[i/64]&(1<<(i%64)) != 0 {
			return fmt.Errorf("%d bytes at %d, some of which are used for something else too", size, at)
		}
		r.used[i/64] |= 1 << (i % 64)
	}
	return nil
}

// readHeader checks the current header.
func (r *reader) readHeader() error {
	var current []byte
	var bad error
	le := binary.LittleEndian
	for _, at := range headersAt {
		b := make([]byte, headerSize)
		if err := r.readSigned(b, at, "head"); err != nil {
			bad = fmt.Errorf("header: %w", err)
			continue
		}
		if current == nil || le.Uint64(b[8:]) > le.Uint64(current[8:]) {
			current = b
		}
	}
	if current == nil {
		return bad
	}
	if v := le.Uint16(current[66:]); v != 1 {
		return fmt.Errorf("%w: version %d, want 1", ErrUnsupported, v)
	}
	if id := guidAt(current[logGUIDAt:]); id != uuid.Nil {
		return fmt.Errorf("%w: it was not closed, its log (%v) has to be replayed; qemu-img check -r all or Mount-VHD does that, on a copy",
			ErrUnsupported, id)
	}
	if err := r.claim(int64(le.Uint64(current[72:])), int64(le.Uint32(current[68:]))); err != nil {
		return fmt.Errorf("%w: log: %w", ErrCorrupt, err)
	}
	return nil
}

// region is a region of the file.
type region struct{ at, size int64 }

func (r *reader) readRegions() (bat, metadata region, err error) {
	b := make([]byte, regionTableSize)
	for _, at := range regionTablesAt {
		if err = r.readSigned(b, at, "regi"); err == nil {
			break
		}
	}
	if err != nil {
		return bat, metadata, fmt.Errorf("region table: %w", err)
	}
	le := binary.LittleEndian
	n := le.Uint32(b[8:])
	if n > regionEntries {
		return bat, metadata, fmt.Errorf("%w: region table of %d entries, want at most %d", ErrCorrupt, n, regionEntries)
	}
	found := make(map[uuid.UUID]region)
	for i := range n {
		e := b[16+i*entrySize:][:entrySize]
		id := guidAt(e)
		reg := region{int64(le.Uint64(e[16:])), int64(le.Uint32(e[24:]))}
		if _, twice := found[id]; twice {
			return bat, metadata, fmt.Errorf("%w: region %v is there twice", ErrCorrupt, id)
		}
		if id != regionBAT && id != regionMetadata && le.Uint32(e[28:])&1 != 0 {
			return bat, metadata, fmt.Errorf("%w: unknown region %v is required", ErrUnsupported, id)
		}
		if err := r.claim(reg.at, reg.size); err != nil {
			return bat, metadata, fmt.Errorf("%w: region %v: %w", ErrCorrupt, id, err)
		}
		found[id] = reg
	}
	bat, metadata = found[regionBAT], found[regionMetadata]
	if bat.size == 0 || metadata.size == 0 {
		return bat, metadata, fmt.Errorf("%w: no region for BAT or metadata", ErrCorrupt)
	}
	return bat, metadata, nil
}

func (r *reader) readMetadata(reg region) error {
	b := make([]byte, (1+regionEntries)*entrySize)
	if err := r.read(b, reg.at); err != nil {
		return err
	}
	le := binary.LittleEndian
	if string(b[:8]) != "metadata" {
		return fmt.Errorf("%w: no metadata table at %d", ErrCorrupt, reg.at)
	}
	n := le.Uint16(b[10:])
	if n > regionEntries {
		return fmt.Errorf("%w: metadata table of %d entries, want at most %d", ErrCorrupt, n, regionEntries)
	}
	type item struct{ at, size int64 }
	items := make(map[uuid.UUID]item)
	for i := range int(n) {
		e := b[(1+i)*entrySize:][:entrySize]
		id, flags := guidAt(e), le.Uint32(e[24:])
		switch id {
		case itemFileParameters, itemDiskSize, itemDiskID, itemLogicalSector, itemPhysicalSector, itemParentLocator:
			if _, twice := items[id]; twice {
				return fmt.Errorf("%w: item %v of metadata is there twice", ErrCorrupt, id)
			}
			items[id] = item{int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:]))}
		default:
			if flags&itemRequired != 0 {
				return fmt.Errorf("%w: unknown item %v of metadata is required", ErrUnsupported, id)
			}
		}
	}
	// get reads an item of n bytes.
	get := func(name string, id uuid.UUID, n int64) ([]byte, error) {
		it, ok := items[id]
		if !ok || it.size < n || it.at > reg.size-n {
			return nil, fmt.Errorf("%w: no %s in the metadata", ErrCorrupt, name)
		}
		b := make([]byte, n)
		return b, r.read(b, reg.at+it.at)
	}
	parameters, err := get("file parameters", itemFileParameters, 8)
	if err != nil {
		return err
	}
	if le.Uint32(parameters[4:])&hasParent != 0 {
		return fmt.Errorf("%w: it is a differencing disk, which only has what differs from its parent; merge them with Merge-VHD", ErrUnsupported)
	}
	size, err := get("disk size", itemDiskSize, 8)
	if err != nil {
		return err
	}
	sector, err := get("logical sector size", itemLogicalSector, 4)
	if err != nil {
		return err
	}
	r.shape = shape{int64(le.Uint64(size)), int64(le.Uint32(parameters)), int64(le.Uint32(sector))}
	return r.check(ErrCorrupt)
}

// readBAT puts all blocks into the map.
func (r *reader) readBAT(at int64) error {
	const step = 64 << 10
	b := make([]byte, step)
	for first := int64(0); first < r.entries(); first += step / batEntrySize {
		part := b[:min(step, (r.entries()-first)*batEntrySize)]
		if err := r.read(part, at+first*batEntrySize); err != nil {
			return err
		}
		for i := range int64(len(part) / batEntrySize) {
			block, ok := r.blockOf(first + i)
			if !ok {
				continue // a bitmap, which would not be looked at
			}
			if err := r.entry(block, binary.LittleEndian.Uint64(part[i*batEntrySize:])); err != nil {
				return err
			}
		}
	}
	return r.flush()
}

func (r *reader) entry(block int64, entry uint64) error {
	switch s := state(entry & stateMask); s {
	case notPresent, undefined, zero, unmapped:
		return r.flush()
	case fullyPresent:
	case partiallyPresent:
		return fmt.Errorf("%w: block %d is partially present, but the image has no parent", ErrCorrupt, block)
	default:
		return fmt.Errorf("%w: block %d has the reserved state %d", ErrCorrupt, block, s)
	}
	at := int64(entry & offsetMask)
	if err := r.claim(at, r.block); err != nil {
		return fmt.Errorf("%w: block %d: %w", ErrCorrupt, block, err)
	}
	if r.end != at {
		if err := r.flush(); err != nil {
			return err
		}
	}
	if r.end == r.at {
		r.first, r.at = block*r.block, at
	}
	r.end = at + r.block
	return nil
}

// flush puts the blocks that lie in a row, on the disk and in the file, into the
// map.
func (r *reader) flush() error {
	if r.end == r.at {
		return nil
	}
	if r.made++; r.made > maxExtents {
		return fmt.Errorf("%w: more than %d fragments; defragment it with qemu-img convert", ErrUnsupported, maxExtents)
	}
	content, err := extent.Section(r.src, r.at, min(r.end-r.at, r.size-r.first))
	if err == nil {
		err = r.disk.Put(r.first, content)
	}
	r.at, r.end = 0, 0
	return err
}

// readSigned reads a structure with a signature and a checksum.
func (r *reader) readSigned(b []byte, at int64, signature string) error {
	if err := r.read(b, at); err != nil {
		return err
	}
	if string(b[:4]) != signature {
		return fmt.Errorf("%w: no %q at %d", ErrCorrupt, signature, at)
	}
	if got, want := binary.LittleEndian.Uint32(b[checksumAt:]), checksum(b); got != want {
		return fmt.Errorf("%w: checksum at %d is %#08x, want %#08x", ErrCorrupt, at, got, want)
	}
	return nil
}

func guidAt(b []byte) uuid.UUID { return swap(uuid.UUID(b[:16])) }

// read reads len(b) bytes.
func (r *reader) read(b []byte, at int64) error {
	n, err := r.src.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%d bytes at %d: %w", len(b), at, err)
}

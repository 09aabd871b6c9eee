// Package vmdk writes and reads VMDK images, the disks of VMware, as described
// in VMware's technical note "Virtual Disk Format 5.0".
//
// A disk is described by a small text, the descriptor, and lies in one or more
// extents. The two forms written here are one file with one sparse extent that
// has the descriptor inside. Integers are little-endian, positions and sizes are
// counted in sectors of 512 bytes:
//
//	header                       1 sector
//	descriptor                   20 sectors, padded with zeros
//	grain directory and tables   where the grains are
//	grains                       64 KiB of the disk each
//
// An entry of the grain directory is the position of a grain table, of which
// each has 512 entries: the positions of grains. 0 is a grain, or a table of
// grains, that reads as zeros and takes no space. As the entries have 32 bits a
// file ends at 2 TiB; the disk may be larger.
//
// A monolithicSparse image (Map) has the directory and the tables twice, before
// the grains. It is what virtual machines run from on VMware's desktop products.
//
// A streamOptimized image (Write) is for transport: it can be written and read
// from start to end. Each grain is a marker with its place on the disk and its
// length, and the grain compressed as a zlib stream (RFC 1950). A table follows
// the grains it is for, the directory follows the last table, and at the end is a
// footer, a second header with the position of the directory. All begin at a
// sector, with a marker in a sector of its own before them.
package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	sector       = 512
	grainSectors = 128
	grainSize    = grainSectors * sector
	perTable     = 512 // entries of a grain table
	tableSectors = perTable * 4 / sector
	entrySize    = 4

	magic       = 0x564d444b // "KDMV"
	gdAtEnd     = ^uint64(0) // the position of the grain directory is in the footer
	noParent    = 0xffffffff
	endOfLines  = "\n \r\n" // damaged by a transfer as text
	compression = 1         // deflate

	flagNewlines   = 1 << 0 // endOfLines is there
	flagRedundant  = 1 << 1 // the second grain directory is there
	flagZeroGrains = 1 << 2 // an entry of 1 is a grain of zeros
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17

	descriptorSectors = 20
	dataStart         = 1 + descriptorSectors
)

// Types of markers. A grain's marker has a length where the others have 0.
const (
	markerEnd = iota
	markerTable
	markerDirectory
	markerFooter
)

var (
	// ErrInvalid is wrapped by errors about a disk that cannot be written.
	ErrInvalid = errors.New("cannot be a vmdk image")

	// ErrCorrupt is wrapped by errors about images that contradict themselves or
	// have been cut off.
	ErrCorrupt = errors.New("damaged vmdk image")

	// ErrUnsupported is wrapped by errors about images that need something this
	// package does not have.
	ErrUnsupported = errors.New("unsupported vmdk image")
)

// Adapter is the controller that a disk is made for.
type Adapter string

// Adapters. The format has no name for VMware's paravirtual controller: its
// disks are those of an LSI Logic controller.
const (
	LSILogic Adapter = "lsilogic"
	PVSCSI   Adapter = "pvscsi"
	IDE      Adapter = "ide"
)

// Options are what the descriptor says of an image. Nothing in it is made up:
// the same disk and options are the same bytes.
type Options struct {
	// Name is the name of the file, without a directory.
	Name string

	// ContentID stands for the content of the disk. Its last 4 bytes, as a
	// big-endian number, are the CID, by which a child finds that its parent has
	// changed. The highest CIDs have a meaning of their own and are changed to
	// others.
	ContentID [16]byte

	// UUID is the identity of the disk, which a guest sees as the SCSI device
	// identification. Its first 28 bits are replaced by those of an NAA name of
	// VMware, 6000c29. A UUID of zeros is left out.
	UUID [16]byte

	// Adapter is LSILogic if empty.
	Adapter Adapter

	// ToolsVersion is the version of VMware's tools in the guest. 0 becomes
	// 2147483647: managed by the guest, as open-vm-tools are.
	ToolsVersion uint32
}

// header is the sparse extent header, or the footer.
type header struct {
	version    uint32
	flags      uint32
	capacity   uint64 // the size of the disk, in sectors
	grain      uint64 // the size of a grain, in sectors
	descriptor uint64 // position, 0 if there is none
	descSize   uint64 // sectors
	perTable   uint32
	redundant  uint64 // position of the second grain directory
	directory  uint64 // position of the grain directory
	overhead   uint64 // position of the first grain
	unclean    byte
	newlines   [4]byte
	method     uint16
}

func (h *header) marshal() []byte {
	b := make([]byte, 0, sector)
	le := binary.LittleEndian
	b = le.AppendUint32(b, magic)
	b = le.AppendUint32(b, h.version)
	b = le.AppendUint32(b, h.flags)
	b = le.AppendUint64(b, h.capacity)
	b = le.AppendUint64(b, h.grain)
	b = le.AppendUint64(b, h.descriptor)
	b = le.AppendUint64(b, h.descSize)
	b = le.AppendUint32(b, h.perTable)
	b = le.AppendUint64(b, h.redundant)
	b = le.AppendUint64(b, h.directory)
	b = le.AppendUint64(b, h.overhead)
	b = append(b, h.unclean)
	b = append(b, h.newlines[:]...)
	b = le.AppendUint16(b, h.method)
	return b[:sector]
}

// unmarshal reads the header in a sector that begins with the magic number.
func (h *header) unmarshal(b []byte) {
	le := binary.LittleEndian
	*h = header{
		version: le.Uint32(b[4:]), flags: le.Uint32(b[8:]), capacity: le.Uint64(b[12:]), grain: le.Uint64(b[20:]),
		descriptor: le.Uint64(b[28:]), descSize: le.Uint64(b[36:]), perTable: le.Uint32(b[44:]),
		redundant: le.Uint64(b[48:]), directory: le.Uint64(b[56:]), overhead: le.Uint64(b[64:]),
		unclean: b[72], newlines: [4]byte(b[73:]), method: le.Uint16(b[77:]),
	}
}

// layout is what both forms of an image begin with.
func (o Options) layout(disk *extent.Map, createType string) (h header, descriptor []byte, err error) {
	size := disk.Size()
	if size%sector != 0 {
		return h, nil, fmt.Errorf("%w: the disk has %d bytes, want a multiple of 512", ErrInvalid, size)
	}
	switch {
	case o.Name == "":
		return h, nil, fmt.Errorf("%w: the descriptor needs the name of the file", ErrInvalid)
	case len(o.Name) > 255 || strings.ContainsAny(o.Name, "/\\\"\r\n\x00"):
		return h, nil, fmt.Errorf("%w: file name %q, want one without quotes, slashes and line ends", ErrInvalid, o.Name)
	}
	switch o.Adapter {
	case "", LSILogic, PVSCSI, IDE:
	default:
		return h, nil, fmt.Errorf("%w: adapter %q, want lsilogic, pvscsi or ide", ErrInvalid, o.Adapter)
	}
	h = header{
		version: 1, flags: flagNewlines, capacity: uint64(size / sector), grain: grainSectors,
		descriptor: 1, descSize: descriptorSectors, perTable: perTable, newlines: [4]byte([]byte(endOfLines)),
	}
	return h, o.descriptor(h.capacity, createType), nil
}

// tableCount is the number of grain tables, used or not, of a disk.
func tableCount(capacity uint64) int64 {
	return (int64(capacity) + grainSectors*perTable - 1) / (grainSectors * perTable)
}

// run is a range of grains of which each has data.
type run struct {
	first, end int64
	before     int64 // number of grains with data before it
}

// runs returns the grains that the extents of a disk touch.
func runs(disk *extent.Map) []run {
	var list []run
	var n int64
	for _, e := range disk.Extents() {
		first, end := e.Offset/grainSize, (e.End()+grainSize-1)/grainSize
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

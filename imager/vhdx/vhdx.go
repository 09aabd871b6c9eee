// Package vhdx writes and reads virtual hard disks in Hyper-V's format VHDX.
//
// It follows Microsoft's [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format".
// Every integer is little-endian, and so are the first three fields of a GUID;
// checksums are CRC-32C. Everything that is not a header begins at a multiple
// of 1 MiB and is a multiple of it long:
//
//	0        file type identifier: "vhdxfile", name of the creator
//	64 KiB   header: sequence number, GUIDs, where the log is
//	128 KiB  header; the one with the larger sequence number counts
//	192 KiB  region table: where metadata and block allocation table are
//	256 KiB  region table, the same again
//	1 MiB    log of changes to metadata; void if the GUID in the header is zero
//	2 MiB    metadata: sizes of disk, blocks and sectors, identifier of the disk
//	3 MiB    block allocation table (BAT)
//	…        payload blocks, of 1 to 256 MiB, a power of two
//
// The order from the log on is that of this package; region table and header
// say it. An entry of the BAT has 64 bits: the state of a block in the lowest
// three, the offset in the file, in MiB, from bit 20 on. The blocks of a chunk,
// which has 2^23 sectors of the disk, are followed by an entry for a bitmap of
// the chunk's sectors, which only differencing images have.
//
// Map returns an image as an extent map, without reading the disk. Open returns
// the disk in an image.
package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"unicode/utf16"

	"github.com/google/uuid"
)

// Errors returned, wrapped, by this package.
var (
	// ErrInvalid is for options, or a disk, that cannot be written.
	ErrInvalid = errors.New("cannot be a VHDX image")
	// ErrCorrupt is for an image that contradicts the specification or itself.
	ErrCorrupt = errors.New("damaged VHDX image")
	// ErrUnsupported is for an image that Open cannot read.
	ErrUnsupported = errors.New("unsupported VHDX image")
)

// DefaultBlockSize is the size of blocks, in bytes, that Microsoft recommends
// for Linux guests, whose file systems write here and there:
// https://learn.microsoft.com/windows-server/virtualization/hyper-v/best-practices-for-running-linux-on-hyper-v.
const DefaultBlockSize = 1 << 20

// MaxSize is the size, in bytes, of the largest disk: 64 TiB.
const MaxSize = 64 << 40

const (
	mib          = 1 << 20
	minBlockSize = 1 << 20
	maxBlockSize = 256 << 20

	identifierSize  = 520
	headerSize      = 4 << 10
	regionTableSize = 64 << 10
	regionEntries   = 2047 // at most, and as many metadata
	entrySize       = 32   // of both tables, and the beginning of the one of metadata
	batEntrySize    = 8
	itemsAt         = 64 << 10 // in the metadata region

	logSize    = mib
	logAt      = 1 * mib
	metadataAt = 2 * mib
	batAt      = 3 * mib

	creator      = "kiln" // of diagnostic use only
	chunkSectors = 1 << 23
)

// headersAt and regionTablesAt are the offsets of the two copies.
var (
	headersAt      = [2]int64{64 << 10, 128 << 10}
	regionTablesAt = [2]int64{192 << 10, 256 << 10}
)

// Offsets of fields that are used more than once.
const (
	checksumAt = 4 // in header and region table
	logGUIDAt  = 48
)

// Regions, and items of metadata.
var (
	regionBAT      = uuid.MustParse("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = uuid.MustParse("8b7ca206-4790-4b9a-b8fe-575f050f886e")

	itemFileParameters = uuid.MustParse("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemDiskSize       = uuid.MustParse("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemDiskID         = uuid.MustParse("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogicalSector  = uuid.MustParse("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysicalSector = uuid.MustParse("cda348c7-445d-4471-9cc9-e9885251c556")
	itemParentLocator  = uuid.MustParse("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
)

// Flags of file parameters.
const (
	leaveBlocksAllocated = 1 << 0 // fixed
	hasParent            = 1 << 1 // differencing
)

// Flags of items of metadata.
const (
	itemOfDisk   = 1 << 1 // rather than of the file
	itemRequired = 1 << 2 // who does not know it must not open the image
)

// state is the state of a payload block in the BAT.
type state uint64

const (
	notPresent       state = 0 // undefined content; in practice zeros
	undefined        state = 1
	zero             state = 2
	unmapped         state = 3
	fullyPresent     state = 6
	partiallyPresent state = 7

	stateMask  = 7
	offsetMask = 1<<64 - mib
)

// shape is what follows from the sizes of disk, blocks and sectors, in bytes.
type shape struct {
	size, block, sector int64
}

// check says what is wrong with the sizes; it wraps kind.
func (s shape) check(kind error) error {
	switch {
	case s.sector != 512 && s.sector != 4096:
		return fmt.Errorf("%w: sectors of %d bytes, want 512 or 4096", kind, s.sector)
	case s.block < minBlockSize || s.block > maxBlockSize || bits.OnesCount64(uint64(s.block)) != 1:
		return fmt.Errorf("%w: blocks of %d bytes, want a power of two from %d to %d", kind, s.block, minBlockSize, maxBlockSize)
	case s.size <= 0 || s.size%s.sector != 0:
		return fmt.Errorf("%w: a disk of %d bytes is not a whole number of %d-byte sectors, at least one", kind, s.size, s.sector)
	case s.size > MaxSize:
		return fmt.Errorf("%w: a disk of %d bytes is larger than 64 TiB", kind, s.size)
	}
	return nil
}

// blocks is the number of payload blocks.
func (s shape) blocks() int64 { return (s.size + s.block - 1) / s.block }

// chunkRatio is the number of payload blocks before each entry for a bitmap.
func (s shape) chunkRatio() int64 { return chunkSectors * s.sector / s.block }

// entries is the number of entries of the BAT: the last is for the last block.
func (s shape) entries() int64 { return s.blocks() + (s.blocks()-1)/s.chunkRatio() }

// blockOf returns the payload block of an entry of the BAT; there is none if the
// entry is for a bitmap.
func (s shape) blockOf(entry int64) (block int64, ok bool) {
	n := s.chunkRatio() + 1
	return entry - entry/n, entry%n != n-1
}

// appendGUID appends a GUID as Microsoft stores it.
func appendGUID(b []byte, id uuid.UUID) []byte {
	id = swap(id)
	return append(b, id[:]...)
}

// swap reverses the order of the bytes in the first three fields of a GUID, to
// store it and to read it.
func swap(id uuid.UUID) uuid.UUID {
	le, be := binary.LittleEndian, binary.BigEndian
	le.PutUint32(id[0:], be.Uint32(id[0:]))
	le.PutUint16(id[4:], be.Uint16(id[4:]))
	le.PutUint16(id[6:], be.Uint16(id[6:]))
	return id
}

// checksum is the CRC-32C of a header or region table, as if its field for the
// checksum were zero.
func checksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:checksumAt])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, b[checksumAt+4:])
}

// identifier is the file type identifier, without what is zero of the name.
func identifier() []byte {
	b := make([]byte, 0, identifierSize)
	b = append(b, "vhdxfile"...)
	for _, c := range utf16.Encode([]rune(creator)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// header returns one of the two headers.
func header(sequence uint64, o Options) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, headerSize)
	b = append(b, "head"...)
	b = le.AppendUint32(b, 0) // checksum
	b = le.AppendUint64(b, sequence)
	b = appendGUID(b, o.FileWriteID)
	b = appendGUID(b, o.DataWriteID)
	b = appendGUID(b, uuid.Nil) // the log is empty
	b = le.AppendUint16(b, 0)   // version of the log
	b = le.AppendUint16(b, 1)   // version of the format
	b = le.AppendUint32(b, logSize)
	b = le.AppendUint64(b, logAt)
	b = b[:headerSize]
	le.PutUint32(b[checksumAt:], checksum(b))
	return b
}

// regionTable returns a region table for a BAT region of so many bytes.
func regionTable(bat int64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, regionTableSize)
	b = append(b, "regi"...)
	b = le.AppendUint32(b, 0) // checksum
	b = le.AppendUint32(b, 2) // entries
	b = le.AppendUint32(b, 0)
	for _, r := range []struct {
		id       uuid.UUID
		at, size int64
	}{{regionBAT, batAt, bat}, {regionMetadata, metadataAt, mib}} {
		b = appendGUID(b, r.id)
		b = le.AppendUint64(b, uint64(r.at))
		b = le.AppendUint32(b, uint32(r.size))
		b = le.AppendUint32(b, 1) // required
	}
	b = b[:regionTableSize]
	le.PutUint32(b[checksumAt:], checksum(b))
	return b
}

// metadata returns the table of the metadata region and its items.
func metadata(s shape, o Options) (table, items []byte) {
	le := binary.LittleEndian
	var parameters uint32
	if o.Fixed {
		parameters = leaveBlocksAllocated
	}
	list := []struct {
		id      uuid.UUID
		flags   uint32
		content []byte
	}{
		{itemFileParameters, itemRequired, le.AppendUint32(le.AppendUint32(nil, uint32(s.block)), parameters)},
		{itemDiskSize, itemRequired | itemOfDisk, le.AppendUint64(nil, uint64(s.size))},
		{itemDiskID, itemRequired | itemOfDisk, appendGUID(nil, o.DiskID)},
		{itemLogicalSector, itemRequired | itemOfDisk, le.AppendUint32(nil, uint32(s.sector))},
		{itemPhysicalSector, itemRequired | itemOfDisk, le.AppendUint32(nil, physicalSector)},
	}
	table = append(table, "metadata"...)
	table = le.AppendUint16(table, 0)
	table = le.AppendUint16(table, uint16(len(list)))
	table = append(table, make([]byte, 20)...)
	for _, item := range list {
		table = appendGUID(table, item.id)
		table = le.AppendUint32(table, uint32(itemsAt+len(items)))
		table = le.AppendUint32(table, uint32(len(item.content)))
		table = le.AppendUint32(table, item.flags)
		table = le.AppendUint32(table, 0)
		items = append(items, item.content...)
	}
	return table, items
}

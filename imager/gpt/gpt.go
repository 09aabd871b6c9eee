// Package gpt lays out and reads GUID partition tables, without touching a
// device: Table.Map returns an extent map, Read takes any io.ReaderAt.
//
// The format is chapter 5 of the UEFI specification, version 2.10. A disk is a
// sequence of logical blocks (LBA), here of 512 or 4096 bytes:
//
//	LBA 0      protective MBR: boot code for BIOS (440 bytes) and one partition
//	           of type 0xEE that covers the disk, so that old tools leave it alone
//	LBA 1      primary header: where everything is, CRC-32s of itself and the entries
//	LBA 2…     128 partition entries of 128 bytes
//	…          what partitions may use
//	then       the same 128 entries again
//	last LBA   backup header
//
// All integers are little-endian. The number of a partition, from 1, is the
// place of its entry. A GUID is stored as Microsoft does: its first three fields
// (4, 2 and 2 bytes) little-endian, the rest as it is written.
package gpt

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// GUID is an RFC 9562 UUID, big-endian in memory.
type GUID = uuid.UUID

// Partition types.
var (
	EFISystem       = uuid.MustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	BIOSBoot        = uuid.MustParse("21686148-6449-6e6f-744e-656564454649") // GRUB's core image
	LinuxFilesystem = uuid.MustParse("0fc63daf-8483-4772-8e79-3d69d8477de4")
)

// TypeName returns what a partition type is for, or the type itself if it is
// none of those above.
func TypeName(t GUID) string {
	switch t {
	case EFISystem:
		return "EFI system"
	case BIOSBoot:
		return "BIOS boot"
	case LinuxFilesystem:
		return "Linux filesystem"
	}
	return t.String()
}

// LegacyBIOSBootable is the bit of Partition.Attributes that marks the
// partition from which a BIOS boots.
const LegacyBIOSBootable = 1 << 2

// MaxPartitions is how many entries Map writes.
const MaxPartitions = 128

// Errors returned, wrapped, by this package.
var (
	// ErrInvalid is for a Table that Map cannot or should not write.
	ErrInvalid = errors.New("invalid partition table")
	// ErrNone is for a disk on which Read finds no trace of a GPT.
	ErrNone = errors.New("no GUID partition table")
	// ErrDamaged is for a GPT that Read finds but cannot trust.
	ErrDamaged = errors.New("damaged GUID partition table")
)

// Table is the partition table of one disk.
type Table struct {
	DiskID     GUID
	SectorSize int64 // 512 or 4096 bytes
	Size       int64 // of the disk in bytes
	// Partitions are in the order of their numbers, from 1. The zero Partition
	// is a number that is not in use.
	Partitions []Partition
	// BootCode is what a BIOS executes, at most 440 bytes. Nil is none.
	BootCode []byte
	// Damaged, set by Read, wraps ErrDamaged and says what is wrong with the
	// part of the table that the result does not come from. Writing Map's
	// result repairs it.
	Damaged error
}

// Partition is one partition; positions and sizes are in bytes and multiples of
// the sector size.
type Partition struct {
	Type       GUID
	ID         GUID
	Name       string // at most 36 UTF-16 code units
	Start      int64
	Size       int64
	Attributes uint64
}

// End returns the offset of the first byte after the partition.
func (p Partition) End() int64 { return p.Start + p.Size }

// Usable returns the range of bytes, from start up to end, in which partitions
// may lie on a disk of t's size: what the two copies of the table leave. It is
// for the caller to align partitions, best to 1 MiB.
func (t *Table) Usable() (start, end int64) {
	return 2*t.SectorSize + tableBytes, t.Size - tableBytes - t.SectorSize
}

// Sizes and offsets of the structures in bytes.
const (
	entrySize  = 128
	tableBytes = MaxPartitions * entrySize
	nameUnits  = 36 // of UTF-16, in an entry

	headerSize = 92
	signature  = "EFI PART"
	revision   = 1 << 16 // 1.0

	bootCodeSize   = 440
	mbrPartitions  = 446 // four records of 16 bytes
	mbrSignature   = 510
	typeProtective = 0xEE
)

// The header's fields.
const (
	atRevision    = 8  // u32
	atHeaderSize  = 12 // u32
	atHeaderCRC   = 16 // u32, of the header with this field zero
	atMyLBA       = 24 // u64
	atAlternate   = 32 // u64, LBA of the other header
	atFirstUsable = 40 // u64
	atLastUsable  = 48 // u64, inclusive
	atDiskID      = 56 // 16 bytes
	atEntriesLBA  = 72 // u64
	atEntries     = 80 // u32
	atEntrySize   = 84 // u32
	atEntriesCRC  = 88 // u32
)

// The fields of an entry, whose type comes first.
const (
	atPartitionID = 16 // 16 bytes
	atFirstLBA    = 32 // u64
	atLastLBA     = 40 // u64, inclusive
	atAttributes  = 48 // u64
	atName        = 56 // 36 x u16, padded with zeros
)

// swap converts a GUID between its forms in memory and on disk.
func swap(g GUID) GUID {
	return GUID{
		g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6],
		g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15],
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

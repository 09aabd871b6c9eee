// Package vhd writes and reads virtual hard disks in the format of Virtual PC,
// Hyper-V and Azure, which QEMU calls vpc.
//
// It follows Microsoft's "Virtual Hard Disk Image Format Specification",
// version 1.0 of October 11, 2006. Every integer is big-endian, sectors have
// 512 bytes. A fixed image is the disk with a footer behind it:
//
//	disk             as many bytes as the disk has
//	footer           512 bytes: type, size, geometry, creator, checksum
//
// A dynamic image has the disk in blocks, here of 2 MiB, and only those that
// something was written to:
//
//	footer           a copy
//	dynamic header   1024 bytes: where the table is, size of the blocks
//	block allocation table: for every block of the disk the 32-bit number of the
//	                 sector of the file that it begins at, or 0xFFFFFFFF
//	blocks           each a bitmap, of one bit for every sector of the block that
//	                 was written to, and the sectors
//	footer
//
// # Sizes
//
// The footer has the size of the disk twice: in bytes, and as a geometry of
// cylinders, heads and sectors, which is seldom exactly as large. Virtual PC
// gave the guest what the geometry covers, Hyper-V and Azure what the bytes say.
// A reader decides by the name of the creator. QEMU takes the bytes if it is
// "win " (Hyper-V), "wa\0\0" (Azure, only newer ones), "qem2" (qemu-img with -o
// force_size), "d2v ", "tap\0" or "CTXS", and the geometry for all others:
// https://gitlab.com/qemu-project/qemu/-/blob/v7.2.0/block/vpc.c. So Map says
// "win ", which every reader knows; a name of our own would cut off the end of
// the disk, and with it the backup of the partition table.
//
// # Azure
//
// Azure takes fixed images only, whose disk is a whole number of MiB; the file
// is the footer's 512 bytes larger:
// https://learn.microsoft.com/azure/virtual-machines/linux/create-upload-generic.
// The size meant is the one in bytes, so any disk of whole MiB that Map has made
// a fixed image of will do.
package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

// Errors returned, wrapped, by this package.
var (
	// ErrInvalid is for a disk that cannot be written.
	ErrInvalid = errors.New("cannot be a VHD image")
	// ErrCorrupt is for an image that contradicts the specification or itself.
	ErrCorrupt = errors.New("damaged VHD image")
	// ErrUnsupported is for an image that Open cannot read.
	ErrUnsupported = errors.New("unsupported VHD image")
)

// MaxSize is the size, in bytes, of the largest disk: 2040 GiB. A dynamic image
// cannot address more, and Hyper-V and QEMU take no larger fixed ones.
const MaxSize = 2040 << 30

const (
	sector        = 512
	footerSize    = 512
	headerSize    = 1024
	footerCookie  = "conectix"
	headerCookie  = "cxsparse"
	version       = 1 << 16 // 1.0, of footer and dynamic header
	noOffset      = math.MaxUint64
	reserved      = 2 // feature bit that is always set
	notAllocated  = math.MaxUint32
	entrySize     = 4 // of the block allocation table
	blockSize     = 2 << 20
	creator       = "win "
	creatorVer    = 10 << 16 // of Windows; the footer's fields do not depend on it
	creatorSystem = "Wi2k"   // Windows; the specification has only this and Mac
)

// diskType is the type of an image in its footer.
type diskType uint32

const (
	typeFixed        diskType = 2
	typeDynamic      diskType = 3
	typeDifferencing diskType = 4
)

// Offsets of the fields of the footer that are used more than once.
const (
	footerCreator  = 28
	footerChecksum = 64
	headerChecksum = 36
)

// geometry is the size of a disk as of an ATA drive.
type geometry struct {
	cylinders uint16
	heads     uint8
	sectors   uint8 // in a track
}

// maxGeometry is that of a disk that is larger than any geometry.
var maxGeometry = geometry{65535, 16, 255}

// bytes is how much of a disk the geometry covers.
func (g geometry) bytes() int64 {
	return int64(g.cylinders) * int64(g.heads) * int64(g.sectors) * sector
}

// geometryOf returns the geometry for a disk of so many bytes. This is the
// algorithm of the specification's appendix; it rounds down.
func geometryOf(size int64) geometry {
	total := min(size, maxGeometry.bytes()) / sector
	if total >= 65535*16*63 {
		return geometry{uint16(total / 255 / 16), 16, 255}
	}
	tracks := total / 17
	heads := max(4, (tracks+1023)/1024)
	if heads <= 16 && tracks < heads*1024 {
		return geometry{uint16(tracks / heads), uint8(heads), 17}
	}
	if tracks = total / 31; tracks < 16*1024 {
		return geometry{uint16(tracks / 16), 16, 31}
	}
	return geometry{uint16(total / 63 / 16), 16, 63}
}

// timestamp is the time in seconds since the beginning of 2000, UTC, as near as
// it can be stored.
func timestamp(t time.Time) uint32 {
	s := t.Unix() - time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	return uint32(min(max(s, 0), math.MaxUint32))
}

// footer returns the footer of an image of a disk of so many bytes.
func footer(size int64, kind diskType, id uuid.UUID, t time.Time) []byte {
	be := binary.BigEndian
	b := make([]byte, 0, footerSize)
	b = append(b, footerCookie...)
	b = be.AppendUint32(b, reserved)
	b = be.AppendUint32(b, version)
	if kind == typeFixed {
		b = be.AppendUint64(b, noOffset)
	} else {
		b = be.AppendUint64(b, footerSize) // of the dynamic header
	}
	b = be.AppendUint32(b, timestamp(t))
	b = append(b, creator...)
	b = be.AppendUint32(b, creatorVer)
	b = append(b, creatorSystem...)
	b = be.AppendUint64(b, uint64(size)) // when it was made
	b = be.AppendUint64(b, uint64(size)) // now
	g := geometryOf(size)
	b = be.AppendUint16(b, g.cylinders)
	b = append(b, g.heads, g.sectors)
	b = be.AppendUint32(b, uint32(kind))
	b = be.AppendUint32(b, 0) // checksum
	b = append(b, id[:]...)
	b = b[:footerSize] // not saved in mid-run; reserved
	be.PutUint32(b[footerChecksum:], checksum(b, footerChecksum))
	return b
}

// header returns the dynamic header of an image of so many blocks.
func header(blocks int64) []byte {
	be := binary.BigEndian
	b := make([]byte, 0, headerSize)
	b = append(b, headerCookie...)
	b = be.AppendUint64(b, noOffset) // nothing follows
	b = be.AppendUint64(b, footerSize+headerSize)
	b = be.AppendUint32(b, version)
	b = be.AppendUint32(b, uint32(blocks))
	b = be.AppendUint32(b, blockSize)
	b = b[:headerSize] // the rest is about a parent
	be.PutUint32(b[headerChecksum:], checksum(b, headerChecksum))
	return b
}

// checksum is the one's complement of the sum of all bytes, except those of the
// checksum itself at the given offset.
func checksum(b []byte, at int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// bitmapSize is the number of bytes of the bitmap of a block: whole sectors.
func bitmapSize(block int64) int64 {
	return (block/sector/8 + sector - 1) / sector * sector
}

func checkSize(size int64) error {
	switch {
	case size <= 0 || size%sector != 0:
		return fmt.Errorf("%w: a disk of %d bytes is not a whole number of 512-byte sectors, at least one", ErrInvalid, size)
	case size > MaxSize:
		return fmt.Errorf("%w: a disk of %d bytes is larger than 2040 GiB; use VHDX", ErrInvalid, size)
	}
	return nil
}

// Package gcetar puts a disk into the archive that Google Compute Engine imports
// as an image, and finds it in one.
//
// The archive is a gzip-compressed tar with one file, disk.raw, as "tar
// --format=oldgnu -Sczf" makes it, see "Manually import boot disks" in the
// Compute Engine documentation. The size of the disk must be a multiple of 1 GiB
// there; this package asks for sectors only.
//
// The holes of the disk are not in the archive: it is an entry of type 'S' in the
// old GNU format, see "Storing Sparse Files" in the manual of GNU tar and tar.h in
// its source. The header, of 512 bytes, has a map of the four first pieces of the
// file that are there, at offset 386. After it, if need be, there are blocks of 512
// bytes with 21 more each. A piece is an offset and a number of bytes, each in 12
// bytes as octal digits, or in base 256 if it is too large. The content of the
// pieces follows, each padded to 512 bytes.
package gcetar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
)

// Name is the name of the disk in the archive.
const Name = "disk.raw"

// Errors, returned wrapped.
var (
	// ErrInvalid is returned for disks and times that cannot be in an archive.
	ErrInvalid = errors.New("cannot put the disk into a tar archive")

	// ErrCorrupt is returned for archives that break the rules of their format,
	// or have no disk.raw.
	ErrCorrupt = errors.New("not a tar archive with a disk.raw")
)

const (
	block = 512

	// granule is what pieces begin and end at, the block of most file systems:
	// smaller holes would not be holes once they are unpacked.
	granule = 4096

	// Fields of the header, by their offset; all but the type are numbers in octal,
	// most with a NUL or a space after them.
	nameField       = 0   // 100 bytes
	modeField       = 100 // 8 bytes
	uidField        = 108 // 8 bytes
	gidField        = 116 // 8 bytes
	sizeField       = 124 // 12 bytes: of the content in the archive
	mtimeField      = 136 // 12 bytes
	checksumField   = 148 // 8 bytes
	typeField       = 156 // 1 byte
	magicField      = 257 // 8 bytes
	userField       = 265 // 32 bytes
	groupField      = 297 // 32 bytes
	sparseField     = 386 // 4 pieces of 24 bytes
	extendedField   = 482 // 1 byte: blocks with more pieces follow
	realSizeField   = 483 // 12 bytes: of the file
	inHeader        = 4
	inExtension     = 21
	extensionExtend = 504 // the extended field of these blocks
	pieceSize       = 24
	numberSize      = 12

	sparseType = 'S'
	oldGNU     = "ustar  \x00"
)

// piece is a part of the file that is in the archive.
type piece struct{ offset, size int64 }

// Map returns the archive, not compressed, as a map of which nothing has been
// read. The size of the disk must be a multiple of 512. mtime is the time of the
// file in seconds since 1970.
func Map(disk *extent.Map, mtime int64) (*extent.Map, error) {
	if disk.Size() <= 0 || disk.Size()%block != 0 {
		return nil, fmt.Errorf("%w: its size is %d bytes, want a multiple of %d", ErrInvalid, disk.Size(), block)
	}
	if mtime < 0 || mtime > 1<<33-1 {
		return nil, fmt.Errorf("%w: its time is %d, want 0 to %d seconds since 1970", ErrInvalid, mtime, 1<<33-1)
	}
	pieces := piecesOf(disk)
	head := header(disk.Size(), mtime, pieces)
	var parts []extent.Source
	parts = append(parts, extent.Bytes(head))
	for _, p := range pieces {
		s, err := extent.Section(disk, p.offset, p.size)
		if err != nil {
			return nil, err
		}
		parts = append(parts, s)
	}
	end := extent.New(2 * block)
	return extent.Concat(block, append(parts, end)...)
}

// piecesOf returns what of the disk is in the archive. Where the disk ends in a
// hole there is a piece of no bytes at its end, as GNU tar has it.
func piecesOf(disk *extent.Map) []piece {
	var pieces []piece
	end := int64(0)
	for _, x := range disk.Extents() {
		from, to := x.Offset/granule*granule, min(extent.Align(x.End(), granule), disk.Size())
		if len(pieces) > 0 && from <= end {
			last := &pieces[len(pieces)-1]
			end = max(end, to)
			last.size = end - last.offset
			continue
		}
		pieces = append(pieces, piece{from, to - from})
		end = to
	}
	if end < disk.Size() {
		pieces = append(pieces, piece{disk.Size(), 0})
	}
	return pieces
}

// header returns the header and the blocks with the rest of the pieces.
func header(size, mtime int64, pieces []piece) []byte {
	h := make([]byte, block)
	copy(h[nameField:], Name)
	putNumber(h[modeField:], 8, 0o644)
	putNumber(h[uidField:], 8, 0)
	putNumber(h[gidField:], 8, 0)
	var stored int64
	for _, p := range pieces {
		stored += extent.Align(p.size, block)
	}
	putNumber(h[sizeField:], numberSize, stored)
	putNumber(h[mtimeField:], numberSize, mtime)
	h[typeField] = sparseType
	copy(h[magicField:], oldGNU)
	copy(h[userField:], "root")
	copy(h[groupField:], "root")
	n := min(len(pieces), inHeader)
	putPieces(h[sparseField:], pieces[:n])
	pieces = pieces[n:]
	if len(pieces) > 0 {
		h[extendedField] = 1
	}
	putNumber(h[realSizeField:], numberSize, size)
	copy(h[checksumField:], fmt.Sprintf("%06o\x00 ", checksum(h)))
	for len(pieces) > 0 {
		b := make([]byte, block)
		n := min(len(pieces), inExtension)
		putPieces(b, pieces[:n])
		if pieces = pieces[n:]; len(pieces) > 0 {
			b[extensionExtend] = 1
		}
		h = append(h, b...)
	}
	return h
}

func putPieces(b []byte, pieces []piece) {
	for i, p := range pieces {
		putNumber(b[i*pieceSize:], numberSize, p.offset)
		putNumber(b[i*pieceSize+numberSize:], numberSize, p.size)
	}
}

// putNumber writes v, not negative, into n bytes: in octal with a NUL after it,
// or else in base 256, big-endian, with the highest bit set.
func putNumber(b []byte, n int, v int64) {
	if v < 1<<(3*(n-1)) {
		copy(b, fmt.Sprintf("%0*o\x00", n-1, v))
		return
	}
	binary.BigEndian.PutUint64(b[n-8:n], uint64(v))
	b[0] |= 0x80
}

// checksum is the sum of the bytes of a header, with spaces for the checksum.
func checksum(h []byte) int64 {
	var sum int64
	for i, c := range h[:block] {
		if i >= checksumField && i < checksumField+8 {
			c = ' '
		}
		sum += int64(c)
	}
	return sum
}

// Write writes the archive, compressed on all processors, to w, from start to
// end. For level see compress.Options. If progress is not nil it is called with
// the number of bytes of the archive, before compression, that are dealt with
// since the last call.
func Write(ctx context.Context, w io.Writer, disk *extent.Map, mtime int64, level int, progress func(n int64)) error {
	m, err := Map(disk, mtime)
	if err != nil {
		return err
	}
	return compress.Write(ctx, w, m, compress.Options{Format: compress.Gzip, Level: level}, progress)
}

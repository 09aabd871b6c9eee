// Package cpio writes and reads initramfs images: cpio archives in the "newc"
// format, one after the other, each stored or compressed.
//
// The format is that of "initramfs buffer format" in the kernel's documentation
// (Documentation/driver-api/early-userspace/buffer-format.rst). An archive is a
// sequence of entries, each a header of 110 bytes (a magic number and thirteen
// fields of eight hexadecimal digits), the name with a final NUL, padding to 4
// bytes, the content, and padding to 4 bytes. An entry named "TRAILER!!!" ends
// the archive.
//
// What the kernel adds to that: archives may follow each other, with any number
// of zero bytes between them. One that is stored has to begin at a multiple of
// 4 bytes, one that is compressed may begin anywhere and has to end where an
// archive ends.
package cpio

import "errors"

const (
	magicNewc = "070701"
	magicCRC  = "070702" // newc, with a sum of the content in the last field

	headerSize  = 110
	trailerName = "TRAILER!!!"

	// maxName is the kernel's PATH_MAX: it skips entries with a longer name or
	// a longer link target, both counted with a final NUL.
	maxName = 4096

	// alignment of headers and contents, from the beginning of the archive.
	alignment = 4
	// maxAlign leaves half of maxName for the name itself.
	maxAlign = maxName / 2
)

// The fields of a header, in their order after the magic number.
const (
	fieldInode = iota
	fieldMode
	fieldUID
	fieldGID
	fieldLinks
	fieldModTime
	fieldSize
	fieldDevMajor // of the file system the entry was on
	fieldDevMinor
	fieldMajor // of the device the entry is
	fieldMinor
	fieldNameSize
	fieldSum
	fields
)

// The file types in the mode field, see inode(7).
const (
	typeMask    = 0o170000
	typeSocket  = 0o140000
	typeSymlink = 0o120000
	typeRegular = 0o100000
	typeBlock   = 0o060000
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeFIFO    = 0o010000

	modeSetuid = 0o4000
	modeSetgid = 0o2000
	modeSticky = 0o1000
)

// Errors returned, wrapped, by this package.
var (
	// ErrEntry is for a file that the format or the kernel cannot hold.
	ErrEntry = errors.New("cannot be in an initramfs")
	// ErrFormat is for an image the kernel would not unpack.
	ErrFormat = errors.New("not an initramfs")
	// ErrLimit is for an image that unpacks to more than the caller allows.
	ErrLimit = errors.New("unpacks to too much")
)

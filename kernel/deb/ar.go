package deb

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The common archive format of deb(5): eight bytes of magic, then members, each
// a 60-byte header of space-padded ASCII fields followed by the content, padded
// to an even length. Only these header fields matter here:
//
//	0  name, 16 bytes, a trailing slash allowed
//	48 size of the content in bytes, 10 bytes, decimal
//	58 "`\n"
const (
	arMagic  = "!<arch>\n"
	arHeader = 60
)

// maxMembers bounds the members of an archive; a package has three.
const maxMembers = 64

// A member is one file of an ar archive.
type member struct {
	name   string
	offset int64 // of the content in the archive
	size   int64 // bytes
}

// readAr returns the members of the archive of size bytes in r.
func readAr(r io.ReaderAt, size int64) ([]member, error) {
	magic := make([]byte, min(int64(len(arMagic)), max(size, 0)))
	if _, err := r.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if string(magic) != arMagic {
		return nil, fmt.Errorf("%w: begins with %q, want %q", ErrFormat, magic, arMagic)
	}
	var members []member
	hdr := make([]byte, arHeader)
	for off := int64(len(arMagic)); off < size; {
		if len(members) == maxMembers {
			return nil, fmt.Errorf("%w: more than %d members", ErrFormat, maxMembers)
		}
		if size-off < arHeader {
			return nil, fmt.Errorf("%w: member header at byte %d wants %d bytes, found %d", ErrTruncated, off, arHeader, size-off)
		}
		if _, err := r.ReadAt(hdr, off); err != nil && err != io.EOF {
			return nil, err
		}
		off += arHeader
		if string(hdr[58:]) != "`\n" {
			return nil, fmt.Errorf("%w: no member header at byte %d", ErrFormat, off-arHeader)
		}
		name := strings.TrimSuffix(strings.TrimRight(string(hdr[:16]), " "), "/")
		n, err := strconv.ParseUint(strings.TrimRight(string(hdr[48:58]), " "), 10, 62)
		if err != nil {
			return nil, fmt.Errorf("%w: member %q: size %q, want a decimal number", ErrFormat, name, hdr[48:58])
		}
		if int64(n) > size-off {
			return nil, fmt.Errorf("%s: %w: wants %d bytes at byte %d, found %d", name, ErrTruncated, n, off, size-off)
		}
		members = append(members, member{name, off, int64(n)})
		off += int64(n) + int64(n)&1
	}
	return members, nil
}

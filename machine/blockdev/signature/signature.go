// Package signature tells what a disk or a partition holds by its signatures:
// file systems, swap, members of RAID sets and volume groups, encrypted
// volumes.
//
// A signature is a few bytes at a fixed place, from the start or from the end
// of the device, as each format's own documentation or the header files of the
// Linux kernel define it; blkid(8) knows the same ones. A device may have
// several, when one thing was written over another without erasing it. All are
// reported: what is in doubt is for a person to decide.
//
// Nothing is mounted, and nothing is checked beyond the signature.
package signature

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// A Signature is one thing that was found.
//
// Label and UUID are as they lie on the device, which may be bytes that are no
// text; String quotes them.
type Signature struct {
	// Type is the name that mount(8) or blkid(8) use: "ext4", "vfat", "swap",
	// "LVM2_member", "linux_raid_member", "crypto_LUKS" and so on.
	Type  string `json:"type"`
	Label string `json:"label,omitempty"`
	// UUID is as the format writes it: FAT has "1234-ABCD", LVM its own form.
	UUID string `json:"uuid,omitempty"`
}

func (s Signature) String() string {
	if s.Label == "" {
		return s.Type
	}
	return fmt.Sprintf("%s %q", s.Type, s.Label)
}

const (
	// headSize bytes at the start have all signatures but ZFS's, which are in
	// the 128 KiB from 128 KiB.
	headSize = 256 << 10
	// tailSize bytes at the end have those of RAID sets.
	tailSize = 128 << 10
)

// Detect returns the signatures on r, which has size bytes, in the order in
// which they lie. It reads at most 384 KiB.
func Detect(r io.ReaderAt, size int64) ([]Signature, error) {
	head, err := read(r, 0, min(size, headSize))
	if err != nil {
		return nil, err
	}
	start := max(0, size-tailSize)
	tail, err := read(r, start, size-start)
	if err != nil {
		return nil, err
	}
	d := &device{head: head, tail: tail, size: size}
	var found []Signature
	for _, probe := range probes {
		if s, ok := probe(d); ok {
			found = append(found, s)
		}
	}
	return found, nil
}

func read(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	m, err := r.ReadAt(b, off)
	if m < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// A device is what Detect has read of one.
type device struct {
	head, tail []byte
	size       int64
}

// at returns n bytes at off, or nil if they were not read.
func (d *device) at(off int64, n int) []byte {
	if off >= 0 && off+int64(n) <= int64(len(d.head)) {
		return d.head[off : off+int64(n)]
	}
	off -= d.size - int64(len(d.tail))
	if off >= 0 && off+int64(n) <= int64(len(d.tail)) {
		return d.tail[off : off+int64(n)]
	}
	return nil
}

// is reports whether magic lies at off.
func (d *device) is(off int64, magic string) bool {
	return string(d.at(off, len(magic))) == magic
}

// text returns the label of at most n bytes at off, up to a NUL byte and
// without trailing spaces.
func (d *device) text(off int64, n int) string {
	s, _, _ := strings.Cut(string(d.at(off, n)), "\x00")
	return strings.TrimRight(s, " ")
}

// text16 is text for n units of UTF-16, little-endian.
func (d *device) text16(off int64, n int) string {
	b := d.at(off, 2*n)
	units := make([]uint16, 0, n)
	for i := 0; i+1 < len(b) && (b[i] != 0 || b[i+1] != 0); i += 2 {
		units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
	}
	return string(utf16.Decode(units))
}

// uuid returns the UUID of 16 bytes at off, or "" if it is zero.
func (d *device) uuid(off int64) string {
	b := d.at(off, 16)
	if len(b) == 0 || string(b) == string(make([]byte, 16)) {
		return ""
	}
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

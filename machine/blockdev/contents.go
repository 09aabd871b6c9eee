package blockdev

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/machine/blockdev/signature"
)

// Contents is what is on a device.
type Contents struct {
	// Signatures are of what takes the whole device.
	Signatures []signature.Signature `json:"signatures,omitempty"`
	Table      string                `json:"table,omitempty"`   // of partitions: "gpt", "mbr" or ""
	Damaged    string                `json:"damaged,omitempty"` // what is wrong with the table
	Partitions []Part                `json:"partitions,omitempty"`
	// Unknown is set if nothing above was found, but the first or the last MiB
	// is not all zeros.
	Unknown bool `json:"unknown,omitempty"`
}

// A Part is a partition in the table of a device.
type Part struct {
	Number     int                   `json:"number"`
	Label      string                `json:"label,omitempty"`
	Type       string                `json:"type"` // a name or GUID, in an MBR a number like 0x83
	ID         string                `json:"id,omitempty"`
	Start      int64                 `json:"start"` // bytes, as is Size
	Size       int64                 `json:"size"`
	Signatures []signature.Signature `json:"signatures,omitempty"`
}

// A Fingerprint tells whether a device is still the one, and in the state, that
// a plan was made for. It is cheap: what lies between the ends is not read.
type Fingerprint struct {
	Size int64 `json:"size"`
	// DiskSeq is the kernel's count of disks at the time this one appeared or
	// its medium was changed; 0 for files and before Linux 5.15.
	DiskSeq int64  `json:"diskseq,omitempty"`
	Ends    string `json:"ends"` // "sha256:" and the digest of the first and the last MiB
}

// endSize is how much of each end a Fingerprint covers.
const endSize = 1 << 20

// Inspect reads what is on d, and its fingerprint, from the device itself. It
// also learns whether somebody has opened it exclusively. The error wraps
// fs.ErrPermission if d must not be read.
func (h Host) Inspect(d *Device) error {
	d.Contents, d.Fingerprint = nil, nil
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return explain(err)
	}
	defer f.Close()
	c, err := readContents(f, d.Size, max(512, d.Sector))
	if err != nil {
		return fmt.Errorf("%s: reading what is on it: %w", d.Path, err)
	}
	print, err := fingerprint(f, d.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	if c.Signatures == nil && c.Table == "" && print.Ends != zeros(d.Size) {
		c.Unknown = true
	}
	d.Contents, d.Fingerprint = c, print
	if len(d.Users) == 0 && nodeNumber(d.Path) != "" {
		x, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_EXCL, 0)
		if errors.Is(err, syscall.EBUSY) {
			d.Users = []User{{Use: Exclusive, Device: d.Name}}
		} else if err == nil {
			x.Close()
		}
	}
	return nil
}

func readContents(r io.ReaderAt, size, sector int64) (*Contents, error) {
	var c Contents
	var err error
	if c.Signatures, err = signature.Detect(r, size); err != nil {
		return nil, err
	}
	table, err := gpt.Read(r, size)
	switch {
	case err == nil:
		c.Table = "gpt"
		if table.Damaged != nil {
			c.Damaged = table.Damaged.Error()
		}
		for i, p := range table.Partitions {
			if p.Size > 0 {
				c.Partitions = append(c.Partitions, Part{Number: i + 1, Label: clean(p.Name),
					Type: gpt.TypeName(p.Type), ID: p.ID.String(), Start: p.Start, Size: p.Size})
			}
		}
	case errors.Is(err, gpt.ErrDamaged):
		c.Table, c.Damaged = "gpt", err.Error()
	case errors.Is(err, gpt.ErrNone):
		if c.Partitions, err = readMBR(r, size, sector); err != nil {
			return nil, err
		}
		if c.Partitions != nil {
			c.Table = "mbr"
		}
	default:
		return nil, err
	}
	for i := range c.Partitions {
		p := &c.Partitions[i]
		if p.Start >= size {
			continue
		}
		n := min(p.Size, size-p.Start)
		if p.Signatures, err = signature.Detect(io.NewSectionReader(r, p.Start, n), n); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// clean replaces what could do harm in a terminal.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || 0x7f <= c && c < 0xa0 {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
}

// fingerprint reads the ends of an open device of size bytes.
func fingerprint(f *os.File, size int64) (*Fingerprint, error) {
	print := &Fingerprint{Size: size}
	// What another path wrote, like the file behind a loop device, may not be
	// in the cache. Best effort: f need not be a device.
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	if seq, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKGETDISKSEQ); err == nil {
		print.DiskSeq = int64(seq)
	}
	n := min(size, endSize)
	sum := sha256.New()
	for _, off := range []int64{0, size - n} {
		if _, err := io.Copy(sum, io.NewSectionReader(f, off, n)); err != nil {
			return nil, err
		}
	}
	print.Ends = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return print, nil
}

// zeros returns the Ends of a device of size bytes that holds nothing.
func zeros(size int64) string {
	sum := sha256.Sum256(make([]byte, 2*min(size, endSize)))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// differs says in what a device that was expected to be p is another one.
func (p *Fingerprint) differs(now *Fingerprint) string {
	switch {
	case p.Size != now.Size:
		return fmt.Sprintf("it has %d bytes and had %d", now.Size, p.Size)
	case p.DiskSeq != now.DiskSeq:
		return fmt.Sprintf("another disk or medium has its name (disk sequence number %d, was %d)", now.DiskSeq, p.DiskSeq)
	case p.Ends != now.Ends:
		return "its first or last MiB was written"
	}
	return ""
}

const (
	maxLogical = 128 // partitions in a chain
	mbrEntries = 446
)

// readMBR reads the partition table of PCs before UEFI: four entries of 16
// bytes at the end of sector 0, of which one may be a chain of tables with a
// partition each. It returns nil if there is no plausible one.
func readMBR(r io.ReaderAt, size, sector int64) ([]Part, error) {
	le32 := func(b []byte) int64 { return int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16 | int64(b[3])<<24 }
	sectorAt := func(off int64) ([]byte, error) {
		b := make([]byte, 512)
		if off+512 > size {
			return nil, nil
		}
		_, err := r.ReadAt(b, off)
		if err == nil && !bytes.Equal(b[510:], []byte{0x55, 0xaa}) {
			return nil, nil
		}
		return b, err
	}
	extended := func(t byte) bool { return t == 0x05 || t == 0x0f || t == 0x85 }
	entry := func(b []byte, n, i int, base int64) Part {
		e := b[mbrEntries+16*i:][:16]
		return Part{Number: n, Type: fmt.Sprintf("0x%02x", e[4]), Start: base + le32(e[8:])*sector, Size: le32(e[12:]) * sector}
	}
	b, err := sectorAt(0)
	if b == nil {
		return nil, err
	}
	var parts []Part
	var chain int64
	for i := range 4 {
		// A boot sector of FAT or NTFS, which has the same last bytes, has
		// code in this place.
		e := b[mbrEntries+16*i:][:16]
		if e[0]&^0x80 != 0 {
			return nil, nil
		}
		p := entry(b, i+1, i, 0)
		if e[4] == 0 || p.Size == 0 {
			continue
		}
		if p.Start >= size {
			return nil, nil
		}
		parts = append(parts, p)
		if extended(e[4]) {
			chain = p.Start
		}
	}
	for next, n := chain, 5; next != 0 && n < 5+maxLogical; n++ {
		b, err := sectorAt(next)
		if b == nil {
			return parts, err
		}
		if p := entry(b, n, 0, next); b[mbrEntries+4] != 0 && p.Size > 0 && p.Start < size {
			parts = append(parts, p)
		}
		link := entry(b, n, 1, chain)
		if !extended(b[mbrEntries+16+4]) || link.Start <= next {
			break // backwards would be a loop
		}
		next = link.Start
	}
	return parts, nil
}

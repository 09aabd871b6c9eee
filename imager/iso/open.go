package iso

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Limits of what Open accepts, so that a hostile image cannot cost more than
// some memory.
const (
	maxDescriptors = 64
	maxPaths       = 1 << 20
	maxDirsBytes   = 256 << 20 // of all directories
	maxRestBytes   = 256 << 20 // of all continuations of entries
	maxRestParts   = 32        // of one record, as Linux
	maxCatalog     = 64        // entries
	maxName        = 255
	maxFileParts   = 1 << 16 // extents of all files that have more than one
)

// FileSystem is what Open found.
type FileSystem struct {
	VolumeID string
	Created  int64 // seconds since 1970, 0 if it is not known
	Size     int64 // of the volume in bytes
	// RockRidge says that names and modes are real. Otherwise names are in small
	// letters, without version, and files have mode 0444.
	RockRidge bool

	// Boot lists the entries of the boot catalog.
	Boot []BootImage

	// Tree holds all files. Contents are sections of the source given to Open,
	// read when they are asked for.
	Tree *tree.Tree
}

// BootImage is an entry of a boot catalog.
type BootImage struct {
	Platform byte // 0 is BIOS, 0xEF is UEFI
	Bootable bool
	Media    byte  // 0 is no emulation of a disk
	Offset   int64 // in bytes, from the beginning of the ISO image
	// Size is how many bytes the firmware loads or, for UEFI, the size of the
	// FAT file system, where 0 is up to the end.
	Size int64
}

// reader reads an image.
type reader struct {
	src       extent.Source
	sectors   int64 // of the volume
	rockRidge bool
	skip      int // bytes before the entries of each system use

	paths     int
	parts     int
	dirBytes  int64
	restBytes int64
	seen      map[int64]bool // directories, by sector
	files     map[fileKey]*tree.Inode
	fs        *FileSystem
}

// fileKey identifies a file that has several names.
type fileKey struct {
	serial uint32
	at     int64
	size   int64
}

// Open reads the descriptors, the boot catalog and the directories of the image
// in src. It fails with ErrFormat if there is none, with ErrCorrupt for damage
// and for more than a million files, and with ErrUnsupported for contents that
// are interleaved or compressed (zisofs), or in other volumes of a set.
func Open(src extent.Source) (*FileSystem, error) {
	x := &reader{src: src, seen: map[int64]bool{}, files: map[fileKey]*tree.Inode{}, fs: &FileSystem{Tree: tree.New()}}
	root, err := x.descriptors()
	if err != nil {
		return nil, err
	}
	if err := x.walk(root); err != nil {
		return nil, err
	}
	return x.fs, nil
}

// readAt fills p from byte off of the image.
func (x *reader) readAt(p []byte, off int64) error {
	n, err := x.src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		return corrupt("%d bytes at %d are beyond its end", len(p), off)
	}
	return err
}

// descriptors reads the volume descriptors and what they lead to, and returns
// the record of the root directory.
func (x *reader) descriptors() (*record, error) {
	var root *record
	d := make([]byte, SectorSize)
	for i := int64(0); ; i++ {
		if i == maxDescriptors {
			return nil, corrupt("more than %d volume descriptors", maxDescriptors)
		}
		off := (descriptors + i) * SectorSize
		if i == 0 && x.src.Size() < off+SectorSize {
			return nil, fmt.Errorf("%w: %d bytes", ErrFormat, x.src.Size())
		}
		if err := x.readAt(d, off); err != nil {
			return nil, err
		}
		if string(d[1:6]) != standardID {
			if i == 0 {
				return nil, fmt.Errorf("%w: no %q at byte %d", ErrFormat, standardID, off+1)
			}
			return nil, corrupt("volume descriptor %d begins with % x, want %q from its second byte", i, d[:6], standardID)
		}
		switch {
		case d[0] == terminator:
			if root == nil {
				return nil, corrupt("no primary volume descriptor")
			}
			return root, nil
		case d[0] == primary && root == nil:
			var err error
			if root, err = x.primary(d); err != nil {
				return nil, err
			}
		case d[0] == bootRecord && strings.TrimRight(string(d[7:39]), "\x00 ") == elTorito:
			if err := x.catalog(int64(le.Uint32(d[atCatalog:]))); err != nil {
				return nil, fmt.Errorf("boot catalog: %w", err)
			}
		}
	}
}

// primary reads the primary volume descriptor.
func (x *reader) primary(d []byte) (*record, error) {
	if n := le.Uint16(d[atBlockSize:]); n != SectorSize {
		return nil, unsupported("logical blocks of %d bytes, want %d", n, SectorSize)
	}
	x.sectors = int64(le.Uint32(d[atVolumeSize:]))
	if have := x.src.Size() / SectorSize; x.sectors > have {
		return nil, corrupt("a volume of %d bytes, but the image has only %d", x.sectors*SectorSize, x.src.Size())
	}
	x.fs.VolumeID = strings.TrimRight(string(d[atVolumeID:atVolumeID+32]), "\x00 ")
	x.fs.Size = x.sectors * SectorSize
	x.fs.Created = parseLongDate(d[atCreated : atCreated+17])
	root, err := parseRecord(d[atRoot : atRoot+34])
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if root.flags&flagDir == 0 {
		return nil, corrupt("the root is not a directory")
	}
	return root, nil
}

// catalog reads the boot catalog, which may be after the end of the volume.
func (x *reader) catalog(at int64) error {
	b := make([]byte, SectorSize)
	if err := x.readAt(b, at*SectorSize); err != nil {
		return err
	}
	var sum uint16
	for i := 0; i < catalogEntry; i += 2 {
		sum += le.Uint16(b[i:])
	}
	if b[0] != 1 || b[30] != 0x55 || b[31] != 0xAA || sum != 0 {
		return corrupt("it begins with % x, which is no validation entry", b[:catalogEntry])
	}
	platform := b[1]
	left, last := 1, false
	for b = b[catalogEntry:]; len(b) >= catalogEntry; b = b[catalogEntry:] {
		switch e := b[:catalogEntry]; {
		case left > 0 && e[0] == entryExtra:
		case left > 0:
			left--
			x.bootEntry(e, platform)
		case !last && (e[0] == entryHeader || e[0] == entryLast):
			platform, last = e[1], e[0] == entryLast
			if left = int(le.Uint16(e[2:])); left > maxCatalog {
				return corrupt("a section of %d entries, want at most %d", left, maxCatalog)
			}
		default:
			return nil
		}
	}
	return nil
}

func (x *reader) bootEntry(e []byte, platform byte) {
	b := BootImage{
		Platform: platform, Bootable: e[0] == entryBootable, Media: e[1] & 0xF,
		Size: int64(le.Uint16(e[6:])) * diskSector, Offset: int64(le.Uint32(e[8:])) * SectorSize,
	}
	if platform == platformUEFI && b.Size == diskSector { // as 0 (UEFI, 13.3.2.1)
		b.Size = 0
	}
	x.fs.Boot = append(x.fs.Boot, b)
}

// record is a directory record.
type record struct {
	at, size int64 // sector and bytes
	mtime    int64
	flags    byte
	inter    bool // interleaved
	volume   uint16
	id       []byte
	use      []byte
	len      int
}

// parseRecord reads the directory record that b begins with.
func parseRecord(b []byte) (*record, error) {
	n := int(b[0])
	if n < recordFixed+1 || n > len(b) {
		return nil, corrupt("a directory record of %d bytes, where %d are left in the sector", n, len(b))
	}
	b = b[:n]
	idLen := int(b[atIDLength])
	if idLen == 0 || recordFixed+idLen > n {
		return nil, corrupt("an identifier of %d bytes in a directory record of %d", idLen, n)
	}
	r := &record{
		at: int64(le.Uint32(b[atExtent:])) + int64(b[1]), size: int64(le.Uint32(b[atLength:])),
		mtime: parseShortDate(b[atDate:]), flags: b[atFlags], inter: b[atUnitSize] != 0 || b[atUnitSize+1] != 0,
		volume: le.Uint16(b[atVolume:]), id: b[recordFixed:][:idLen], len: n,
	}
	if at := recordSize(idLen); at < n {
		r.use = b[at:]
	}
	return r, nil
}

// parseShortDate reads the time of a directory record: 7 bytes, of which the
// last is the offset from UTC in quarters of an hour.
func parseShortDate(b []byte) int64 {
	if bytes.Equal(b[:6], make([]byte, 6)) {
		return 0
	}
	t := time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, time.UTC)
	return t.Unix() - int64(int8(b[6]))*15*60
}

// parseLongDate reads a time of 17 bytes, or returns 0 if it is not set.
func parseLongDate(b []byte) int64 {
	t, err := time.Parse("20060102150405", string(b[:14]))
	if err != nil {
		return 0
	}
	return t.Unix() - int64(int8(b[16]))*15*60
}

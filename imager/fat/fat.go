// Package fat lays out FAT32 file systems from file trees, once, without writing
// anything: Build returns an extent map in which the contents of files stay
// where they are and everything unused is a hole. Open reads FAT12, FAT16 and
// FAT32 file systems back, whoever made them, and Edit changes FAT16 and FAT32
// in place.
//
// The format is Microsoft's "FAT: General Overview of On-Disk Format", version
// 1.03 of 2000, to which the UEFI specification refers in section 13.3. A
// partition is, in this order:
//
//	sector 0   boot sector: the parameters of all that follows
//	sector 1   FSInfo: how many clusters are free
//	sector 6   copies of both
//	then       the file allocation table (FAT), twice: for each cluster a 32-bit
//	           number, the next cluster of the same file or an end mark
//	then       the clusters, numbered from 2; the root directory begins in 2
//
// A directory is a file of 32-byte entries. An entry has a name of 8 and 3 bytes;
// a name that is more than that, or has small letters, is in UTF-16 in up to 20
// entries before it ("long file name", VFAT). All integers are little-endian.
//
// What makes a file system FAT32 is nothing but the number of its clusters: at
// least 65,525. With fewer, firmware takes it for FAT16 and does not boot from
// it, whatever else it says.
//
// Decisions of Build's own:
//
//   - Clusters are as large as the number of clusters allows, up to 4 KiB; beyond
//     8 GiB they are 8, 16 and 32 KiB, as mkfs.fat makes them. They are smaller
//     where the tree would not fit otherwise.
//   - Directories come first, then the files, each contiguous and in the order of
//     the tree. The first cluster is aligned to 4 KiB and to its own size, and so
//     is the first one of every file of 64 KiB or more.
//   - All times are Options.Time. Of a mode only the type and the absence of all
//     write permissions count; owners and extended attributes are dropped, and
//     of a hard link every name is a file of its own.
//
// Holes must read as zeros once the map is written: write it to a new file or
// to a device that was zeroed.
//
// # Power cuts
//
// An Editor counts on no more than this of a device: each 512 bytes are written
// whole or not at all, and what was written before a Sync is there when it
// returns; between two Syncs writes arrive in any order. A cut at any point
// leaves files that are not being changed as they are, and:
//
//   - Create: contents, directories and both FATs are written and synced, then the
//     sector with the entry, or the link to the cluster that its directory grows
//     by. The name does not exist or has all of its content.
//   - Rename: one sector has the old name and then the new one. If it does not
//     have room for both, there may be two names of the one file.
//   - Replace: the one sector with the entry of the name that is replaced has
//     the old content and then the new one. If the other name is not in that
//     sector too, there may be two names of the new content.
//   - Remove: the sector with the entry, a Sync, then the FATs.
//
// What a cut leaves otherwise is clusters that belong to nothing, FATs that
// differ, a wrong count in FSInfo and parts of long names without a short one.
// Edit takes for free whatever no directory reaches, believes the first FAT
// unless it cannot be read, and the first change corrects the rest. Open and Edit
// accept two names of a file in one directory; a checker such as fsck.fat would
// empty one of them, so a cut Rename or Replace is to be called again first.
package fat

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Errors returned, wrapped, by this package.
var (
	ErrOptions     = errors.New("invalid option")
	ErrUnsupported = errors.New("not possible in FAT")
	ErrFormat      = errors.New("not a FAT file system")
	ErrCorrupt     = errors.New("corrupt FAT file system")
)

// Options are the properties of a file system that do not follow from its tree.
type Options struct {
	// Size of the partition in bytes, a multiple of SectorSize and less than
	// 2 TiB. MinSize does not use it.
	Size       int64
	SectorSize int // of the disk, 512 or 4096 bytes

	// Label is at most 11 bytes of ASCII without small letters; it may be empty.
	Label    string
	VolumeID uint32 // the "serial number", which blkid calls UUID

	// Time of everything, in seconds since 1970. FAT has the years 1980 to 2107
	// and steps of 2 seconds; what is outside becomes the nearest that is inside.
	// It is stored as UTC, although the format does not say so.
	Time int64

	HiddenSectors uint32 // sectors of the disk before the partition
}

// SpaceError is returned, wrapped, when there is no room: by Build for a tree and
// by the methods of Editor for a file.
type SpaceError struct {
	// Need is, in bytes, the smallest Options.Size that would do, as MinSize; or
	// the clusters that a change takes.
	Need int64
	Have int64 // Options.Size; or Editor.Free

	inside bool // said by an Editor
}

func (e *SpaceError) Error() string {
	if e.inside {
		return fmt.Sprintf("no space: %d bytes are needed and %d are free; remove a file first", e.Need, e.Have)
	}
	return fmt.Sprintf("no space: it needs a FAT32 partition of %d bytes, this one has %d; enlarge the partition or put less into it", e.Need, e.Have)
}

// Build lays out t in a file system of opts.Size bytes. No content is read. It
// fails with a *SpaceError when t does not fit or when the size is too small for
// FAT32 at all, and with ErrUnsupported, naming the path, for what the format
// cannot represent.
func Build(t *tree.Tree, opts Options) (*extent.Map, error) {
	v, err := collect(t, opts)
	if err != nil {
		return nil, err
	}
	sector := int64(opts.SectorSize)
	switch {
	case opts.Size < 0 || opts.Size%sector != 0:
		return nil, fmt.Errorf("%w: Size is %d bytes, not a multiple of the sector size %d", ErrOptions, opts.Size, sector)
	case opts.Size > maxSize:
		return nil, fmt.Errorf("%w: Size is %d bytes, the largest is %d (2 TiB less a sector)", ErrOptions, opts.Size, int64(maxSize))
	}
	g, ok := v.fit(opts.Size / sector)
	if !ok {
		need, err := v.minSize()
		if err != nil {
			return nil, err
		}
		return nil, &SpaceError{Need: need, Have: opts.Size}
	}
	return v.write(g)
}

// MinSize returns the smallest Size that Build accepts for t with these options;
// opts.Size is ignored. It is never less than what FAT32 needs: a little over
// 32 MiB with sectors of 512 bytes and 256 MiB with 4096.
func MinSize(t *tree.Tree, opts Options) (int64, error) {
	v, err := collect(t, opts)
	if err != nil {
		return 0, err
	}
	return v.minSize()
}

const labelSize = 11

func (o Options) check() error {
	if o.SectorSize != 512 && o.SectorSize != 4096 {
		return fmt.Errorf("%w: SectorSize is %d, want 512 or 4096", ErrOptions, o.SectorSize)
	}
	if len(o.Label) > labelSize {
		return fmt.Errorf("%w: Label %q has %d bytes, at most %d fit", ErrOptions, o.Label, len(o.Label), labelSize)
	}
	if strings.Trim(o.Label, " ") != o.Label {
		return fmt.Errorf("%w: Label %q begins or ends with a space", ErrOptions, o.Label)
	}
	for i := range len(o.Label) {
		if c := o.Label[i]; c != ' ' && !isShort(c) {
			return fmt.Errorf("%w: Label %q has %q; use A to Z, 0 to 9 and any of %s", ErrOptions, o.Label, c, shortPunctuation)
		}
	}
	return nil
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

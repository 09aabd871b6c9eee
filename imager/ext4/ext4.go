// Package ext4 lays out ext4 file systems from file trees, once, without
// writing anything: Build returns an extent map in which the contents of files
// stay where they are and everything unused is a hole. Open reads file systems
// back, those of mke2fs too. Edit changes the contents of files in place, within
// the blocks they have (Options.Preallocate), so that a cut at any time leaves a
// set of files old, empty or new.
//
// The format is described by the Linux kernel's Documentation/filesystems/ext4
// and implemented by fs/ext4 and e2fsprogs. In short: the file system is a
// sequence of blocks, here always of 4096 bytes, cut into groups of 32768
// blocks (128 MiB). A superblock at byte 1024 says how many; the group
// descriptors that follow it say where each group's block bitmap, inode bitmap
// and inode table are. Copies of both lie at the start of groups 1 and the
// powers of 3, 5 and 7 (sparse_super), followed by room into which the
// descriptors can grow (resize_inode). An inode is 256 bytes; it maps its
// file's blocks with a tree of extents whose root is inside the inode. All
// integers are little-endian, except in the journal. Nearly every structure
// carries a CRC-32C (metadata_csum).
//
// What Build writes is what mke2fs 1.47 writes by default, with these
// decisions of its own:
//
//   - The metadata of 16 groups lies together in the first of them (flex_bg).
//     Bitmaps of groups that hold nothing are not written (BLOCK_UNINIT,
//     INODE_UNINIT), and inode tables are holes marked as zeroed
//     (INODE_ZEROED), so that the map of an empty file system is small and the
//     kernel does not fill it later.
//   - One inode per 16 KiB from 128 MiB on, whatever the size; below, 8192 but
//     not more than blocks. The number per group stays when the file system is
//     grown. More only if the tree has more files.
//   - 1 % of the blocks is reserved for root, not 5 %; a file system that the
//     kernel grows keeps the number, not the share.
//   - It can be grown while mounted, to any size: up to 1024 times its own
//     within the descriptors reserved, beyond that with meta_bg, to which the
//     kernel converts by itself.
//   - Contents are placed one after the other from the start, each contiguous
//     as far as metadata allows. Directories are not hashed.
//
// Holes must read as zeros once the map is written: write it to a new file or
// to a device that was zeroed.
package ext4

import (
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// NoJournal as Options.Journal builds a file system without one.
const NoJournal = -1

// maxSize is the largest file system in bytes: the number of blocks stays within
// 32 bits, as the resize inode needs.
const maxSize = 16<<40 - blockSize

// Errors returned, wrapped, by Build, MinSize and Open.
var (
	ErrOptions     = errors.New("ext4: invalid option")
	ErrUnsupported = errors.New("ext4: not supported")
	ErrCorrupt     = errors.New("ext4: corrupt file system")
)

// Options are the properties of a file system that do not follow from its tree.
type Options struct {
	// Size of the file system in bytes, less than 16 TiB. It is rounded down to
	// whole blocks; a last group too short for its metadata stays unused.
	Size int64

	// Journal is the size of the journal in bytes: 0 for what mke2fs chooses
	// (none below 8 MiB, 4 MiB below 128 MiB, 16 MiB below 1 GiB, …, 1 GiB
	// from 128 GiB on), otherwise at least 4 MiB, or NoJournal. A file system
	// that is grown keeps the journal it has, which limits how fast it can
	// write: give one that will be grown what its later size deserves.
	Journal int64

	// Preallocate is how many bytes the files with these paths have blocks for,
	// their content included. What exceeds the content is allocated but
	// unwritten, as by fallocate(2) with FALLOC_FL_KEEP_SIZE: room for
	// Editor.Rewrite.
	Preallocate map[string]int64

	Label string   // at most 16 bytes
	UUID  [16]byte // also seeds the checksums and the kernel's directory hash

	// Time in seconds since 1970 of the file system and of the inodes that are
	// not in the tree: the journal, the resize inode, lost+found.
	Time int64
}

// SpaceError is returned, wrapped, by Build when the tree does not fit, and by
// Editor when contents do not fit the blocks of their files.
type SpaceError struct {
	Path string // of the file or directory whose blocks are too few, or "" for the file system
	Need int64  // bytes: the smallest Options.Size that would do, as MinSize, or of blocks
	Have int64  // bytes: Options.Size, or of blocks
}

func (e *SpaceError) Error() string {
	if e.Path != "" {
		return fmt.Sprintf("ext4: no space: the contents of %s need blocks of %d bytes, it has %d", e.Path, e.Need, e.Have)
	}
	return fmt.Sprintf("ext4: no space: contents and metadata need a file system of %d bytes, this one has %d", e.Need, e.Have)
}

// Build lays out t in a file system of opts.Size bytes. No content is read. It
// fails with a *SpaceError when t does not fit, and with ErrUnsupported, naming
// the path, for what the format cannot represent.
func Build(t *tree.Tree, opts Options) (*extent.Map, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.Size > maxSize {
		return nil, fmt.Errorf("%w: Size is %d bytes, the largest is %d (16 TiB less a block)", ErrOptions, opts.Size, int64(maxSize))
	}
	v, err := collect(t, opts)
	if err != nil {
		return nil, err
	}
	l := v.layOut(opts.Size)
	if l.end > l.blocks {
		need, err := v.minSize()
		if err != nil {
			return nil, err
		}
		return nil, &SpaceError{Need: need, Have: opts.Size}
	}
	return v.write(l)
}

// MinSize returns the smallest Size, a multiple of 4096, that Build accepts for
// t with these options; opts.Size is ignored. It reads no content and costs a
// few passes over the list of files.
func MinSize(t *tree.Tree, opts Options) (int64, error) {
	if err := opts.check(); err != nil {
		return 0, err
	}
	v, err := collect(t, opts)
	if err != nil {
		return 0, err
	}
	return v.minSize()
}

func (o Options) check() error {
	switch {
	case len(o.Label) > 16:
		return fmt.Errorf("%w: Label %q has %d bytes, at most 16 fit", ErrOptions, o.Label, len(o.Label))
	case o.Size < 0:
		return fmt.Errorf("%w: Size is %d bytes", ErrOptions, o.Size)
	case o.Journal != 0 && o.Journal != NoJournal && o.Journal/blockSize < minJournal:
		return fmt.Errorf("%w: Journal is %d bytes, the smallest is %d", ErrOptions, o.Journal, minJournal*blockSize)
	case o.Journal > maxJournal*blockSize:
		return fmt.Errorf("%w: Journal is %d bytes, the largest is %d", ErrOptions, o.Journal, int64(maxJournal*blockSize))
	case o.Time < 0 || o.Time > maxTime:
		return fmt.Errorf("%w: Time %d is not between 0 and %d", ErrOptions, o.Time, int64(maxTime))
	}
	return nil
}

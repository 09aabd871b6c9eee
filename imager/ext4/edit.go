package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Device is what a file system is edited on. Sync returns when everything written
// before is on the medium; until then it may get there in any order or not at
// all. Sectors of 512 bytes get there whole.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// sectorSize is what is written at once when the other files' metadata is beside
// it: a cut never leaves a part of it.
const sectorSize = 512

// Limits of a file system that is edited.
const (
	maxEditFiles   = 4096 // and directories
	maxEditExtents = 1 << 16
)

// Editor changes the contents of files in a file system that nobody has mounted,
// and nothing else: blocks stay allocated, and superblock, descriptors, bitmaps
// and directories stay as they are, so that there is no journal to write.
type Editor struct {
	*reader
	dev    Device
	compat uint32 // features
}

// Edit returns an Editor of the file system in the first size bytes of dev. It
// fails with ErrUnsupported if the file system is not like those of Build, in
// use, or was not unmounted cleanly, and with ErrCorrupt if it is damaged.
func Edit(dev Device, size int64) (*Editor, error) { return edit(dev, size, true) }

func edit(dev Device, size int64, verify bool) (*Editor, error) {
	e := &Editor{reader: &reader{r: dev, verify: verify}, dev: dev}
	if err := e.super(size, &FileSystem{}); err != nil {
		return nil, err
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	if _, err := e.load(); err != nil {
		return nil, err
	}
	return e, nil
}

// check wants the properties that Build gives a file system.
func (e *Editor) check() error {
	const (
		compat   = compatJournal | compatAttrs | compatResizeInode | compatDirIndex
		incompat = incompatFileType | incompatExtents | incompat64Bit | incompatFlexBG
		ro       = roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roChecksums
	)
	le := binary.LittleEndian
	b := make([]byte, superSize)
	if err := e.readAt(b, superAt); err != nil {
		return err
	}
	for _, f := range []struct {
		kind          string
		at            int
		allowed, need uint32
	}{
		{"compatible", 92, compat, 0},
		{"incompatible", 96, incompat, incompatFileType | incompatExtents | incompat64Bit},
		{"read-only compatible", 100, ro, roSparseSuper | roChecksums},
	} {
		if found := le.Uint32(b[f.at:]); found&^f.allowed != 0 || found&f.need != f.need {
			return unsupported("%s features %#x cannot be edited, want %#x; make the file system anew", f.kind, found, f.allowed)
		}
	}
	e.compat = le.Uint32(b[92:])
	if n := le.Uint32(b[224:]); e.compat&compatJournal != 0 && n != inoJournal {
		return unsupported("journal in inode %d, want %d", n, inoJournal)
	}
	if state := le.Uint16(b[58:]); state != 1 {
		return unsupported("state %#x: it is mounted or has errors; unmount it and run e2fsck", state)
	}
	if e.blockSize != blockSize || e.inodeSize != inodeSize || e.descSize != descSize || e.groupBlocks != groupBlocks {
		return unsupported("blocks of %d bytes, inodes of %d, descriptors of %d and groups of %d blocks cannot be edited, want %d, %d, %d and %d",
			e.blockSize, e.inodeSize, e.descSize, e.groupBlocks, blockSize, inodeSize, descSize, groupBlocks)
	}
	return nil
}

// file is a file or directory as it is on disk.
type file struct {
	name    string
	ino     uint32
	raw     []byte // checksum zeroed
	extents []mapping
	index   []int64 // blocks of the extent tree
	attr    int64   // block
}

func (f *file) isFile() bool { return binary.LittleEndian.Uint16(f.raw)&modeType == modeRegular }

// load reads all inodes that have a name.
func (e *Editor) load() (map[string]*file, error) {
	files := map[string]*file{}
	seen := map[uint32]bool{}
	w := &walker{reader: e.reader}
	extents := 0
	queue := []found{{".", inoRoot}}
	for ; len(queue) > 0; queue = queue[1:] {
		name, ino := queue[0].name, queue[0].ino
		f, err := e.file(name, ino)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		files[name] = f
		if extents += len(f.extents) + len(f.index); extents > maxEditExtents {
			return nil, unsupported("more than %d extents cannot be edited", maxEditExtents)
		}
		if binary.LittleEndian.Uint16(f.raw)&modeType != modeDir {
			continue
		}
		if seen[ino] {
			return nil, corrupt("%s: directory inode %d has two names", name, ino)
		}
		seen[ino] = true
		entries, err := w.entries(ino, f.raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, child := range entries {
			child.name = path.Join(name, child.name)
			if queue = append(queue, child); len(queue)+len(files) > maxEditFiles {
				return nil, unsupported("more than %d files cannot be edited", maxEditFiles)
			}
		}
	}
	return files, nil
}

func (e *Editor) file(name string, ino uint32) (*file, error) {
	le := binary.LittleEndian
	raw, err := e.rawInode(ino)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, ino: ino, raw: raw, attr: int64(le.Uint32(raw[104:])) | int64(le.Uint16(raw[118:]))<<32}
	if le.Uint32(raw[32:])&flagExtents != 0 {
		c := content{reader: e.reader, ino: ino, raw: raw, size: fileSize(raw)}
		if c.load(); c.err != nil {
			return nil, c.err
		}
		f.extents, f.index = c.runs, c.index
	} else if m := le.Uint16(raw) & modeType; m == modeRegular || m == modeDir {
		return nil, unsupported("inode %d has no extents (a file of ext2 or ext3)", ino)
	}
	return f, nil
}

// editable returns a regular file that can be changed without changing anything
// else.
func editable(files map[string]*file, name string) (*file, error) {
	f := files[name]
	switch {
	case f == nil:
		return nil, fmt.Errorf("ext4: %s: %w", name, fs.ErrNotExist)
	case !f.isFile():
		return nil, unsupported("%s is not a regular file", name)
	}
	le := binary.LittleEndian
	if links := le.Uint16(f.raw[26:]); links != 1 {
		return nil, unsupported("%s has %d names, only a file with one can be edited", name, links)
	}
	if flags := le.Uint32(f.raw[32:]); flags != flagExtents || f.attr != 0 {
		return nil, unsupported("%s has flags %#x and extended attributes in block %d, only %#x and 0 can be edited", name, flags, f.attr, flagExtents)
	}
	return f, nil
}

// Content returns the content of a file, whose path is relative to the root. It
// is valid until the file is changed.
func (e *Editor) Content(name string) (tree.Content, error) {
	files, err := e.load()
	if err != nil {
		return nil, err
	}
	f := files[name]
	if f == nil {
		return nil, fmt.Errorf("ext4: %s: %w", name, fs.ErrNotExist)
	}
	if !f.isFile() {
		return nil, unsupported("%s is not a regular file", name)
	}
	return &content{reader: e.reader, ino: f.ino, raw: f.raw, size: fileSize(f.raw)}, nil
}

// Overwrite replaces the content of a file of at most 4096 bytes with as many
// others, in place. It writes the 512-byte sectors that differ, the first one
// last, each with a Sync: if only one differs, the file is old or new.
func (e *Editor) Overwrite(name string, data []byte) error {
	files, err := e.load()
	if err != nil {
		return err
	}
	f, err := editable(files, name)
	if err != nil {
		return err
	}
	if size := fileSize(f.raw); size != int64(len(data)) || size > blockSize || size == 0 {
		return unsupported("%s has %d bytes and gets %d, want as many, and 1 to %d", name, size, len(data), blockSize)
	}
	if len(f.extents) != 1 || f.extents[0].logical != 0 || f.extents[0].unwritten || len(f.index) > 0 {
		return unsupported("%s has a block that was never written", name)
	}
	at := f.extents[0].start
	if err := e.guard(files, []run{{at, 1}}, f); err != nil {
		return err
	}
	old, err := e.block(at)
	if err != nil {
		return err
	}
	b := bytes.Clone(old)
	copy(b, data)
	for i := blockSize - sectorSize; i >= 0; i -= sectorSize {
		if sector := b[i:][:sectorSize]; !bytes.Equal(sector, old[i:][:sectorSize]) {
			if err := e.write(sector, at*blockSize+int64(i)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := e.sync(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (e *Editor) write(b []byte, off int64) error {
	n, err := e.dev.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("ext4: write %d bytes at %d: %w", len(b), off, err)
	}
	return nil
}

func (e *Editor) sync() error {
	if err := e.dev.Sync(); err != nil {
		return fmt.Errorf("ext4: sync: %w", err)
	}
	return nil
}

// guard fails if one of the blocks, which mine are said to own, or an inode table
// belongs to anything else as well. Other files may share blocks, as those of a
// directory do in the middle of Rewrite.
func (e *Editor) guard(files map[string]*file, blocks []run, mine ...*file) error {
	metadata, err := e.metadata()
	if err != nil {
		return err
	}
	inodes := map[uint32]bool{}
	for _, f := range mine {
		if inodes[f.ino] {
			return corrupt("inode %d has two names", f.ino)
		}
		inodes[f.ino] = true
	}
	var others []run
	for _, f := range files {
		if slices.Contains(mine, f) {
			continue
		}
		if inodes[f.ino] {
			return corrupt("inode %d is %s and another file", f.ino, f.name)
		}
		others = append(others, f.owned()...)
	}
	if e.compat&compatJournal != 0 {
		journal, err := e.file("journal", inoJournal)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		others = append(others, journal.owned()...)
	}
	if e.compat&compatResizeInode != 0 {
		resize, err := e.rawInode(inoResize)
		if err != nil {
			return err
		}
		others = append(others, run{int64(binary.LittleEndian.Uint32(resize[blockMapAt+13*4:])), 1})
	}
	others, metadata = union(others), union(metadata)
	for _, pair := range [][2][]run{{union(blocks), others}, {union(blocks), metadata}, {others, metadata}} {
		if block := intersect(pair[0], pair[1]); block != 0 {
			return corrupt("block %d belongs to two; run e2fsck", block)
		}
	}
	return nil
}

// owned returns the blocks of a file.
func (f *file) owned() []run {
	var out []run
	for _, m := range f.extents {
		out = append(out, m.run)
	}
	for _, b := range f.index {
		out = append(out, run{b, 1})
	}
	if f.attr != 0 {
		out = append(out, run{f.attr, 1})
	}
	return out
}

// metadata returns the blocks of superblocks, descriptors, bitmaps and inode
// tables.
func (e *Editor) metadata() ([]run, error) {
	le := binary.LittleEndian
	b := make([]byte, superSize)
	if err := e.readAt(b, superAt); err != nil {
		return nil, err
	}
	super := 1 + ceil(e.groups, descsPerBlock) + int64(le.Uint16(b[206:]))
	var out []run
	for g := range e.groups {
		if hasSuper(g) {
			out = append(out, run{g * groupBlocks, super})
		}
		d, err := e.descriptor(g)
		if err != nil {
			return nil, err
		}
		address := func(lo, hi int) int64 { return int64(le.Uint32(d[lo:])) | int64(le.Uint32(d[hi:]))<<32 }
		out = append(out, run{address(0, 32), 1}, run{address(4, 36), 1}, run{address(8, 40), ceil(e.inodesPerGroup, inodesPerBlock)})
	}
	return out, nil
}

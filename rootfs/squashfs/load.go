package squashfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// loader turns an image into a tree.
type loader struct {
	*image
	tree   *tree.Tree
	blocks map[int64]metadataBlock
	inodes map[uint64]*tree.Inode // by reference
	sets   map[uint32]map[string][]byte
	xattrs uint64 // where the sets begin

	inodeBudget, dirBudget, xattrBudget int64 // in bytes
}

// The fixed parts of inodes and directories, as they are stored.
type (
	inodeHead struct {
		Kind, Mode, UID, GID uint16
		ModTime, Number      uint32
	}
	dirInode struct {
		Block, Links uint32
		Size, Offset uint16
		Parent       uint32
	}
	extendedDirInode struct {
		Links, Size, Block, Parent uint32
		Index, Offset              uint16
		Xattrs                     uint32
	}
	fileInode struct{ Start, Fragment, Offset, Size uint32 }

	extendedFileInode struct {
		Start, Size, Sparse             uint64
		Links, Fragment, Offset, Xattrs uint32
	}
	runHead  struct{ Count, Block, Number uint32 }
	runEntry struct {
		Offset     uint16
		Delta      int16
		Kind, Name uint16
	}
)

// directory is where a directory's names are.
type directory struct {
	pos    uint64
	offset int
	size   int64
}

func (l *loader) load() error {
	if l.sb.XattrTable != none {
		head, err := l.bytesAt(l.sb.XattrTable, 16)
		if err != nil {
			return fmt.Errorf("extended attributes: %w", err)
		}
		l.xattrs = binary.LittleEndian.Uint64(head)
	}
	root, dir, err := l.inode(l.sb.Root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if dir == nil {
		return fmt.Errorf("root: not a directory: %w", ErrFormat)
	}
	if err := l.tree.Set(".", root); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return l.names(".", dir)
}

// names adds everything below the directory at name.
func (l *loader) names(name string, dir *directory) error {
	c := cursor{loader: l, pos: dir.pos, off: dir.offset, budget: &l.dirBudget}
	for left := dir.size; left > 0; {
		var run runHead
		if err := c.decode(&run); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		left -= headerSize
		if run.Count >= maxRun {
			return fmt.Errorf("%s: a run of %d names: %w", name, int64(run.Count)+1, ErrFormat)
		}
		for range run.Count + 1 {
			var e runEntry
			if err := c.decode(&e); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			base, err := c.read(int(e.Name) + 1)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if left -= entrySize + int64(len(base)); left < 0 {
				return fmt.Errorf("%s: names beyond the end of the directory: %w", name, ErrFormat)
			}
			if err := l.name(name, string(base), uint64(run.Block)<<16|uint64(e.Offset)); err != nil {
				return err
			}
		}
	}
	return nil
}

// name adds one name in a directory and, if it is a directory itself, what is
// below it.
func (l *loader) name(dir, base string, ref uint64) error {
	if base == "." || base == ".." || strings.ContainsAny(base, "/\x00") {
		return fmt.Errorf("%s: a file named %q: %w", dir, base, ErrFormat)
	}
	name := path.Join(dir, base)
	if l.tree.Len() >= maxPaths {
		return fmt.Errorf("%s: more than %d names: %w", name, maxPaths, ErrUnsupported)
	}
	ino, known := l.inodes[ref]
	var sub *directory
	if !known {
		var err error
		if ino, sub, err = l.inode(ref); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	} else if ino.Mode.IsDir() {
		return fmt.Errorf("%s: a directory that has a name already: %w", name, ErrFormat)
	}
	if err := l.tree.Add(name, ino); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if sub == nil {
		return nil
	}
	return l.names(name, sub)
}

// inode reads the inode at ref, and where its names are if it is a directory.
func (l *loader) inode(ref uint64) (*tree.Inode, *directory, error) {
	pos := l.sb.InodeTable + ref>>16
	if ref>>48 != 0 || pos >= l.sb.DirTable {
		return nil, nil, fmt.Errorf("inode %#x is not in the inode table: %w", ref, ErrFormat)
	}
	c := &cursor{loader: l, pos: pos, off: int(ref & 0xffff), budget: &l.inodeBudget}
	var head inodeHead
	if err := c.decode(&head); err != nil {
		return nil, nil, err
	}
	ino := &tree.Inode{Mode: fileMode(head.Mode), ModTime: int64(head.ModTime)}
	var err error
	if ino.UID, err = l.id(head.UID); err != nil {
		return nil, nil, err
	}
	if ino.GID, err = l.id(head.GID); err != nil {
		return nil, nil, err
	}
	set, isExtended := uint32(noIndex), head.Kind > extended
	if isExtended {
		head.Kind -= extended
	}
	var dir *directory
	switch head.Kind {
	case typeDir:
		ino.Mode |= fs.ModeDir
		dir, set, err = c.directory(isExtended)
	case typeFile:
		var content *stored
		if content, set, err = c.file(isExtended); content != nil && content.size > 0 {
			ino.Content = content
		}
	case typeSymlink:
		ino.Mode |= fs.ModeSymlink
		var f struct{ Links, Size uint32 }
		if err = c.decode(&f); err == nil && (f.Size == 0 || f.Size > maxTarget) {
			err = fmt.Errorf("symbolic link target of %d bytes: %w", f.Size, ErrFormat)
		}
		if err == nil {
			var p []byte
			p, err = c.read(int(f.Size))
			ino.Target = string(p)
		}
	case typeBlockDev, typeCharDev:
		ino.Mode |= fs.ModeDevice
		if head.Kind == typeCharDev {
			ino.Mode |= fs.ModeCharDevice
		}
		var f struct{ Links, Device uint32 }
		err = c.decode(&f)
		ino.Major, ino.Minor = f.Device>>8&maxMajor, f.Device&0xff|f.Device>>12&^0xff
	case typeFifo, typeSocket:
		ino.Mode |= fs.ModeNamedPipe
		if head.Kind == typeSocket {
			ino.Mode ^= fs.ModeNamedPipe | fs.ModeSocket
		}
		_, err = c.read(4)
	default:
		err = fmt.Errorf("inode of type %d: %w", head.Kind, ErrFormat)
	}
	if err == nil && isExtended && head.Kind > typeFile {
		err = c.decode(&set)
	}
	if err == nil {
		ino.Xattrs, err = l.set(set)
	}
	if err != nil {
		return nil, nil, err
	}
	l.inodes[ref] = ino
	return ino, dir, nil
}

func (c *cursor) directory(isExtended bool) (*directory, uint32, error) {
	var f extendedDirInode
	f.Xattrs = noIndex
	if isExtended {
		if err := c.decode(&f); err != nil {
			return nil, 0, err
		}
	} else {
		var b dirInode
		if err := c.decode(&b); err != nil {
			return nil, 0, err
		}
		f.Block, f.Size, f.Offset = b.Block, uint32(b.Size), b.Offset
	}
	return &directory{
		pos: c.sb.DirTable + uint64(f.Block), offset: int(f.Offset), size: int64(f.Size) - emptyListing,
	}, f.Xattrs, nil
}

func (c *cursor) file(isExtended bool) (*stored, uint32, error) {
	var f extendedFileInode
	f.Xattrs = noIndex
	if isExtended {
		if err := c.decode(&f); err != nil {
			return nil, 0, err
		}
	} else {
		var b fileInode
		if err := c.decode(&b); err != nil {
			return nil, 0, err
		}
		f.Start, f.Size, f.Fragment, f.Offset = uint64(b.Start), uint64(b.Size), b.Fragment, b.Offset
	}
	blockSize := uint64(c.sb.BlockSize)
	if f.Size > 1<<62 || f.Start > c.sb.BytesUsed {
		return nil, 0, fmt.Errorf("content of %d bytes at %d: %w", f.Size, f.Start, ErrFormat)
	}
	s := &stored{image: c.image, size: int64(f.Size)}
	n, rest := f.Size/blockSize, f.Size%blockSize
	if rest > 0 && f.Fragment == noIndex {
		n++
	}
	pos := f.Start
	for range n {
		var size uint32
		if err := c.decode(&size); err != nil {
			return nil, 0, err
		}
		b, err := c.stored(pos, size)
		if err != nil {
			return nil, 0, err
		}
		s.append(b)
		pos += uint64(size &^ rawBlock)
	}
	if rest == 0 || f.Fragment == noIndex {
		return s, f.Xattrs, nil
	}
	if f.Fragment >= c.sb.Fragments || uint64(f.Offset)+rest > blockSize {
		return nil, 0, fmt.Errorf("%d bytes at %d of fragment %d of %d: %w", rest, f.Offset, f.Fragment, c.sb.Fragments, ErrFormat)
	}
	p, err := c.indexed(c.sb.FragTable, f.Fragment, 16)
	if err != nil {
		return nil, 0, err
	}
	s.offset = int(f.Offset)
	s.fragment, err = c.stored(binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint32(p[8:]))
	if err == nil && s.fragment.size == 0 {
		err = fmt.Errorf("fragment %d is empty: %w", f.Fragment, ErrFormat)
	}
	return s, f.Xattrs, err
}

// id returns a user or group id.
func (l *loader) id(i uint16) (uint32, error) {
	if i >= l.sb.IDs {
		return 0, fmt.Errorf("id %d of %d: %w", i, l.sb.IDs, ErrFormat)
	}
	p, err := l.indexed(l.sb.IDTable, uint32(i), 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(p), nil
}

// set returns a set of extended attributes.
func (l *loader) set(i uint32) (map[string][]byte, error) {
	if i == noIndex || l.sb.XattrTable == none {
		return nil, nil
	}
	if set, ok := l.sets[i]; ok {
		return set, nil
	}
	p, err := l.indexed(l.sb.XattrTable+16, i, 16)
	if err != nil {
		return nil, fmt.Errorf("extended attributes: %w", err)
	}
	c := l.xattrCursor(binary.LittleEndian.Uint64(p))
	set := map[string][]byte{}
	for range binary.LittleEndian.Uint32(p[8:]) {
		name, value, err := c.xattr()
		if err != nil {
			return nil, fmt.Errorf("extended attributes: %w", err)
		}
		set[name] = value
	}
	if len(set) == 0 {
		set = nil
	}
	l.sets[i] = set
	return set, nil
}

func (l *loader) xattrCursor(ref uint64) *cursor {
	return &cursor{loader: l, pos: l.xattrs + ref>>16, off: int(ref & 0xffff), budget: &l.xattrBudget}
}

// outOfLine in the type of an attribute says that its value is a reference to
// where it is stored.
const outOfLine = 0x100

func (c *cursor) xattr() (name string, value []byte, err error) {
	var f struct{ Kind, Size uint16 }
	if err := c.decode(&f); err != nil {
		return "", nil, err
	}
	kind := int(f.Kind &^ outOfLine)
	if kind >= len(xattrPrefixes()) || f.Size > maxXattrName {
		return "", nil, fmt.Errorf("type %#x, name of %d bytes: %w", f.Kind, f.Size, ErrFormat)
	}
	p, err := c.read(int(f.Size))
	if err != nil {
		return "", nil, err
	}
	name = xattrPrefixes()[kind] + string(p)
	if value, err = c.xattrValue(); err != nil || f.Kind&outOfLine == 0 {
		return name, value, err
	}
	if len(value) != 8 {
		return "", nil, fmt.Errorf("%s: a reference of %d bytes: %w", name, len(value), ErrFormat)
	}
	value, err = c.xattrCursor(binary.LittleEndian.Uint64(value)).xattrValue()
	return name, value, err
}

func (c *cursor) xattrValue() ([]byte, error) {
	var n uint32
	if err := c.decode(&n); err != nil {
		return nil, err
	}
	if n > maxXattrValue {
		return nil, fmt.Errorf("a value of %d bytes: %w", n, ErrFormat)
	}
	p, err := c.read(int(n))
	return append([]byte{}, p...), err
}

// fileMode turns permission bits as in chmod(2) into a mode.
func fileMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, b := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= b
		}
	}
	return mode
}

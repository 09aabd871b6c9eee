package squashfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrUnsupported is wrapped by the errors of Write for what a SquashFS image
// cannot hold, and by those of Open for what the reader does not know.
var ErrUnsupported = errors.New("not supported")

// Limits of the format, and of the kernels that mount it.
const (
	maxIDs    = math.MaxUint16 // the superblock counts them in 16 bits
	maxInodes = math.MaxUint32 - 1
	maxTarget = 4095 // PATH_MAX without the NUL
	maxMajor  = 1<<12 - 1
	maxMinor  = 1<<20 - 1
)

// layout is a tree in the order in which it is written.
type layout struct {
	tree     *tree.Tree
	nodes    []*node // a directory after everything in it; the root is the last
	contents []*content
	ids      []uint32
	xattrs   xattrTable

	byInode map[*tree.Inode]*node
	byID    map[uint32]uint16
}

// node is an inode with what the image adds to it.
type node struct {
	*tree.Inode
	path     string // the first one of a hard-linked file
	number   uint32 // counted from 1
	kind     uint16 // the basic type
	uid, gid uint16 // indexes into the id table
	nlink    uint32
	xattrs   uint32 // index of the set, or noIndex
	ref      uint64 // position in the inode table
	content  *content
	parent   *node
	children []entry // of a directory, in bytewise order
}

// entry is a name in a directory.
type entry struct {
	name string
	*node
}

// newLayout checks every inode of t and numbers them.
func newLayout(t *tree.Tree) (*layout, error) {
	l := &layout{tree: t, byInode: map[*tree.Inode]*node{}, byID: map[uint32]uint16{}}
	l.xattrs.sets = map[string]uint32{}
	if _, err := l.directory(".", nil); err != nil {
		return nil, err
	}
	l.byInode, l.byID = nil, nil
	return l, nil
}

// directory adds what is in the directory at name, then the directory. The
// subdirectories come first, so that the inodes of its files end up together.
func (l *layout) directory(name string, parent *node) (*node, error) {
	ino := l.tree.Lookup(name)
	if first := l.byInode[ino]; first != nil {
		return nil, fmt.Errorf("%s: a hard link to directory %s: %w", name, first.path, ErrUnsupported)
	}
	dir := &node{Inode: ino, path: name, parent: parent, nlink: 2}
	l.byInode[ino] = dir
	names := l.tree.Children(name)
	dir.children = make([]entry, len(names))
	for i, base := range names {
		p := path.Join(name, base)
		if !l.tree.Lookup(p).Mode.IsDir() {
			continue
		}
		child, err := l.directory(p, dir)
		if err != nil {
			return nil, err
		}
		dir.nlink++
		dir.children[i] = entry{base, child}
	}
	for i, base := range names {
		if dir.children[i].node != nil {
			continue
		}
		p := path.Join(name, base)
		ino := l.tree.Lookup(p)
		child := l.byInode[ino]
		if child == nil {
			child = &node{Inode: ino, path: p}
			if err := l.add(child); err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			l.byInode[ino] = child
		}
		child.nlink++
		dir.children[i] = entry{base, child}
	}
	if err := l.add(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return dir, nil
}

// add checks a node, numbers it and registers what it shares with others.
func (l *layout) add(n *node) error {
	if len(l.nodes) >= maxInodes {
		return fmt.Errorf("more than %d inodes: %w", uint32(maxInodes), ErrUnsupported)
	}
	switch n.Mode.Type() {
	case fs.ModeDir:
		n.kind = typeDir
	case 0:
		n.kind = typeFile
		size := n.Size()
		if size < 0 {
			return fmt.Errorf("content of %d bytes: %w", size, ErrUnsupported)
		}
		if size > 0 {
			n.content = &content{path: n.path, src: n.Content, size: size, fragment: noIndex}
			l.contents = append(l.contents, n.content)
		}
	case fs.ModeSymlink:
		n.kind = typeSymlink
		if n.Target == "" || len(n.Target) > maxTarget || strings.IndexByte(n.Target, 0) >= 0 {
			return fmt.Errorf("symbolic link target of %d bytes: want 1 to %d, without NUL: %w", len(n.Target), maxTarget, ErrUnsupported)
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		n.kind = typeBlockDev
		if n.Mode&fs.ModeCharDevice != 0 {
			n.kind = typeCharDev
		}
		if n.Major > maxMajor || n.Minor > maxMinor {
			return fmt.Errorf("device number %d:%d: want at most %d:%d: %w", n.Major, n.Minor, maxMajor, maxMinor, ErrUnsupported)
		}
	case fs.ModeNamedPipe:
		n.kind = typeFifo
	case fs.ModeSocket:
		n.kind = typeSocket
	default:
		return fmt.Errorf("file type %v: %w", n.Mode.Type(), ErrUnsupported)
	}
	var err error
	if n.uid, err = l.id(n.UID); err != nil {
		return err
	}
	if n.gid, err = l.id(n.GID); err != nil {
		return err
	}
	if n.xattrs, err = l.xattrs.add(n.Xattrs); err != nil {
		return err
	}
	l.nodes = append(l.nodes, n)
	n.number = uint32(len(l.nodes))
	return nil
}

// id returns the index of a user or group id.
func (l *layout) id(id uint32) (uint16, error) {
	if i, ok := l.byID[id]; ok {
		return i, nil
	}
	if len(l.ids) == maxIDs {
		return 0, fmt.Errorf("owner %d: more than %d different user and group ids: %w", id, maxIDs, ErrUnsupported)
	}
	i := uint16(len(l.ids))
	l.ids = append(l.ids, id)
	l.byID[id] = i
	return i, nil
}

// order sorts the contents the way they are stored: files of one kind next to
// each other, because those share a fragment and compress well together.
func (l *layout) order() {
	slices.SortStableFunc(l.contents, func(a, b *content) int {
		return cmp.Or(cmp.Compare(suffix(a.path), suffix(b.path)), cmp.Compare(a.path, b.path))
	})
}

// suffix returns what the name of a file says about its kind: ".so" of
// "usr/lib/libc.so.6".
func suffix(name string) string {
	for {
		ext := path.Ext(name)
		if ext == "" || strings.Trim(ext, ".0123456789") != "" {
			return ext
		}
		name = strings.TrimSuffix(name, ext)
	}
}

// mode returns the permission bits as chmod(2) takes them.
func (n *node) mode() uint16 {
	m := uint16(n.Mode.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint16
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if n.Mode&b.mode != 0 {
			m |= b.bit
		}
	}
	return m
}

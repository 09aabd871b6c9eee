// Package tree holds a file tree in memory: names and metadata, with contents
// that are read only when somebody writes them out. It is what a recipe, an
// unpacked package or an extension becomes, and what the squashfs, cpio, ext4
// and FAT writers take.
//
// A path is slash-separated, relative to the root and clean ("usr/lib/x"); the
// root itself is ".". Two paths that hold the same *Inode are hard links.
package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"sort"
	"strings"
)

// Content is what a regular file holds: Size bytes with random access. ReadAt
// must be safe for concurrent use.
type Content interface {
	io.ReaderAt
	Size() int64
}

// Inode is a file without its name. It follows inode(7).
type Inode struct {
	Mode    fs.FileMode // type, permissions, setuid, setgid, sticky
	UID     uint32
	GID     uint32
	ModTime int64             // seconds since 1970, may be negative
	Major   uint32            // of a device
	Minor   uint32            // of a device
	Target  string            // of a symbolic link
	Xattrs  map[string][]byte // full names, as "security.capability"
	Content Content           // of a regular file; nil is an empty file
}

// Size returns the size in bytes of a regular file's content, otherwise 0.
func (i *Inode) Size() int64 {
	if i.Content == nil {
		return 0
	}
	return i.Content.Size()
}

// Errors returned, wrapped, by Tree's methods.
var (
	ErrPath   = errors.New("not a clean relative path")
	ErrParent = errors.New("parent is not a directory")
	ErrExist  = errors.New("exists already")
)

// Tree is a set of named inodes in which every parent is a directory.
// It is not safe for concurrent modification.
type Tree struct {
	inodes   map[string]*Inode
	children map[string][]string // base names, sorted on demand
	unsorted map[string]bool
}

// New returns a tree whose root directory has mode 0755 and owner 0:0.
func New() *Tree {
	return &Tree{
		inodes:   map[string]*Inode{".": {Mode: fs.ModeDir | 0o755}},
		children: map[string][]string{},
		unsorted: map[string]bool{},
	}
}

// Add puts ino at name. The parent directory must exist and, except for the
// root, name must not.
func (t *Tree) Add(name string, ino *Inode) error {
	if !Valid(name) {
		return fmt.Errorf("%q: %w", name, ErrPath)
	}
	if name == "." {
		if !ino.Mode.IsDir() {
			return fmt.Errorf("root: %w", ErrParent)
		}
		t.inodes["."] = ino
		return nil
	}
	if t.inodes[name] != nil {
		return fmt.Errorf("%s: %w", name, ErrExist)
	}
	dir := path.Dir(name)
	if p := t.inodes[dir]; p == nil || !p.Mode.IsDir() {
		return fmt.Errorf("%s: %s: %w", name, dir, ErrParent)
	}
	t.inodes[name] = ino
	t.children[dir] = append(t.children[dir], path.Base(name))
	t.unsorted[dir] = true
	return nil
}

// Set is Add, but replaces what is at name. A directory with children can only
// be replaced by a directory.
func (t *Tree) Set(name string, ino *Inode) error {
	old := t.inodes[name]
	if old == nil || name == "." {
		return t.Add(name, ino)
	}
	if len(t.children[name]) > 0 && !ino.Mode.IsDir() {
		return fmt.Errorf("%s: a directory that is not empty: %w", name, ErrExist)
	}
	t.inodes[name] = ino
	return nil
}

// MkdirAll makes name and its missing parents directories with the given
// permissions, owned by 0:0 and with time 0.
func (t *Tree) MkdirAll(name string, perm fs.FileMode) error {
	if name == "." {
		return nil
	}
	if ino := t.inodes[name]; ino != nil {
		if !ino.Mode.IsDir() {
			return fmt.Errorf("%s: %w", name, ErrParent)
		}
		return nil
	}
	if !Valid(name) {
		return fmt.Errorf("%q: %w", name, ErrPath)
	}
	if err := t.MkdirAll(path.Dir(name), perm); err != nil {
		return err
	}
	return t.Add(name, &Inode{Mode: fs.ModeDir | perm.Perm()})
}

// Remove takes name, and everything below it, out of the tree.
func (t *Tree) Remove(name string) {
	if name == "." || t.inodes[name] == nil {
		return
	}
	t.removeAll(name)
	dir, base := path.Dir(name), path.Base(name)
	kids := t.children[dir]
	for i, k := range kids {
		if k == base {
			t.children[dir] = append(kids[:i:i], kids[i+1:]...)
			return
		}
	}
}

func (t *Tree) removeAll(name string) {
	for _, k := range t.children[name] {
		t.removeAll(path.Join(name, k))
	}
	delete(t.children, name)
	delete(t.unsorted, name)
	delete(t.inodes, name)
}

// Lookup returns the inode at name, without following links, or nil.
func (t *Tree) Lookup(name string) *Inode { return t.inodes[name] }

// Len returns the number of paths, the root included.
func (t *Tree) Len() int { return len(t.inodes) }

// Children returns the base names in directory name, sorted bytewise.
// The caller must not modify the slice.
func (t *Tree) Children(name string) []string {
	kids := t.children[name]
	if t.unsorted[name] {
		sort.Strings(kids)
		delete(t.unsorted, name)
	}
	return kids
}

// All yields every path with its inode: the root first, a directory before
// what it holds, names in bytewise order.
func (t *Tree) All() iter.Seq2[string, *Inode] {
	return func(yield func(string, *Inode) bool) { t.walk(".", yield) }
}

func (t *Tree) walk(name string, yield func(string, *Inode) bool) bool {
	if !yield(name, t.inodes[name]) {
		return false
	}
	for _, k := range t.Children(name) {
		child := k
		if name != "." {
			child = name + "/" + k
		}
		if !t.walk(child, yield) {
			return false
		}
	}
	return true
}

// Valid says whether name may be a path in a tree: clean, relative, without
// "..", at most 4095 bytes, no component over 255 bytes, no NUL.
func Valid(name string) bool {
	if !fs.ValidPath(strings.ToValidUTF8(name, "_")) || len(name) > 4095 || strings.IndexByte(name, 0) >= 0 {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > 255 {
			return false
		}
	}
	return true
}

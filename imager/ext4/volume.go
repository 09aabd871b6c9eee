package ext4

import (
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Numbers of inodes with a meaning.
const (
	inoRoot      = 2
	inoResize    = 7
	inoJournal   = 8
	inoLostFound = 11 // the first that is not reserved, by custom
)

const (
	lostFoundName   = "lost+found"
	lostFoundBlocks = 4 // so that e2fsck can put files there without allocating

	maxLinks      = 65000 // of a file; directories with more subdirectories count as 1 (dir_nlink)
	maxTarget     = blockSize - 1
	maxFastTarget = 59 // bytes of a symbolic link's target that fit into the inode, with a NUL

	// Times have 34 bits, counted from the lowest signed 32-bit number.
	minTime = math.MinInt32
	maxTime = math.MinInt32 + 1<<34 - 1

	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// volume is a tree prepared for the disk: everything but block numbers.
type volume struct {
	opts  Options
	nodes []*node // in ascending order of inode number: the root, lost+found, the rest
}

// node is an inode to be written.
type node struct {
	ino    uint32
	src    *tree.Inode
	links  int
	dir    []byte // a directory's blocks, checksums missing
	target []byte // a symbolic link's
	attrs  attrs
	size   int64 // bytes that need blocks
	room   int64 // blocks to allocate at least

	// Set by layOut.
	extents   []mapping
	index     []int64 // extent tree blocks
	attrBlock int64   // 0 is none
}

func (n *node) isFile() bool { return n.src.Mode.IsRegular() }

// lastInode returns the highest number of an inode.
func (v *volume) lastInode() int64 { return inoLostFound + int64(len(v.nodes)) - 2 }

// collect numbers the inodes of t and prepares everything that does not depend
// on the size of the file system.
func collect(t *tree.Tree, opts Options) (*volume, error) {
	lost := &node{ino: inoLostFound, src: &tree.Inode{Mode: fs.ModeDir | 0o700, ModTime: opts.Time}}
	v := &volume{opts: opts}
	paths := map[string]*node{} // directories by path
	files := map[*tree.Inode]*node{}
	names := map[string]*node{}
	next := uint32(inoLostFound + 1)
	for name, src := range t.All() {
		if n := files[src]; n != nil {
			n.links++
			names[name] = n
			if n.links > maxLinks {
				return nil, fmt.Errorf("%s: %w: more than %d hard links", name, ErrUnsupported, maxLinks)
			}
			continue
		}
		n := &node{src: src, links: 1}
		switch name {
		case ".":
			n.ino = inoRoot
		case lostFoundName:
			if !src.Mode.IsDir() {
				return nil, fmt.Errorf("%s: %w: it must be a directory, e2fsck wants it", name, ErrUnsupported)
			}
			n.ino = inoLostFound
			lost = n
		default:
			if next == math.MaxUint32 {
				return nil, fmt.Errorf("%s: %w: too many files", name, ErrUnsupported)
			}
			n.ino = next
			next++
		}
		if err := n.prepare(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if src.Mode.IsDir() {
			paths[name] = n
		} else {
			files[src] = n
		}
		names[name] = n
		if n != lost {
			v.nodes = append(v.nodes, n)
		}
	}
	v.nodes = slices.Insert(v.nodes, 1, lost)
	paths[lostFoundName], names[lostFoundName] = lost, lost
	for name, n := range paths {
		n.dir, n.links = directory(t, name, names)
		n.size = int64(len(n.dir))
	}
	for _, name := range slices.Sorted(maps.Keys(opts.Preallocate)) {
		n, room := names[name], opts.Preallocate[name]
		if n == nil || !n.isFile() {
			return nil, fmt.Errorf("%w: Preallocate: %s is no file of the tree", ErrOptions, name)
		}
		if room < n.size || room > maxSize {
			return nil, fmt.Errorf("%w: Preallocate: %d bytes for %s, want its size of %d or more", ErrOptions, room, name, n.size)
		}
		n.room = ceil(room, blockSize)
	}
	return v, nil
}

// directory returns the blocks of a directory and its number of links.
func directory(t *tree.Tree, name string, names map[string]*node) ([]byte, int) {
	var w dirWriter
	w.add(".", names[name].ino, typeDir)
	w.add("..", names[path.Dir(name)].ino, typeDir)
	kids := t.Children(name)
	if name == "." {
		if i, found := slices.BinarySearch(kids, lostFoundName); !found {
			kids = slices.Insert(slices.Clone(kids), i, lostFoundName)
		}
	}
	links := 2
	for _, kid := range kids {
		n := names[path.Join(name, kid)]
		if n.src.Mode.IsDir() {
			links++
		}
		w.add(kid, n.ino, direntType(n.src.Mode))
	}
	if links > maxLinks {
		links = 1
	}
	if name == lostFoundName {
		return w.finish(lostFoundBlocks), links
	}
	return w.finish(1), links
}

// prepare checks what the format can hold and encodes what needs no block
// numbers.
func (n *node) prepare() error {
	src := n.src
	if src.ModTime < minTime || src.ModTime > maxTime {
		return fmt.Errorf("%w: modification time %d is not between %d and %d", ErrUnsupported, src.ModTime, int64(minTime), int64(maxTime))
	}
	if _, err := mode(src.Mode); err != nil {
		return err
	}
	switch src.Mode.Type() {
	case 0:
		n.size = src.Size()
		if n.size < 0 || n.size > maxSize {
			return fmt.Errorf("%w: content of %d bytes", ErrUnsupported, n.size)
		}
	case fs.ModeSymlink:
		if len(src.Target) == 0 || len(src.Target) > maxTarget || strings.IndexByte(src.Target, 0) >= 0 {
			return fmt.Errorf("%w: link target of %d bytes, wanted 1 to %d without NUL", ErrUnsupported, len(src.Target), maxTarget)
		}
		n.target = []byte(src.Target)
		if len(n.target) > maxFastTarget {
			n.size = int64(len(n.target))
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		if src.Major > maxMajor || src.Minor > maxMinor {
			return fmt.Errorf("%w: device %d:%d, the largest is %d:%d", ErrUnsupported, src.Major, src.Minor, maxMajor, maxMinor)
		}
	}
	var err error
	n.attrs, err = encodeAttrs(src.Xattrs)
	return err
}

// mode translates to st_mode.
func mode(m fs.FileMode) (uint16, error) {
	out := uint16(m.Perm())
	for bit, to := range map[fs.FileMode]uint16{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			out |= to
		}
	}
	switch m.Type() {
	case fs.ModeNamedPipe:
		return out | modeFIFO, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		return out | modeChar, nil
	case fs.ModeDir:
		return out | modeDir, nil
	case fs.ModeDevice:
		return out | modeBlock, nil
	case 0:
		return out | modeRegular, nil
	case fs.ModeSymlink:
		return out | modeSymlink, nil
	case fs.ModeSocket:
		return out | modeSocket, nil
	}
	return 0, fmt.Errorf("%w: file type %s", ErrUnsupported, m.Type())
}

// Bits of st_mode.
const (
	modeType    = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

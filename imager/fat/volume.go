package fat

import (
	"fmt"
	"io/fs"
	"math"
	"path"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxDirSlots is how many entries a directory may have, by convention.
const maxDirSlots = 65536

// volume is a tree made ready for FAT, whatever the geometry will be.
type volume struct {
	opts  Options
	root  *node
	dirs  []*node // the root first
	files []*node
}

// node is a file or directory.
type node struct {
	name     string
	short    shortName
	long     []uint16 // nil if the short name says it all
	parent   *node
	inode    *tree.Inode
	children []*node
	cluster  int64 // the first one, 0 if there is none
}

// slots returns the number of directory entries the node itself takes.
func (n *node) slots() int64 { return 1 + ceil(int64(len(n.long)), longUnits) }

// size returns the size of the contents in bytes, as far as directories have
// one.
func (v *volume) size(n *node) int64 {
	if !n.inode.Mode.IsDir() {
		return n.inode.Size()
	}
	slots := int64(2) // . and ..
	if n == v.root {
		slots = 0
		if v.opts.Label != "" {
			slots = 1
		}
	}
	for _, c := range n.children {
		slots += c.slots()
	}
	return slots * entrySize
}

// clusters returns how many clusters of size bytes there must be for everything.
func (v *volume) clusters(size int64) int64 {
	var n int64
	for _, place := range v.places(size) {
		n = max(n, place.end())
	}
	return n
}

// place is where a node is, in clusters from the first one.
type place struct {
	node         *node
	start, count int64
}

func (p place) end() int64 { return p.start + p.count }

// aligned is the size in bytes from which a file begins at a multiple of 4 KiB,
// so that other file systems can point to its content.
const aligned = 64 << 10

// places gives everything its clusters, of size bytes: directories, then files.
func (v *volume) places(size int64) []place {
	var out []place
	next := int64(0)
	for _, list := range [][]*node{v.dirs, v.files} {
		for _, n := range list {
			count := v.nodeClusters(n, size)
			if step := alignment / size; step > 1 && v.size(n) >= aligned {
				next = (next + step - 1) / step * step
			}
			if count > 0 {
				out = append(out, place{n, next, count})
			}
			next += count
		}
	}
	return out
}

// nodeClusters returns how many clusters one node takes; a directory takes one
// even if it is empty.
func (v *volume) nodeClusters(n *node, size int64) int64 {
	clusters := ceil(v.size(n), size)
	if clusters == 0 && n.inode.Mode.IsDir() {
		return 1
	}
	return clusters
}

// collect checks the options and the tree and gives everything its names.
func collect(t *tree.Tree, opts Options) (*volume, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	v := &volume{opts: opts, root: &node{inode: t.Lookup(".")}}
	type dir struct {
		path string
		node *node
	}
	queue := []dir{{".", v.root}}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		v.dirs = append(v.dirs, d.node)
		names := t.Children(d.path)
		seen := make(map[string]string, len(names))
		for _, name := range names {
			full := path.Join(d.path, name)
			n, err := newNode(name, d.node, t.Lookup(full))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", full, err)
			}
			if other, ok := seen[fold(name)]; ok {
				return nil, fmt.Errorf("%s: %w", full, unsupported("the name differs from %s in the case of letters only", other))
			}
			seen[fold(name)] = name
			d.node.children = append(d.node.children, n)
			if n.inode.Mode.IsDir() {
				queue = append(queue, dir{full, n})
			} else {
				v.files = append(v.files, n)
			}
		}
		if err := v.nameChildren(d.node, names); err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
	}
	return v, nil
}

func newNode(name string, parent *node, ino *tree.Inode) (*node, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	switch ino.Mode.Type() {
	case fs.ModeDir:
	case 0:
		if size := ino.Size(); size > math.MaxUint32 {
			return nil, unsupported("a file of %d bytes, the largest is %d (4 GiB less a byte)", size, int64(math.MaxUint32))
		}
	case fs.ModeSymlink:
		return nil, unsupported("a symbolic link, to %s; put a copy there", ino.Target)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return nil, unsupported("a device (%d:%d)", ino.Major, ino.Minor)
	case fs.ModeNamedPipe:
		return nil, unsupported("a named pipe")
	case fs.ModeSocket:
		return nil, unsupported("a socket")
	default:
		return nil, unsupported("a file of the type %s", ino.Mode.Type())
	}
	return &node{name: name, parent: parent, inode: ino}, nil
}

// nameChildren encodes the names in a directory.
func (v *volume) nameChildren(d *node, names []string) error {
	short, err := aliases(names)
	if err != nil {
		return err
	}
	for i, n := range d.children {
		n.short = short[i]
		if n.name != n.short.String() {
			n.long = encodeLong(n.name)
		}
	}
	if slots := v.size(d) / entrySize; slots > maxDirSlots {
		return unsupported("a directory with %d entries, counting several for a long name; at most %d fit", slots, maxDirSlots)
	}
	return nil
}

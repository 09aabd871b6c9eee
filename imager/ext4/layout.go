package ext4

import (
	"fmt"
	"slices"
)

// The fixed part of the geometry.
const (
	blockSize      = 4096
	groupBlocks    = 8 * blockSize // blocks in a group: what one bitmap block covers
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	bytesPerInode  = 16384
	flexGroups     = 16 // groups whose metadata lies together
	descSize       = 64 // bytes of a group descriptor
	descsPerBlock  = blockSize / descSize
	ptrsPerBlock   = blockSize / 4

	maxInodesPerGroup = 8 * blockSize // what one bitmap block covers

	transactionSlack = 32 // blocks of a transaction that adds a group, besides reserved descriptors
	spareInodes      = 8  // one inode in so many stays free when the tree decides their number
	lastGroupSlack   = 50 // blocks a last group must have beyond its metadata
)

// Sizes of journals in blocks.
const (
	minJournal = 1024
	maxJournal = 10_240_000 // as e2fsprogs
)

// run is n blocks from block start on.
type run struct{ start, n int64 }

func (r run) end() int64 { return r.start + r.n }

// geometry is what follows from the size and the number of inodes alone.
type geometry struct {
	blocks         int64 // of the file system; what is beyond stays unused
	groups         int64
	inodesPerGroup int64
	tableBlocks    int64 // of one group's inode table
	gdtBlocks      int64 // of the group descriptors
	reservedGDT    int64 // blocks kept for more of them
	journal        int64 // blocks
}

// newGeometry never fails: for a size that is too small, the metadata just
// does not fit.
func newGeometry(size, inodes int64, opts Options) geometry {
	g := geometry{blocks: max(size/blockSize, 1)}
	for {
		g.groups = ceil(g.blocks, groupBlocks)
		g.inodesPerGroup = inodesPerGroup(g.blocks, g.groups, inodes)
		g.tableBlocks = g.inodesPerGroup / inodesPerBlock
		g.gdtBlocks = ceil(g.groups, descsPerBlock)
		g.journal = journalBlocks(g.blocks, opts)
		g.reservedGDT = g.reserveGDT()
		rest := g.blocks % groupBlocks
		if g.groups == 1 || rest == 0 || rest >= g.minLastGroup() {
			break
		}
		g.blocks -= rest
	}
	return g
}

func journalBlocks(blocks int64, opts Options) int64 {
	switch opts.Journal {
	case 0:
		return defaultJournal(blocks)
	case NoJournal:
		return 0
	}
	return opts.Journal / blockSize
}

// minLastGroup returns how many blocks the last of several groups must have.
func (g geometry) minLastGroup() int64 {
	return g.superBlocks(g.groups-1) + 2 + g.tableBlocks + lastGroupSlack
}

func inodesPerGroup(blocks, groups, inodes int64) int64 {
	n := int64(groupBlocks * blockSize / bytesPerInode)
	if groups == 1 {
		// A file system smaller than a group will often be grown into many;
		// it keeps its inodes per group for ever.
		n = min(n, blocks)
	}
	if total := n * groups; inodes > total {
		n = ceil(inodes+inodes/spareInodes, groups)
	}
	return min(ceil(n, inodesPerBlock)*inodesPerBlock, maxInodesPerGroup)
}

// reserveGDT returns how many blocks to keep for more group descriptors: for
// 1024 times as many groups, as mke2fs does. The kernel, when it adds groups,
// initialises a group's share of them in one transaction, so that they must not
// be more than a quarter of the journal.
func (g geometry) reserveGDT() int64 {
	maxBlocks := min(g.blocks*1024, 1<<32-1)
	n := ceil(ceil(maxBlocks, groupBlocks), descsPerBlock) - g.gdtBlocks
	if g.journal > 0 {
		n = min(n, g.journal/4-transactionSlack)
	}
	return max(0, min(n, ptrsPerBlock))
}

// defaultJournal returns the blocks of journal that mke2fs gives to a file
// system of so many blocks.
func defaultJournal(blocks int64) int64 {
	switch {
	case blocks < 2048:
		return 0
	case blocks < 32768:
		return 1024
	case blocks < 256<<10:
		return 4096
	case blocks < 512<<10:
		return 8192
	case blocks < 4096<<10:
		return 16384
	case blocks < 8192<<10:
		return 32768
	case blocks < 16384<<10:
		return 65536
	case blocks < 32768<<10:
		return 131072
	}
	return 262144
}

// hasSuper says whether a group begins with a copy of the superblock.
func hasSuper(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// superGroups returns the groups that begin with a copy of the superblock.
func (g geometry) superGroups() []int64 {
	var out []int64
	for group := range g.groups {
		if hasSuper(group) {
			out = append(out, group)
		}
	}
	return out
}

// superBlocks returns how many blocks at the start of a group hold the
// superblock, the group descriptors and the room for more.
func (g geometry) superBlocks(group int64) int64 {
	if !hasSuper(group) {
		return 0
	}
	return 1 + g.gdtBlocks + g.reservedGDT
}

// fit returns the first block from pos on where n blocks, at most a group's
// worth, do not touch a copy of the superblock.
func (g geometry) fit(pos, n int64) int64 {
	for {
		group := pos / groupBlocks
		if s := g.superBlocks(group); pos < group*groupBlocks+s {
			pos = group*groupBlocks + s
		}
		next := (pos + n - 1) / groupBlocks
		if next == group || g.superBlocks(next) == 0 {
			return pos
		}
		pos = next * groupBlocks
	}
}

// layout is a geometry with every block assigned.
type layout struct {
	geometry
	blockBitmap []int64 // by group
	inodeBitmap []int64
	inodeTable  []int64
	meta        []run // superblocks to inode tables, ascending, not overlapping

	journalRuns  []run
	journalIndex []int64 // extent tree blocks
	resizeBlock  int64   // the resize inode's double indirect block

	end int64 // all blocks below are used; above, only meta
}

// newLayout places the metadata of all groups.
func newLayout(g geometry) *layout {
	l := &layout{
		geometry:    g,
		blockBitmap: make([]int64, g.groups),
		inodeBitmap: make([]int64, g.groups),
		inodeTable:  make([]int64, g.groups),
	}
	for _, group := range g.superGroups() {
		l.meta = append(l.meta, run{group * groupBlocks, g.superBlocks(group)})
	}
	for first := int64(0); first < g.groups; first += flexGroups {
		n := min(flexGroups, g.groups-first)
		pos := first * groupBlocks
		place := func(to []int64, count, each int64) {
			for i := int64(0); i < count; i++ {
				pos = g.fit(pos, each)
				to[first+i] = pos
				l.meta = append(l.meta, run{pos, each})
				pos += each
			}
		}
		place(l.blockBitmap, n, 1)
		place(l.inodeBitmap, n, 1)
		place(l.inodeTable, n, g.tableBlocks)
	}
	slices.SortFunc(l.meta, func(a, b run) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	return l
}

// allocator hands out the blocks between the metadata in ascending order. It
// does not know where the file system ends.
type allocator struct {
	meta []run // not passed yet
	pos  int64
}

func (a *allocator) alloc(n int64) []run {
	var runs []run
	for n > 0 {
		a.skip()
		take := n
		if len(a.meta) > 0 {
			take = min(n, a.meta[0].start-a.pos)
		}
		runs = append(runs, run{a.pos, take})
		a.pos += take
		n -= take
	}
	a.skip()
	return runs
}

// skip moves past metadata that begins at the position.
func (a *allocator) skip() {
	for len(a.meta) > 0 && a.meta[0].start <= a.pos {
		a.pos = max(a.pos, a.meta[0].end())
		a.meta = a.meta[1:]
	}
}

// block allocates one block.
func (a *allocator) block() int64 { return a.alloc(1)[0].start }

// index allocates the blocks of a tree of so many extents that do not fit into
// the inode: the leaves first, then each level above.
func (a *allocator) index(extents int) []int64 {
	var blocks []int64
	for n := int64(extents); n > rootExtents; {
		n = ceil(n, leafExtents)
		for range n {
			blocks = append(blocks, a.block())
		}
	}
	return blocks
}

// layOut assigns blocks to everything in a file system of size bytes. The
// result is only valid when it ends within the file system.
func (v *volume) layOut(size int64) *layout {
	l := newLayout(newGeometry(size, v.lastInode(), v.opts))
	a := &allocator{meta: l.meta}
	if l.reservedGDT > 0 {
		l.resizeBlock = a.block()
	}
	l.journalRuns = a.alloc(l.journal)
	l.journalIndex = a.index(len(mappings(l.journalRuns, l.journal)))
	// What is needed to walk the tree comes before the contents.
	for _, n := range v.nodes {
		if !n.isFile() {
			a.node(n)
		}
	}
	for _, n := range v.nodes {
		if n.isFile() {
			a.node(n)
		}
	}
	a.skip()
	l.end = a.pos
	if l.groups*l.inodesPerGroup < v.lastInode() {
		// Even full inode tables do not suffice: at least one more group.
		l.end = max(l.end, l.groups*groupBlocks+1)
	}
	return l
}

func (a *allocator) node(n *node) {
	n.attrBlock = 0
	if n.attrs.block != nil {
		n.attrBlock = a.block()
	}
	written := ceil(n.size, blockSize)
	n.extents = mappings(a.alloc(max(written, n.room)), written)
	n.index = a.index(len(n.extents))
}

// minSize iterates from below: what a layout of some size needs is never more
// than what one of a larger size needs, so the first that fits is the smallest.
func (v *volume) minSize() (int64, error) {
	size := int64(blockSize)
	for _, n := range v.nodes {
		if size += max(ceil(n.size, blockSize), n.room) * blockSize; size > maxSize {
			break
		}
	}
	for size <= maxSize {
		l := v.layOut(size)
		switch {
		case l.end <= l.blocks:
			return size, nil
		case l.end*blockSize > size:
			size = l.end * blockSize
		default: // the last group was dropped: on to the size at which it is not
			size += blockSize
			for size <= maxSize && newGeometry(size, v.lastInode(), v.opts).blocks == l.blocks {
				size += blockSize
			}
		}
	}
	return 0, fmt.Errorf("%w: contents and metadata need more than %d bytes (16 TiB less a block)", ErrUnsupported, int64(maxSize))
}

// ceil divides, rounding up.
func ceil(n, d int64) int64 { return (n + d - 1) / d }

// metaIn returns the metadata runs that touch the blocks from first to last.
func (l *layout) metaIn(first, last int64) []run {
	after := func(r run, block int64) int {
		if r.end() <= block {
			return -1
		}
		return 1
	}
	i, _ := slices.BinarySearchFunc(l.meta, first, after)
	j := i
	for j < len(l.meta) && l.meta[j].start < last {
		j++
	}
	return l.meta[i:j]
}

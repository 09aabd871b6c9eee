package ext4

import (
	"encoding/binary"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
)

// writer collects the pieces of a file system.
type writer struct {
	*volume
	*layout
	seed   uint32 // of all checksums
	pieces []piece
	tables [][]byte // by group: the inode table as far as it is used
	free   int64    // blocks
}

type piece struct {
	block int64
	src   extent.Source
}

// write turns a layout into a map.
func (v *volume) write(l *layout) (*extent.Map, error) {
	w := &writer{volume: v, layout: l, seed: crc32c(^uint32(0), v.opts.UUID[:])}
	w.tables = make([][]byte, ceil(v.lastInode(), l.inodesPerGroup))
	for i := range w.tables {
		used := min(l.inodesPerGroup, v.lastInode()-int64(i)*l.inodesPerGroup)
		w.tables[i] = make([]byte, ceil(used, inodesPerBlock)*blockSize)
	}
	w.reservedInodes()
	for _, n := range v.nodes {
		if err := w.node(n); err != nil {
			return nil, err
		}
	}
	for i, table := range w.tables {
		w.put(l.inodeTable[i], table)
	}
	descriptors := w.groups()
	w.superblocks(descriptors)

	slices.SortFunc(w.pieces, func(a, b piece) int {
		if a.block < b.block {
			return -1
		}
		return 1
	})
	m := extent.New(v.opts.Size)
	for _, p := range w.pieces {
		if err := m.Put(p.block*blockSize, p.src); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (w *writer) put(block int64, b []byte) {
	w.pieces = append(w.pieces, piece{block, extent.Bytes(b)})
}

// putContent places src, the end of its last block missing, into the extents that
// are written.
func (w *writer) putContent(extents []mapping, src extent.Source) error {
	var at int64
	for _, r := range extents {
		if r.unwritten {
			break
		}
		n := min(r.n*blockSize, src.Size()-at)
		part, err := extent.Section(src, at, n)
		if err != nil {
			return err
		}
		w.pieces = append(w.pieces, piece{r.start, part})
		at += n
	}
	return nil
}

func (w *writer) putInode(ino uint32, n *inode) {
	i := int64(ino) - 1
	at := i % w.inodesPerGroup * inodeSize
	copy(w.tables[i/w.inodesPerGroup][at:], n.encode(inodeSeed(w.seed, ino, 0)))
}

// mapped fills in the parts of an inode that describe blocks, and places its
// extent tree.
func (w *writer) mapped(ino uint32, n *inode, extents []mapping, index []int64) {
	root, nodes := extentTree(extents, index, inodeSeed(w.seed, ino, 0))
	for i, b := range nodes {
		w.put(index[i], b)
	}
	n.flags |= flagExtents
	n.blockMap = root
	n.blocks += int64(len(index))
	for _, m := range extents {
		n.blocks += m.n
	}
}

func (w *writer) node(n *node) error {
	m, err := mode(n.src.Mode)
	if err != nil {
		return err
	}
	seed := inodeSeed(w.seed, n.ino, 0)
	out := &inode{mode: m, uid: n.src.UID, gid: n.src.GID, time: n.src.ModTime, links: n.links, attrs: n.attrs.inode}
	if n.attrs.block != nil {
		b := slices.Clone(n.attrs.block)
		binary.LittleEndian.PutUint32(b[16:], attrBlockChecksum(b, n.attrBlock, w.seed))
		w.put(n.attrBlock, b)
		out.attr = n.attrBlock
		out.blocks++
	}
	var content extent.Source
	switch m & modeType {
	case modeChar, modeBlock:
		out.blockMap = deviceMap(n.src.Major, n.src.Minor)
	case modeDir:
		b := slices.Clone(n.dir)
		sealDir(b, seed)
		content = extent.Bytes(b)
	case modeSymlink:
		content = extent.Bytes(n.target)
		if n.size == 0 {
			out.size = int64(len(n.target))
			copy(out.blockMap[:], n.target)
		}
	case modeRegular:
		content = extent.Bytes(nil)
		if n.src.Content != nil {
			content = n.src.Content
		}
	}
	if content != nil && out.size == 0 {
		out.size = n.size
		w.mapped(n.ino, out, n.extents, n.index)
		if err := w.putContent(n.extents, content); err != nil {
			return err
		}
	}
	w.putInode(n.ino, out)
	return nil
}

// reservedInodes writes the inodes that are in no tree.
func (w *writer) reservedInodes() {
	w.putInode(1, &inode{time: w.opts.Time}) // the list of bad blocks
	if w.reservedGDT > 0 {
		w.resizeInode()
	}
	if w.journal > 0 {
		n := &inode{mode: modeRegular | 0o600, size: w.journal * blockSize, time: w.opts.Time, links: 1}
		w.mapped(inoJournal, n, mappings(w.journalRuns, w.journal), w.journalIndex)
		w.putInode(inoJournal, n)
		w.put(w.journalRuns[0].start, journalSuper(w.journal, w.opts.UUID))
	}
}

// resizeInode writes the inode that owns the blocks kept for more group
// descriptors. Its double indirect block points at each such block of the
// primary copy, at the index the block would have among the descriptors, and
// each of those points at its copies in the other groups with a superblock.
func (w *writer) resizeInode() {
	double := make([]byte, blockSize)
	groups := w.superGroups()
	blocks := 1 + w.reservedGDT*int64(len(groups))
	for i := range w.reservedGDT {
		index := w.gdtBlocks + i
		block := 1 + index
		binary.LittleEndian.PutUint32(double[index%ptrsPerBlock*4:], uint32(block))
		var copies []byte
		for _, group := range groups[1:] {
			copies = binary.LittleEndian.AppendUint32(copies, uint32(group*groupBlocks+block))
		}
		if len(copies) > 0 {
			w.put(block, copies)
		}
	}
	w.put(w.resizeBlock, double)
	n := &inode{
		mode:   modeRegular | 0o600,
		size:   (12 + ptrsPerBlock + ptrsPerBlock*ptrsPerBlock) * blockSize,
		time:   w.opts.Time,
		links:  1,
		blocks: blocks,
	}
	binary.LittleEndian.PutUint32(n.blockMap[13*4:], uint32(w.resizeBlock))
	w.putInode(inoResize, n)
}

// journalSuper returns the first block of an empty jbd2 journal, which is
// big-endian.
func journalSuper(blocks int64, uuid [16]byte) []byte {
	b := make([]byte, blockSize)
	be := binary.BigEndian
	be.PutUint32(b[0:], 0xc03b3998) // magic
	be.PutUint32(b[4:], 4)          // a superblock of version 2
	be.PutUint32(b[12:], blockSize)
	be.PutUint32(b[16:], uint32(blocks))
	be.PutUint32(b[20:], 1) // first block of the log
	be.PutUint32(b[24:], 1) // first sequence number; the log's start of 0 means that it is empty
	copy(b[48:], uuid[:])
	be.PutUint32(b[64:], 1) // users
	return b
}

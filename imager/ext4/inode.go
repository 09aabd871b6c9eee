package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

// An inode's fields, by offset:
//
//	 0  2  st_mode                     100  4  generation
//	 2  2  user                        104  4  block of extended attributes
//	 4  4  size                        108  4  size, high
//	 8  4  access time                 116  2  512-byte sectors, high
//	12  4  change time                 118  2  block of extended attributes, high
//	16  4  modification time           120  2  user, high
//	24  2  group                       122  2  group, high
//	26  2  links                       124  2  checksum
//	28  4  512-byte sectors            128  2  length of the fields from here on
//	32  4  flags                       130  2  checksum, high
//	40 60  extents, target or device   132 16  high bits of the times, creation time
const (
	extraSize     = 32 // of the fields from byte 128 on
	flagExtents   = 0x80000
	sectorsPerBlk = blockSize / 512
	blockMapAt    = 40
	blockMapSize  = 60
)

// An extent tree is nodes of a header of 12 bytes
//
//	0  2  magic         4  2  room for so many entries
//	2  2  entries       6  2  height above the leaves
//
// and entries of 12 bytes. In a leaf an entry is a run of blocks
//
//	0  4  first block of the file   6  2  first block, high
//	4  2  blocks                    8  4  first block
//
// (if there are more than 32768 blocks, 32768 less and unwritten) and above, it is a node:
//
//	0  4  first block of the file   8  2  node's block, high
//	4  4  node's block
//
// The root is in the inode; other nodes are blocks and end with a checksum.
const (
	extentMagic  = 0xf30a
	extentEntry  = 12
	rootExtents  = (blockMapSize - extentEntry) / extentEntry
	leafExtents  = (blockSize - 4 - extentEntry) / extentEntry
	extentTailAt = extentEntry * (leafExtents + 1)
	maxExtent    = 32768 // blocks
	maxUnwritten = maxExtent - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a CRC-32C as ext4 uses it: without the final inversion.
func crc32c(crc uint32, b []byte) uint32 { return ^crc32.Update(^crc, castagnoli, b) }

func crc32cUint32(crc, n uint32) uint32 {
	return crc32c(crc, binary.LittleEndian.AppendUint32(nil, n))
}

// inodeSeed is what the checksums of everything that belongs to an inode begin
// with. Builders use generation 0.
func inodeSeed(seed, ino, generation uint32) uint32 {
	return crc32cUint32(crc32cUint32(seed, ino), generation)
}

// inodeChecksum returns the checksum of an inode in which it is zero.
func inodeChecksum(b []byte, seed uint32) uint32 { return crc32c(seed, b) }

// inode is what every inode has.
type inode struct {
	mode     uint16
	uid, gid uint32
	size     int64
	time     int64
	links    int
	flags    uint32
	blocks   int64 // of 4096 bytes, all that belong to the file
	attr     int64 // block
	attrs    []byte
	blockMap [blockMapSize]byte
}

// encode returns the inode with its checksum.
func (n *inode) encode(seed uint32) []byte {
	b := make([]byte, inodeSize)
	le := binary.LittleEndian
	sectors := n.blocks * sectorsPerBlk
	le.PutUint16(b[0:], n.mode)
	le.PutUint16(b[2:], uint16(n.uid))
	le.PutUint32(b[4:], uint32(n.size))
	for _, at := range []int{8, 12, 16, 144} {
		le.PutUint32(b[at:], uint32(n.time))
	}
	le.PutUint16(b[24:], uint16(n.gid))
	le.PutUint16(b[26:], uint16(n.links))
	le.PutUint32(b[28:], uint32(sectors))
	le.PutUint32(b[32:], n.flags)
	copy(b[blockMapAt:], n.blockMap[:])
	le.PutUint32(b[104:], uint32(n.attr))
	le.PutUint32(b[108:], uint32(n.size>>32))
	le.PutUint16(b[116:], uint16(sectors>>32))
	le.PutUint16(b[118:], uint16(n.attr>>32))
	le.PutUint16(b[120:], uint16(n.uid>>16))
	le.PutUint16(b[122:], uint16(n.gid>>16))
	le.PutUint16(b[128:], extraSize)
	for _, at := range []int{132, 136, 140, 148} {
		le.PutUint32(b[at:], timeEpoch(n.time))
	}
	copy(b[attrInodeStart:], n.attrs)
	sum := inodeChecksum(b, seed)
	le.PutUint16(b[124:], uint16(sum))
	le.PutUint16(b[130:], uint16(sum>>16))
	return b
}

// timeEpoch returns the two bits by which a time exceeds signed 32 bits.
func timeEpoch(t int64) uint32 { return uint32((t-int64(int32(t)))>>32) & 3 }

// deviceMap is the block map of a device: the kernel's old encoding where it
// suffices, else the new one.
func deviceMap(major, minor uint32) (m [blockMapSize]byte) {
	if major < 256 && minor < 256 {
		binary.LittleEndian.PutUint32(m[0:], major<<8|minor)
	} else {
		binary.LittleEndian.PutUint32(m[4:], minor&0xff|major<<8|(minor&^0xff)<<12)
	}
	return m
}

// mapping is a run of blocks that begins at a block of the file. An unwritten one
// belongs to the file but reads as zeros.
type mapping struct {
	logical int64
	run
	unwritten bool
}

// mappings cuts runs into what one extent can say. The file's blocks from the
// given number on are unwritten.
func mappings(runs []run, written int64) []mapping {
	var out []mapping
	var logical int64
	for _, r := range runs {
		for r.n > 0 {
			m := mapping{logical, run{r.start, min(r.n, maxExtent)}, logical >= written}
			if m.unwritten {
				m.n = min(m.n, maxUnwritten)
			} else {
				m.n = min(m.n, written-logical)
			}
			out = append(out, m)
			logical += m.n
			r.start += m.n
			r.n -= m.n
		}
	}
	return out
}

// extentTree returns the root of the tree over extents and the contents of the
// blocks in index, in their order. The seed is the inode's.
func extentTree(extents []mapping, index []int64, seed uint32) (root [blockMapSize]byte, nodes [][]byte) {
	le := binary.LittleEndian
	var entries []byte // of the current level
	for _, m := range extents {
		var e [extentEntry]byte
		n := m.n
		if m.unwritten {
			n += maxExtent
		}
		le.PutUint32(e[0:], uint32(m.logical))
		le.PutUint16(e[4:], uint16(n))
		le.PutUint16(e[6:], uint16(m.start>>32))
		le.PutUint32(e[8:], uint32(m.start))
		entries = append(entries, e[:]...)
	}
	height := 0
	for ; len(entries) > rootExtents*extentEntry; height++ {
		var above []byte
		for len(entries) > 0 {
			n := min(len(entries), leafExtents*extentEntry)
			b := make([]byte, blockSize)
			putExtentHeader(b, n/extentEntry, leafExtents, height)
			copy(b[extentEntry:], entries[:n])
			le.PutUint32(b[extentTailAt:], crc32c(seed, b[:extentTailAt]))
			var e [extentEntry]byte
			copy(e[:4], entries)
			le.PutUint32(e[4:], uint32(index[len(nodes)]))
			le.PutUint16(e[8:], uint16(index[len(nodes)]>>32))
			above = append(above, e[:]...)
			nodes = append(nodes, b)
			entries = entries[n:]
		}
		entries = above
	}
	putExtentHeader(root[:], len(entries)/extentEntry, rootExtents, height)
	copy(root[extentEntry:], entries)
	return root, nodes
}

func putExtentHeader(b []byte, entries, room, height int) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(room))
	le.PutUint16(b[6:], uint16(height))
}

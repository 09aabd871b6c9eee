package ext4

import (
	"encoding/binary"
)

const (
	superAt   = 1024 // bytes from the start of the file system
	superSize = 1024
	superSum  = superSize - 4 // offset of the checksum
	extMagic  = 0xef53
)

// Features. A reader that does not know one of the first kind may go on, of
// the second must not read, of the third must not write.
const (
	compatJournal     = 0x4
	compatAttrs       = 0x8
	compatResizeInode = 0x10
	compatDirIndex    = 0x20

	incompatFileType = 0x2
	incompatRecover  = 0x4 // the journal must be replayed first
	incompatMetaBG   = 0x10
	incompatExtents  = 0x40
	incompat64Bit    = 0x80
	incompatFlexBG   = 0x200
	incompatCsumSeed = 0x2000
	incompatLargeDir = 0x4000

	roSparseSuper = 0x1
	roLargeFile   = 0x2
	roGDTChecksum = 0x10
	roHugeFile    = 0x8
	roDirNlink    = 0x20
	roExtraIsize  = 0x40
	roChecksums   = 0x400
)

// Flags of a group descriptor.
const (
	groupInodeUninit = 0x1 // the inode bitmap was never written: all free
	groupBlockUninit = 0x2 // the block bitmap was never written: all free but the group's own metadata
	groupInodeZeroed = 0x4 // the inode table reads as zeros where it is unused
)

// groups places the bitmaps and returns the group descriptors.
func (w *writer) groups() []byte {
	le := binary.LittleEndian
	usedBlocks := w.usedBlocks()
	dirs := make([]int64, w.layout.groups)
	for _, n := range w.nodes {
		if n.src.Mode.IsDir() {
			dirs[int64(n.ino-1)/w.inodesPerGroup]++
		}
	}
	out := make([]byte, w.gdtBlocks*blockSize)
	w.free = 0
	for g := range w.layout.groups {
		usedInodes := max(0, min(w.inodesPerGroup, w.lastInode()-g*w.inodesPerGroup))
		freeInodes := w.inodesPerGroup - usedInodes
		freeBlocks := w.groupSize(g) - usedBlocks[g]
		w.free += freeBlocks

		d := out[g*descSize:][:descSize]
		flags := uint16(groupInodeZeroed)
		var blockSum, inodeSum uint32
		if usedInodes == 0 {
			flags |= groupInodeUninit
		} else {
			b := make([]byte, blockSize)
			setBits(b, 0, usedInodes)
			setBits(b, w.inodesPerGroup, 8*blockSize)
			inodeSum = crc32c(w.seed, b[:w.inodesPerGroup/8])
			w.put(w.inodeBitmap[g], b)
		}
		if g != w.layout.groups-1 && usedBlocks[g] == w.superBlocks(g) {
			flags |= groupBlockUninit
		} else {
			b := w.bitmap(g)
			blockSum = crc32c(w.seed, b)
			w.put(w.blockBitmap[g], b)
		}
		split := func(lo, hi int, n int64) {
			le.PutUint16(d[lo:], uint16(n))
			le.PutUint16(d[hi:], uint16(n>>16))
		}
		le.PutUint32(d[0:], uint32(w.blockBitmap[g]))
		le.PutUint32(d[4:], uint32(w.inodeBitmap[g]))
		le.PutUint32(d[8:], uint32(w.inodeTable[g]))
		split(12, 44, freeBlocks)
		split(14, 46, freeInodes)
		split(16, 48, dirs[g])
		le.PutUint16(d[18:], flags)
		split(24, 56, int64(blockSum))
		split(26, 58, int64(inodeSum))
		split(28, 50, freeInodes) // never used
		le.PutUint32(d[32:], uint32(w.blockBitmap[g]>>32))
		le.PutUint32(d[36:], uint32(w.inodeBitmap[g]>>32))
		le.PutUint32(d[40:], uint32(w.inodeTable[g]>>32))
		le.PutUint16(d[30:], descChecksum(d, uint32(g), w.seed))
	}
	return out
}

// descChecksum returns the checksum of a group descriptor in which it is zero.
func descChecksum(d []byte, group, seed uint32) uint16 {
	return uint16(crc32c(crc32cUint32(seed, group), d))
}

// groupSize returns the number of blocks in a group.
func (w *writer) groupSize(g int64) int64 { return min(groupBlocks, w.blocks-g*groupBlocks) }

// usedBlocks counts the used blocks of every group.
func (w *writer) usedBlocks() []int64 {
	used := make([]int64, w.layout.groups)
	for g := range used {
		used[g] = max(0, min(w.groupSize(int64(g)), w.end-int64(g)*groupBlocks))
	}
	for _, r := range w.meta {
		for start := max(r.start, w.end); start < r.end(); {
			g := start / groupBlocks
			end := min(r.end(), (g+1)*groupBlocks)
			used[g] += end - start
			start = end
		}
	}
	return used
}

// bitmap returns the block bitmap of a group; blocks beyond the end of the file
// system count as used.
func (w *writer) bitmap(g int64) []byte {
	b := make([]byte, blockSize)
	first := g * groupBlocks
	setBits(b, 0, w.end-first)
	setBits(b, w.groupSize(g), groupBlocks)
	for _, r := range w.metaIn(first, first+groupBlocks) {
		setBits(b, r.start-first, r.end()-first)
	}
	return b
}

// setBits sets the bits from start to end, as far as they are in b.
func setBits(b []byte, start, end int64) {
	start, end = max(start, 0), min(end, int64(len(b))*8)
	for ; start < end && start%8 != 0; start++ {
		b[start/8] |= 1 << (start % 8)
	}
	for ; start+8 <= end; start += 8 {
		b[start/8] = 0xff
	}
	for ; start < end; start++ {
		b[start/8] |= 1 << (start % 8)
	}
}

// superblocks places the copies of the superblock and the descriptors.
func (w *writer) superblocks(descriptors []byte) {
	super := w.superblock()
	for _, g := range w.superGroups() {
		binary.LittleEndian.PutUint16(super[90:], uint16(g)) // which copy this is
		binary.LittleEndian.PutUint32(super[superSum:], crc32c(^uint32(0), super[:superSum]))
		b := make([]byte, blockSize)
		if g == 0 {
			copy(b[superAt:], super)
		} else {
			copy(b, super)
		}
		w.put(g*groupBlocks, b)
		w.put(g*groupBlocks+1, descriptors)
	}
}

// superblock returns the superblock, without its number and checksum.
func (w *writer) superblock() []byte {
	le := binary.LittleEndian
	b := make([]byte, superSize)
	inodes := w.layout.groups * w.inodesPerGroup
	reserved := ceil(w.blocks, 100)
	overhead := w.journal
	for _, r := range w.meta {
		overhead += r.n
	}
	compat := uint32(compatAttrs | compatDirIndex)
	if w.journal > 0 {
		compat |= compatJournal
	}
	if w.reservedGDT > 0 {
		compat |= compatResizeInode
	}
	le.PutUint32(b[0:], uint32(inodes))
	le.PutUint32(b[4:], uint32(w.blocks))
	le.PutUint32(b[8:], uint32(reserved))
	le.PutUint32(b[12:], uint32(w.free))
	le.PutUint32(b[16:], uint32(inodes-w.lastInode()))
	le.PutUint32(b[24:], 2) // block size: 1024 << 2
	le.PutUint32(b[28:], 2) // cluster size
	le.PutUint32(b[32:], groupBlocks)
	le.PutUint32(b[36:], groupBlocks) // clusters per group
	le.PutUint32(b[40:], uint32(w.inodesPerGroup))
	le.PutUint32(b[48:], uint32(w.opts.Time)) // last write
	le.PutUint16(b[54:], 0xffff)              // mounts between checks: any number
	le.PutUint16(b[56:], extMagic)
	le.PutUint16(b[58:], 1)                   // clean
	le.PutUint16(b[60:], 1)                   // on errors: continue
	le.PutUint32(b[64:], uint32(w.opts.Time)) // last check
	le.PutUint32(b[76:], 1)                   // revision
	le.PutUint32(b[84:], inoLostFound)        // first inode that is not reserved
	le.PutUint16(b[88:], inodeSize)
	le.PutUint32(b[92:], compat)
	le.PutUint32(b[96:], incompatFileType|incompatExtents|incompat64Bit|incompatFlexBG)
	le.PutUint32(b[100:], roSparseSuper|roLargeFile|roHugeFile|roDirNlink|roExtraIsize|roChecksums)
	copy(b[104:120], w.opts.UUID[:])
	copy(b[120:136], w.opts.Label)
	le.PutUint16(b[206:], uint16(w.reservedGDT))
	copy(b[236:252], w.opts.UUID[:]) // seed of the directory hash
	b[252] = 1                       // the hash: half MD4
	le.PutUint16(b[254:], descSize)
	le.PutUint32(b[256:], 0xc) // default mount options: user_xattr, acl
	le.PutUint32(b[264:], uint32(w.opts.Time))
	if w.journal > 0 {
		le.PutUint32(b[224:], inoJournal)
		b[253] = 1 // what follows at 268 is a copy of the journal's inode
		root, _ := extentTree(mappings(w.journalRuns, w.journal), w.journalIndex, 0)
		copy(b[268:], root[:])
		size := w.journal * blockSize
		le.PutUint32(b[328:], uint32(size>>32))
		le.PutUint32(b[332:], uint32(size))
	}
	le.PutUint32(b[336:], uint32(w.blocks>>32))
	le.PutUint32(b[340:], uint32(reserved>>32))
	le.PutUint32(b[344:], uint32(w.free>>32))
	le.PutUint16(b[348:], extraSize)
	le.PutUint16(b[350:], extraSize)
	le.PutUint32(b[352:], 1) // the directory hash takes bytes as signed
	b[372] = 4               // flexGroups is 1 << 4
	b[373] = 1               // checksums: CRC-32C
	le.PutUint32(b[584:], uint32(overhead))
	for i := range 4 { // write, mount (0), creation, check
		if i != 1 {
			b[628+i] = byte(w.opts.Time >> 32)
		}
	}
	return b
}

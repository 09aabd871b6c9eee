package ext4

import (
	"encoding/binary"
	"io/fs"
)

// A directory is a sequence of blocks, each filled to its last byte by entries
//
//	0  4  inode, 0 if the entry is unused
//	4  2  length of the entry, a multiple of 4; the last one reaches the end
//	6  1  length of the name
//	7  1  type
//	8  …  name
//
// With metadata_csum the last 12 bytes look like an unused entry and hold the
// block's checksum.
const (
	direntHeader = 8
	dirTail      = 12
	dirTailType  = 0xde
	dirData      = blockSize - dirTail
)

// Types in directory entries.
const (
	typeRegular = 1
	typeDir     = 2
	typeChar    = 3
	typeBlock   = 4
	typeFIFO    = 5
	typeSocket  = 6
	typeSymlink = 7
)

func direntType(m fs.FileMode) byte {
	switch m.Type() {
	case fs.ModeDir:
		return typeDir
	case fs.ModeDevice | fs.ModeCharDevice:
		return typeChar
	case fs.ModeDevice:
		return typeBlock
	case fs.ModeNamedPipe:
		return typeFIFO
	case fs.ModeSocket:
		return typeSocket
	case fs.ModeSymlink:
		return typeSymlink
	}
	return typeRegular
}

// dirWriter fills directory blocks in the order entries are added.
type dirWriter struct {
	blocks []byte
	used   int // of the last block
	last   int // offset of the last entry
}

func (w *dirWriter) add(name string, ino uint32, kind byte) {
	size := (direntHeader + len(name) + 3) &^ 3
	if len(w.blocks) == 0 || w.used+size > dirData {
		w.newBlock()
	}
	at := len(w.blocks) - blockSize + w.used
	binary.LittleEndian.PutUint32(w.blocks[at:], ino)
	binary.LittleEndian.PutUint16(w.blocks[at+4:], uint16(size))
	w.blocks[at+6] = byte(len(name))
	w.blocks[at+7] = kind
	copy(w.blocks[at+direntHeader:], name)
	w.used += size
	w.last = at
}

// newBlock lets the last entry reach the end of its block and begins another.
func (w *dirWriter) newBlock() {
	w.stretch()
	w.blocks = append(w.blocks, make([]byte, blockSize)...)
	tail := w.blocks[len(w.blocks)-dirTail:]
	binary.LittleEndian.PutUint16(tail[4:], dirTail)
	tail[7] = dirTailType
	w.used = 0
	w.last = len(w.blocks) - blockSize
}

func (w *dirWriter) stretch() {
	if len(w.blocks) == 0 {
		return
	}
	end := len(w.blocks) - dirTail
	binary.LittleEndian.PutUint16(w.blocks[w.last+4:], uint16(end-w.last))
}

// finish returns the blocks, at least minBlocks of them.
func (w *dirWriter) finish(minBlocks int) []byte {
	for len(w.blocks) < minBlocks*blockSize {
		w.newBlock()
	}
	w.stretch()
	return w.blocks
}

// sealDir sets the checksum of every block of a directory. The seed is the
// inode's.
func sealDir(blocks []byte, seed uint32) {
	for ; len(blocks) > 0; blocks = blocks[blockSize:] {
		binary.LittleEndian.PutUint32(blocks[blockSize-4:], crc32c(seed, blocks[:dirData]))
	}
}

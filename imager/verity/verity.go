// Package verity writes and checks the hash trees of dm-verity, with which the
// kernel proves every block of a read-only device when it is read.
//
// The format is version 1 of Documentation/admin-guide/device-mapper/verity.rst
// in the kernel's source, with SHA-256 and blocks of 4096 bytes for data and
// hashes, which is what every kernel and veritysetup(8) take by default. The
// digest of a block is that of the salt followed by the block. A hash block
// holds the digests of 128 blocks, the last one filled up with zeros. The
// digests of the data blocks make the lowest level, those of its hash blocks
// the next, until a level is a single block, whose digest is the root hash. The
// levels are stored from the topmost to the lowest. A device of one block has no
// tree: its digest is the root hash.
//
// Whoever knows the root hash and the salt from a trusted place needs to trust
// neither data nor tree, nor the superblock that may precede the tree: it only
// tells veritysetup what the kernel is told otherwise.
//
// A file that holds data, tree, and nothing else is made with
// extent.Concat(BlockSize, data, tree). Its tree begins at block tree.Blocks.
package verity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	BlockSize = 4096 // bytes of a data block and of a hash block
	MaxSalt   = 256  // bytes, what the superblock has room for
	MaxSize   = 1 << 40
)

// perBlock is how many digests fit into a hash block.
const perBlock = BlockSize / sha256.Size

// ErrSize is wrapped by errors for data that is empty or of more than MaxSize
// bytes.
var ErrSize = errors.New("cannot have a hash tree")

// A Tree is the hash tree of some data. It is an extent.Source of the hash
// blocks.
type Tree struct {
	Root   [sha256.Size]byte
	Salt   []byte
	Blocks int64 // of data, the last filled up with zeros

	extent.Source
}

// New reads the data once, with as many processors as there are, and returns its
// tree, which takes 1/127 of the data's size in memory. The tree is the same for
// every number of processors. The salt, of up to MaxSalt bytes, makes trees of
// equal data differ; it must follow from the input, not from chance.
func New(ctx context.Context, data extent.Source, salt []byte) (*Tree, error) {
	levels, err := plan(data.Size())
	if err != nil {
		return nil, err
	}
	if err := checkSalt(salt); err != nil {
		return nil, err
	}
	t := &Tree{Salt: salt, Blocks: blocksOf(data.Size())}
	area := make([]byte, areaSize(levels))
	for _, l := range levels {
		hashes := l.of(area)
		err := digests(ctx, data, salt, func(first int64, sums []byte) error {
			copy(hashes[first*sha256.Size:], sums)
			return nil
		})
		if err != nil {
			return nil, err
		}
		data = extent.Bytes(hashes)
	}
	// What is left is one block.
	err = digests(ctx, data, salt, func(_ int64, sums []byte) error {
		copy(t.Root[:], sums)
		return nil
	})
	t.Source = extent.Bytes(area)
	return t, err
}

// Size returns the size in bytes of the tree over size bytes of data, before
// there is any. It is a multiple of BlockSize.
func Size(size int64) (int64, error) {
	levels, err := plan(size)
	return areaSize(levels), err
}

func checkSalt(salt []byte) error {
	if len(salt) > MaxSalt {
		return fmt.Errorf("a salt of %d bytes is too long: at most %d", len(salt), MaxSalt)
	}
	return nil
}

// A level is a run of hash blocks.
type level struct {
	first, blocks int64 // in hash blocks, from the start of the tree
}

// of returns the level's part of the tree.
func (l level) of(area []byte) []byte {
	return area[l.first*BlockSize : (l.first+l.blocks)*BlockSize]
}

// plan returns the levels of the tree over size bytes, the lowest first.
func plan(size int64) ([]level, error) {
	if size <= 0 || size > MaxSize {
		return nil, fmt.Errorf("data of %d bytes %w: want 1 to %d", size, ErrSize, int64(MaxSize))
	}
	var levels []level
	var first int64
	for n := blocksOf(size); n > 1; {
		n = (n + perBlock - 1) / perBlock
		levels = append(levels, level{blocks: n})
	}
	for i := len(levels) - 1; i >= 0; i-- {
		levels[i].first = first
		first += levels[i].blocks
	}
	return levels, nil
}

// areaSize is the size in bytes of all levels.
func areaSize(levels []level) int64 {
	var blocks int64
	for _, l := range levels {
		blocks += l.blocks
	}
	return blocks * BlockSize
}

// blocksOf is how many blocks size bytes take.
func blocksOf(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

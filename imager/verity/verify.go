package verity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/kilnhq/kiln/imager/extent"
)

// A DamagedError is a block that is not what its digest says.
type DamagedError struct {
	Tree        bool  // it is a block of the tree, not of the data
	Block       int64 // from the start of the tree or of the data, the first if there are several
	Count       int64 // of damaged blocks; in the tree, of those of the same level
	Found, Want [sha256.Size]byte

	top bool // its digest is the root hash
}

// Error names the block and its place in bytes.
func (e *DamagedError) Error() string {
	what := "data"
	if e.Tree {
		what = "hash"
	}
	s := fmt.Sprintf("%s block %d (bytes %d to %d) is damaged: found digest %x, want %x",
		what, e.Block, e.Block*BlockSize, (e.Block+1)*BlockSize-1, e.Found, e.Want)
	switch {
	case e.top:
		s += ", the root hash; if all of the data is, root hash or salt are those of other data"
	case e.Count > 1:
		s += fmt.Sprintf("; %d %s blocks are", e.Count, what)
	}
	return s
}

// Verify reads data and tree and checks them against the root hash, as the
// kernel would if all of the device were read. The error for what does not match
// is a *DamagedError. It is about the topmost level of the tree with damage, as
// nothing can be said about what is below.
func Verify(ctx context.Context, data, tree extent.Source, salt []byte, root [sha256.Size]byte) error {
	levels, err := plan(data.Size())
	if err != nil {
		return err
	}
	if err := checkSalt(salt); err != nil {
		return err
	}
	if want := areaSize(levels); tree.Size() != want {
		return fmt.Errorf("a hash tree of %d bytes is not that of %d bytes of data: want %d", tree.Size(), data.Size(), want)
	}
	trusted := root[:]
	for i := len(levels) - 1; i >= 0; i-- {
		l := levels[i]
		hashes := make([]byte, l.blocks*BlockSize)
		if err := readFull(tree, hashes, l.first*BlockSize); err != nil {
			return fmt.Errorf("hash tree: %w", err)
		}
		damaged, err := compare(ctx, extent.Bytes(hashes), salt, trusted)
		if err != nil {
			return err
		}
		if damaged != nil {
			damaged.Tree = true
			damaged.Block += l.first
			damaged.top = i == len(levels)-1
			return damaged
		}
		trusted = hashes
	}
	damaged, err := compare(ctx, data, salt, trusted)
	if err != nil {
		return err
	}
	if damaged != nil {
		damaged.top = len(levels) == 0
		return damaged
	}
	return nil
}

// compare compares the digests of the blocks of src with those in trusted, and
// returns the first that differs, or nil.
func compare(ctx context.Context, src extent.Source, salt, trusted []byte) (*DamagedError, error) {
	var mu sync.Mutex
	var found *DamagedError
	err := digests(ctx, src, salt, func(first int64, sums []byte) error {
		want := trusted[first*sha256.Size:][:len(sums)]
		if bytes.Equal(sums, want) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < len(sums); i += sha256.Size {
			got, want := [sha256.Size]byte(sums[i:]), [sha256.Size]byte(want[i:])
			if got == want {
				continue
			}
			block := first + int64(i/sha256.Size)
			if found == nil {
				found = &DamagedError{Block: block, Found: got, Want: want}
			}
			if block < found.Block {
				found.Block, found.Found, found.Want = block, got, want
			}
			found.Count++
		}
		return nil
	})
	return found, err
}

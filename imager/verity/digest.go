package verity

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
)

// chunk is how much one processor reads at a time: what one hash block is for.
const chunk = perBlock * BlockSize

// digests calls visit with the digests of the blocks of src, up to perBlock of
// them at a time, beginning with that of block first. The calls come in any
// order and from several goroutines; sums is theirs until they return.
func digests(ctx context.Context, src extent.Source, salt []byte, visit func(first int64, sums []byte) error) error {
	chunks := (src.Size() + chunk - 1) / chunk
	var taken atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range min(int64(runtime.GOMAXPROCS(0)), chunks) {
		group.Go(func() error {
			var sums [perBlock * sha256.Size]byte
			buf := make([]byte, min(chunk, blocksOf(src.Size())*BlockSize))
			hash := sha256.New()
			for {
				i := taken.Add(1) - 1
				if i >= chunks {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				off := i * chunk
				n := min(chunk, src.Size()-off)
				if err := readFull(src, buf[:n], off); err != nil {
					return err
				}
				blocks := blocksOf(n)
				clear(buf[n : blocks*BlockSize])
				out := sums[:0]
				for b := range blocks {
					hash.Reset()
					hash.Write(salt)
					hash.Write(buf[b*BlockSize : (b+1)*BlockSize])
					out = hash.Sum(out)
				}
				if err := visit(i*perBlock, out); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// readFull fills p from src at off.
func readFull(src extent.Source, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d, got %d: %w", len(p), off, n, err)
}

package squashfs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// content is what one or more files hold, and where it ended up.
type content struct {
	path string // of the first file that holds it
	src  tree.Content
	size int64    // more than 0
	same *content // the one that is stored in its place, if any

	start    int64    // position of the first block
	blocks   []uint32 // stored sizes, as in the inode; 0 is a block of zeros
	sparse   int64    // bytes in blocks of zeros
	fragment uint32   // that holds the rest, or noIndex
	offset   uint32   // in the fragment
}

// readAt fills p. A content that is shorter than it said is an error.
func (c *content) readAt(p []byte, off int64) error {
	n, err := c.src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("%s: content ends at byte %d of %d: %w", c.path, off+int64(n), c.size, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%s: %w", c.path, err)
}

// fingerprint is equal for contents that are the same as far as was looked.
type fingerprint struct {
	size int64
	sum  [sha256.Size]byte
}

// dedupe finds the contents that are stored already. Contents of a size of
// their own are not read; of the others, only those that begin alike are read
// to the end.
func (l *layout) dedupe(ctx context.Context, workers int) error {
	prints := make(map[*content]fingerprint, len(l.contents))
	for _, c := range l.contents {
		prints[c] = fingerprint{size: c.size}
	}
	alike := candidates(l.contents, prints)
	for _, limit := range []int64{4 << 10, math.MaxInt64} {
		sums := make([][sha256.Size]byte, len(alike))
		err := each(ctx, workers, len(alike), func(i int, buf []byte) (err error) {
			sums[i], err = alike[i].sum(ctx, limit, buf)
			return err
		})
		if err != nil {
			return err
		}
		for i, c := range alike {
			prints[c] = fingerprint{c.size, sums[i]}
		}
		alike = candidates(alike, prints)
	}
	first := make(map[fingerprint]*content)
	for _, c := range alike {
		if first[prints[c]] == nil {
			first[prints[c]] = c
			continue
		}
		c.same = first[prints[c]]
	}
	l.contents = slices.DeleteFunc(l.contents, func(c *content) bool { return c.same != nil })
	return nil
}

// candidates returns those that share their fingerprint with another one.
func candidates(contents []*content, prints map[*content]fingerprint) []*content {
	count := make(map[fingerprint]int)
	for _, c := range contents {
		count[prints[c]]++
	}
	var out []*content
	for _, c := range contents {
		if count[prints[c]] > 1 {
			out = append(out, c)
		}
	}
	return out
}

// sum hashes the first limit bytes.
func (c *content) sum(ctx context.Context, limit int64, buf []byte) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for off, end := int64(0), min(c.size, limit); off < end; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if err := c.readAt(p, off); err != nil {
			return sum, err
		}
		h.Write(p)
		off += int64(len(p))
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// each calls f for 0 to n-1 from a number of goroutines, each with a buffer of
// its own. It returns the error of the lowest number for which f failed.
func each(ctx context.Context, workers, n int, f func(i int, buf []byte) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed, failure := n, error(nil)
	for range min(workers, n) {
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for {
				i := int(next.Add(1)) - 1
				mu.Lock()
				stop := i >= failed
				mu.Unlock()
				if stop || ctx.Err() != nil {
					return
				}
				if err := f(i, buf); err != nil {
					mu.Lock()
					if i < failed {
						failed, failure = i, err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return failure
}

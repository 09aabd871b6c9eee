package squashfs

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math"
	"sync"
)

// fragment is an entry of the fragment table.
type fragment struct {
	start int64
	size  uint32 // stored; with rawBlock
}

// piece is a part of a content, at most one block.
type piece struct {
	*content
	off int64
	n   int
}

// plan yields what goes into every data block, in the order of the blocks: one
// piece of a block's size, or the ends of files that share a fragment. It
// depends on the sizes only. A fragment is yielded when the next end does not
// fit, so it never comes between the blocks of a file.
func plan(contents []*content, blockSize int) iter.Seq2[[]piece, bool] {
	return func(yield func(pieces []piece, isFragment bool) bool) {
		var ends []piece
		used := 0
		fragments := uint32(0)
		for _, c := range contents {
			full := c.size / int64(blockSize)
			for i := range full {
				if !yield([]piece{{c, i * int64(blockSize), blockSize}}, false) {
					return
				}
			}
			n := int(c.size % int64(blockSize))
			if n == 0 {
				continue
			}
			if used+n > blockSize {
				if !yield(ends, true) {
					return
				}
				ends, used = nil, 0
				fragments++
			}
			c.fragment, c.offset = fragments, uint32(used)
			ends = append(ends, piece{c, full * int64(blockSize), n})
			used += n
		}
		if used > 0 {
			yield(ends, true)
		}
	}
}

// block is a data block on its way through a worker. Blocks are used again.
type block struct {
	pieces     []piece
	isFragment bool

	in, out []byte // memory for the block as it is, and compressed
	size    uint32 // as stored in the inode or the fragment table
	stored  []byte // what to write: a part of in or out, nil for zeros
	err     error
	done    chan struct{} // gets a value when the worker is done
}

// fill reads the block's pieces and compresses them.
func (b *block) fill(ctx context.Context, comp *compressor, blockSize int) error {
	b.stored, b.size = nil, 0
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.in == nil {
		b.in = make([]byte, blockSize)
		b.out = make([]byte, 0, blockSize+blockSize/64+64)
	}
	n := 0
	for _, p := range b.pieces {
		if err := p.readAt(b.in[n:n+p.n], p.off); err != nil {
			return err
		}
		n += p.n
	}
	src := b.in[:n]
	if !b.isFragment && isZero(src) {
		return nil
	}
	b.stored = comp.data(b.out, src)
	b.size = uint32(len(b.stored))
	if b.stored == nil {
		b.stored = src
		b.size = uint32(len(src)) | rawBlock
	}
	return nil
}

func isZero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// writeData writes the contents and returns the fragments. The blocks are
// compressed by opts.Workers goroutines and written in the order of the plan,
// with a bounded number of them in memory.
func writeData(ctx context.Context, out *output, contents []*content, comp *compressor, opts Options) ([]fragment, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	inFlight := 2*opts.Workers + 2
	free := make(chan *block, inFlight)
	order := make(chan *block, inFlight) // has room for all blocks
	todo := make(chan *block, inFlight)
	for range inFlight {
		free <- &block{done: make(chan struct{}, 1)}
	}
	wg.Go(func() {
		defer close(order)
		defer close(todo)
		for pieces, isFragment := range plan(contents, opts.BlockSize) {
			select {
			case b := <-free:
				b.pieces, b.isFragment = pieces, isFragment
				order <- b
				todo <- b
			case <-ctx.Done():
				return
			}
		}
	})
	for range opts.Workers {
		wg.Go(func() {
			for b := range todo {
				b.err = b.fill(ctx, comp, opts.BlockSize)
				b.done <- struct{}{}
			}
		})
	}
	var frags []fragment
	for b := range order {
		<-b.done
		if b.err != nil {
			return nil, b.err
		}
		if b.isFragment {
			if len(frags) == math.MaxUint32-1 {
				return nil, fmt.Errorf("%s: more than %d fragments: %w", b.pieces[0].path, len(frags), ErrUnsupported)
			}
			frags = append(frags, fragment{out.pos, b.size})
		} else {
			b.pieces[0].stored(out.pos, b.size, opts.BlockSize)
		}
		out.write(b.stored)
		if out.err != nil {
			return nil, out.err
		}
		free <- b
	}
	return frags, ctx.Err()
}

// stored notes that the next block of c is at pos.
func (c *content) stored(pos int64, size uint32, blockSize int) {
	if len(c.blocks) == 0 {
		c.start = pos
	}
	c.blocks = append(c.blocks, size)
	if size == 0 {
		c.sparse += int64(blockSize)
	}
}

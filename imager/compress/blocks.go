package compress

import (
	"context"
	"errors"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
)

// block is a piece of work: bytes [offset, end) of the map, a block of which
// extents cover something, or any number of blocks of which they cover nothing.
type block struct {
	offset, end int64
	hole        bool

	content []byte
	packed  packed
	zero    bool // the content is
	done    chan struct{}
}

// compressBlocks compresses the blocks of m. They are cut in order, compressed in
// any order, and written in order; the number of them in flight, and with it the
// memory, is bounded.
func compressBlocks(ctx context.Context, e encoding, m *extent.Map, progress func(int64)) error {
	workers := min(runtime.GOMAXPROCS(0), e.maxWorkers())
	free := make(chan *block, workers+2)
	for range cap(free) {
		free <- &block{}
	}
	todo, ordered := make(chan *block), make(chan *block, cap(free))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(todo)
		defer close(ordered)
		return cut(m, e.blockSize(), func(offset, end int64, hole bool) error {
			var b *block
			select {
			case b = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			b.offset, b.end, b.hole, b.zero, b.done = offset, end, hole, false, make(chan struct{})
			ordered <- b // has room for every block there is
			if hole {
				close(b.done)
				return nil
			}
			select {
			case todo <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range workers {
		group.Go(func() error {
			pack, err := e.packer()
			if err != nil {
				return err
			}
			for b := range todo {
				if err := b.compress(m, pack); err != nil {
					return err
				}
				close(b.done)
			}
			return nil
		})
	}
	group.Go(func() error { return writeBlocks(ctx, e, ordered, free, progress) })
	return group.Wait()
}

// cut calls yield for all of m: for one block of the given size, or for all the
// blocks up to the next extent.
func cut(m *extent.Map, size int64, yield func(offset, end int64, hole bool) error) error {
	var at int64
	for _, x := range m.Extents() {
		if first := x.Offset / size * size; first > at {
			if err := yield(at, first, true); err != nil {
				return err
			}
			at = first
		}
		for at < x.End() {
			end := min(at+size, m.Size())
			if err := yield(at, end, false); err != nil {
				return err
			}
			at = end
		}
	}
	if at < m.Size() {
		return yield(at, m.Size(), true)
	}
	return nil
}

func (b *block) compress(m *extent.Map, pack packer) error {
	n := b.end - b.offset
	if int64(cap(b.content)) < n {
		b.content = make([]byte, n)
	}
	b.content = b.content[:n]
	if got, err := m.ReadAt(b.content, b.offset); int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if b.zero = allZero(b.content); b.zero {
		return nil
	}
	var err error
	b.packed, err = pack(b.packed.bytes[:0], b.content)
	b.packed.size = n
	return err
}

// writeBlocks writes the blocks as they become ready. Zeros, of holes or not,
// are collected: what is written does not depend on where extents begin and end.
func writeBlocks(ctx context.Context, e encoding, ordered <-chan *block, free chan<- *block, progress func(int64)) error {
	var zeros int64
	for b := range ordered {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		n := b.end - b.offset
		if b.hole || b.zero {
			zeros += n
		} else {
			if zeros > 0 {
				if err := e.zeros(zeros); err != nil {
					return err
				}
				zeros = 0
			}
			if err := e.data(b.packed); err != nil {
				return err
			}
		}
		progress(n)
		free <- b
	}
	if err := ctx.Err(); err != nil || zeros == 0 {
		return err
	}
	return e.zeros(zeros)
}

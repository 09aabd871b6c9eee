package compress

import (
	"context"
	"errors"
	"io"
	"runtime"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ordered"
)

// block is a piece of work: bytes [offset, end) of the map, a block of which
// extents cover something, or any number of blocks of which they cover nothing.
type block struct {
	offset, end int64
	hole        bool

	content []byte
	packed  packed
	zero    bool // the content is
}

// compressBlocks compresses the blocks of m.
func compressBlocks(ctx context.Context, e encoding, m *extent.Map, progress func(int64)) error {
	workers := min(runtime.GOMAXPROCS(0), e.maxWorkers())
	w := &blockWriter{encoding: e, progress: progress}
	err := ordered.Pipeline[*block]{
		Workers: workers, Pieces: workers + 2,
		New: func() *block { return &block{} },
		Cut: func(next func(func(*block)) error) error {
			return cut(m, e.blockSize(), func(offset, end int64, hole bool) error {
				return next(func(b *block) { b.offset, b.end, b.hole, b.zero = offset, end, hole, false })
			})
		},
		Worker: func() (func(*block) error, error) {
			pack, err := e.packer()
			return func(b *block) error { return b.compress(m, pack) }, err
		},
		Finish: w.block,
	}.Run(ctx)
	if err != nil {
		return err
	}
	return w.flush()
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
	if b.hole {
		return nil
	}
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

// blockWriter writes blocks in their order. Zeros, of holes or not, are collected:
// what is written does not depend on where extents begin and end.
type blockWriter struct {
	encoding encoding
	zeros    int64 // not written yet
	progress func(int64)
}

func (w *blockWriter) block(b *block) error {
	n := b.end - b.offset
	if b.hole || b.zero {
		w.zeros += n
	} else {
		if err := w.flush(); err != nil {
			return err
		}
		if err := w.encoding.data(b.packed); err != nil {
			return err
		}
	}
	w.progress(n)
	return nil
}

// flush writes the zeros.
func (w *blockWriter) flush() error {
	n := w.zeros
	if w.zeros = 0; n == 0 {
		return nil
	}
	return w.encoding.zeros(n)
}

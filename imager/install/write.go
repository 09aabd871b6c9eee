package install

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
)

const (
	// pieceSize is how much is read and written at once.
	pieceSize = 4 << 20

	// tableArea is what belongs to the partition tables at either end of the
	// disk, with what old ones of other kinds may have there.
	tableArea = 1 << 20

	// headSize is the beginning of a file system without which it is none: a FAT
	// boot sector with its copy, an ext4 superblock.
	headSize = 64 << 10

	// blockSize is what the ends of pieces are multiples of, in bytes: what devices
	// and their caches write at once, so that no two pieces share one.
	blockSize = 4096

	// smallHole is the least hole between data that is not written as data.
	smallHole = 64 << 10

	workers = 4
)

// piece is a range of the disk that is written at once.
type piece struct {
	offset, length int64
	zero           bool   // reads as zeros
	sum            uint64 // of what was written
}

type writer struct {
	dev     Device
	disk    *extent.Map
	table   *gpt.Table
	options Options

	pieces []piece
	heads  []piece // written after all others

	// seed is of the pieces' sums. They are to find out devices that err, not
	// those that cheat, and must not cost more than the device.
	seed    maphash.Seed
	buffers sync.Pool // of *[pieceSize]byte
}

func newWriter(disk *extent.Map, table *gpt.Table, o Options) *writer {
	return &writer{
		disk: disk, table: table, options: o, seed: maphash.MakeSeed(),
		buffers: sync.Pool{New: func() any { return new([pieceSize]byte) }},
	}
}

// area is a range of bytes.
type area struct{ start, end int64 }

// plan cuts what is to be written into pieces. It returns how many bytes of data
// they are.
func (w *writer) plan() int64 {
	w.pieces, w.heads = nil, nil
	var heads []area
	limit := w.disk.Size() - tableArea
	for _, p := range w.table.Partitions {
		if p.Size == 0 || slices.Contains(w.options.Keep, p.Name) {
			continue
		}
		a := area{p.Start, min(p.End(), limit)}
		if len(w.options.Keep) > 0 && p.Type != gpt.LinuxFilesystem || len(w.options.Keep) > 0 && p.Name == "BOOT" {
			head := area{a.start, min(a.start+headSize, a.end)}
			heads = append(heads, head)
			a.start = head.end
		}
		w.pieces = w.cut(w.pieces, a)
	}
	for _, h := range heads {
		w.heads = w.cut(w.heads, h)
	}
	var n int64
	for _, p := range slices.Concat(w.pieces, w.heads) {
		if !p.zero {
			n += p.length
		}
	}
	return n
}

// cut appends the pieces of an area, which begins and ends with a block: those
// of the disk's extents, and the holes between them.
func (w *writer) cut(pieces []piece, a area) []piece {
	add := func(start, end int64, zero bool) {
		for start < end {
			n := end - start
			if !zero {
				n = min(n, pieceSize-start%pieceSize)
			}
			pieces = append(pieces, piece{offset: start, length: n, zero: zero})
			start += n
		}
	}
	at, data := a.start, a.start // at is the end of what was added, and data that of a run of extents
	for _, e := range w.disk.Extents() {
		start, end := max(e.Offset, a.start), min(e.End(), a.end)
		if start >= end {
			continue
		}
		start, end = start/blockSize*blockSize, min(extent.Align(end, blockSize), a.end)
		if start-data >= smallHole {
			add(at, data, false)
			add(data, start, true)
			at = start
		}
		data = end
	}
	add(at, data, false)
	add(data, a.end, true)
	return pieces
}

// disable makes the disk one that does not boot, and says what that makes of it.
func (w *writer) disable() (State, error) {
	if len(w.options.Keep) == 0 {
		for _, start := range []int64{0, w.dev.Size() - tableArea} {
			if err := w.dev.Zero(start, tableArea); err != nil {
				return Damaged, err
			}
		}
		if err := w.dev.Sync(); err != nil {
			return Erased, err
		}
		return Erased, w.dev.Discard(tableArea, w.dev.Size()-2*tableArea)
	}
	// The protective MBR stays, without what a BIOS would execute.
	sector := make([]byte, w.table.SectorSize)
	if _, err := w.dev.ReadAt(sector, 0); err != nil {
		return Untouched, err
	}
	clear(sector[:440])
	if _, err := w.dev.WriteAt(sector, 0); err != nil {
		return Untouched, err
	}
	for _, h := range w.heads {
		if err := w.dev.Zero(h.offset, h.length); err != nil {
			return Disabled, err
		}
	}
	return Disabled, w.dev.Sync()
}

// write writes the pieces.
func (w *writer) write(ctx context.Context) error {
	if err := w.writePieces(ctx, w.pieces); err != nil {
		return err
	}
	return w.dev.Sync()
}

func (w *writer) writePieces(ctx context.Context, pieces []piece) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for i := range pieces {
		if gctx.Err() != nil {
			break
		}
		p := &pieces[i]
		group.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			if p.zero {
				return w.dev.Zero(p.offset, p.length)
			}
			buffer := w.buffers.Get().(*[pieceSize]byte)
			defer w.buffers.Put(buffer)
			buf := buffer[:p.length]
			if _, err := w.disk.ReadAt(buf, p.offset); err != nil {
				return fmt.Errorf("read the image at %d: %w", p.offset, err)
			}
			if w.reads(*p) {
				p.sum = maphash.Bytes(w.seed, buf)
			}
			if _, err := w.dev.WriteAt(buf, p.offset); err != nil {
				return err
			}
			w.options.Progress(Writing, p.length)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// reads says whether a piece is read back.
func (w *writer) reads(p piece) bool {
	switch w.options.Verify {
	case None:
		return false
	case Quick:
		return !p.zero && (p.length < pieceSize || p.offset/pieceSize%16 == 0)
	}
	return !p.zero
}

// verify reads back what was written.
func (w *writer) verify(ctx context.Context) error { return w.verifyPieces(ctx, w.pieces) }

func (w *writer) verifyPieces(ctx context.Context, pieces []piece) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, p := range pieces {
		if gctx.Err() != nil {
			break
		}
		if !w.reads(p) {
			continue
		}
		group.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			if err := w.dev.Forget(p.offset, p.length); err != nil {
				return err
			}
			buffer := w.buffers.Get().(*[pieceSize]byte)
			defer w.buffers.Put(buffer)
			buf := buffer[:p.length]
			if _, err := w.dev.ReadAt(buf, p.offset); err != nil {
				return err
			}
			if maphash.Bytes(w.seed, buf) != p.sum {
				return fmt.Errorf("%w: %d bytes at %d; replace the device or its cable", ErrVerify, p.length, p.offset)
			}
			w.options.Progress(Verifying, p.length)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// writeHeads writes and checks the beginnings of file systems, on a disk that
// has its table already.
func (w *writer) writeHeads(ctx context.Context) error {
	if len(w.heads) == 0 {
		return nil
	}
	if err := w.writePieces(ctx, w.heads); err != nil {
		return err
	}
	if err := w.dev.Sync(); err != nil {
		return err
	}
	return w.verifyPieces(ctx, w.heads)
}

// finish writes the partition tables, so that the disk boots, and reads them back.
func (w *writer) finish(tables *extent.Map) error {
	if err := w.table.Store(w.dev); err != nil {
		return err
	}
	if w.options.Verify == None {
		return nil
	}
	for _, e := range tables.Extents() {
		want, got := make([]byte, e.Length), make([]byte, e.Length)
		if _, err := tables.ReadAt(want, e.Offset); err != nil {
			return err
		}
		if err := w.dev.Forget(e.Offset, e.Length); err != nil {
			return err
		}
		if _, err := w.dev.ReadAt(got, e.Offset); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: the partition table, %d bytes at %d; replace the device or its cable", ErrVerify, e.Length, e.Offset)
		}
	}
	return nil
}

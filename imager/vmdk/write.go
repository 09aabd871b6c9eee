package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"

	"github.com/klauspost/compress/zlib"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ordered"
)

const (
	// Most of what is on a disk is either compressed already, and then effort is
	// lost on it, or it is worth level 7. Above that deflate takes many times as
	// long for less than 1 %.
	fastLevel, goodLevel = 1, 7

	// A grain is worth it if of its first trialSize bytes the fast level saves
	// trialGain.
	trialSize, trialGain = 8 << 10, 256

	// batchGrains is the number of grains that are read and compressed as one
	// piece of work.
	batchGrains = 16

	markerSize = 12 // of a grain: its sector on the disk, its length
)

// Write writes the streamOptimized image of a disk to w, from start to end.
// Holes are not read, and grains of zeros take no space. The size of the disk
// must be a multiple of 512, and the image must fit into 2 TiB.
//
// It compresses on all processors and holds a few MiB for each; the bytes do not
// depend on their number. If progress is not nil it is called, from one
// goroutine at a time, with the number of bytes of the disk's extents that are
// dealt with since the last call.
func Write(ctx context.Context, w io.Writer, disk *extent.Map, o Options, progress func(n int64)) error {
	h, descriptor, err := o.layout(disk, streamOptimized)
	if err != nil {
		return err
	}
	// Hypervisors of today refuse compressed extents of versions before 3.
	h.version = 3
	h.flags |= flagCompressed | flagMarkers
	h.method = compression
	h.directory = gdAtEnd
	h.overhead = grainSectors
	if progress == nil {
		progress = func(int64) {}
	}
	s := &stream{w: w, table: make([]byte, perTable*entrySize), directory: make([]byte, tableCount(h.capacity)*entrySize), progress: progress}
	start := make([]byte, grainSize)
	copy(start, h.marshal())
	copy(start[sector:], descriptor)
	if err := s.write(start); err != nil {
		return err
	}
	if err := s.grains(ctx, disk); err != nil {
		return err
	}
	return s.finish(h)
}

// stream is an image that is being written.
type stream struct {
	w         io.Writer
	at        int64  // sectors written
	index     int64  // of table in the directory
	used      bool   // table has entries
	table     []byte // the one being filled
	directory []byte
	progress  func(int64)
}

// write writes whole sectors.
func (s *stream) write(p []byte) error {
	if s.at+int64(len(p)/sector) > math.MaxUint32+1 {
		return fmt.Errorf("%w: more than 2 TiB of compressed data", ErrInvalid)
	}
	_, err := s.w.Write(p)
	s.at += int64(len(p) / sector)
	return err
}

// metadata writes what is not a grain, padded to sectors, with its marker and
// returns its position.
func (s *stream) metadata(kind uint32, p []byte) (int64, error) {
	n := extent.Align(int64(len(p)), sector)
	b := make([]byte, sector+n)
	binary.LittleEndian.PutUint64(b, uint64(n/sector))
	binary.LittleEndian.PutUint32(b[12:], kind)
	copy(b[sector:], p)
	at := s.at + 1
	return at, s.write(b)
}

// flush writes the table if it is not the one with the given index.
func (s *stream) flush(next int64) error {
	if next == s.index {
		return nil
	}
	if s.used {
		at, err := s.metadata(markerTable, s.table)
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint32(s.directory[s.index*entrySize:], uint32(at))
	}
	s.index, s.used = next, false
	clear(s.table)
	return nil
}

// finish writes what follows the last grain.
func (s *stream) finish(h header) error {
	if err := s.flush(-1); err != nil {
		return err
	}
	at, err := s.metadata(markerDirectory, s.directory)
	if err != nil {
		return err
	}
	h.directory = uint64(at)
	if _, err := s.metadata(markerFooter, h.marshal()); err != nil {
		return err
	}
	_, err = s.metadata(markerEnd, nil)
	return err
}

// batch is a few grains of the disk, one after the other.
type batch struct {
	first     int64 // grain of the disk
	count     int64
	allocated int64 // bytes of extents in it
	content   []byte
	packed    bytes.Buffer // those of its grains that are not zeros, with markers
	sectors   []int64      // of each grain in packed
}

// grains compresses the grains of the disk and writes them.
func (s *stream) grains(ctx context.Context, disk *extent.Map) error {
	workers := runtime.GOMAXPROCS(0)
	return ordered.Pipeline[*batch]{
		Workers: workers, Pieces: 2*workers + 1,
		New: func() *batch { return &batch{content: make([]byte, batchGrains*grainSize)} },
		Cut: func(next func(func(*batch)) error) error {
			return cut(disk, func(first, end, allocated int64) error {
				return next(func(b *batch) { b.first, b.count, b.allocated = first, end-first, allocated })
			})
		},
		Worker: func() (func(*batch) error, error) {
			d, err := newDeflater()
			return func(b *batch) error { return b.compress(disk, d) }, err
		},
		Finish: func(b *batch) error {
			if err := s.batch(b); err != nil {
				return err
			}
			s.progress(b.allocated)
			return nil
		},
	}.Run(ctx)
}

// cut calls batch for the grains that the disk has data of, a few at a time. All
// grains of a batch are in the same table.
func cut(disk *extent.Map, batch func(first, end, allocated int64) error) error {
	extents := disk.Extents()
	for _, r := range runs(disk) {
		for first := r.first; first < r.end; {
			end := min(r.end, first/batchGrains*batchGrains+batchGrains)
			var allocated int64
			for len(extents) > 0 && extents[0].Offset < end*grainSize {
				e := extents[0]
				allocated += min(e.End(), end*grainSize) - max(e.Offset, first*grainSize)
				if e.End() > end*grainSize {
					break
				}
				extents = extents[1:]
			}
			if err := batch(first, end, allocated); err != nil {
				return err
			}
			first = end
		}
	}
	return nil
}

// compress reads the grains of b and fills in packed and sectors.
func (b *batch) compress(disk *extent.Map, d *deflater) error {
	content := b.content[:b.count*grainSize]
	n, err := disk.ReadAt(content, b.first*grainSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(content[n:]) // the last grain of the disk
	b.packed.Reset()
	b.sectors = b.sectors[:0]
	for i := range b.count {
		grain := content[i*grainSize : (i+1)*grainSize]
		if zero(grain) {
			b.sectors = append(b.sectors, 0)
			continue
		}
		start := b.packed.Len()
		b.packed.Write(make([]byte, markerSize))
		if err := d.deflate(&b.packed, grain); err != nil {
			return err
		}
		length := b.packed.Len() - start
		marker := b.packed.Bytes()[start:]
		binary.LittleEndian.PutUint64(marker, uint64((b.first+i)*grainSectors))
		binary.LittleEndian.PutUint32(marker[8:], uint32(length-markerSize))
		padded := extent.Align(int64(length), sector)
		b.packed.Write(make([]byte, padded-int64(length)))
		b.sectors = append(b.sectors, padded/sector)
	}
	return nil
}

// batch writes a batch.
func (s *stream) batch(b *batch) error {
	// The table of grains that came before goes before b.
	if err := s.flush(b.first / perTable); err != nil {
		return err
	}
	at := s.at
	if err := s.write(b.packed.Bytes()); err != nil {
		return err
	}
	for i, n := range b.sectors {
		if n > 0 {
			grain := b.first + int64(i)
			s.used = true
			binary.LittleEndian.PutUint32(s.table[grain%perTable*entrySize:], uint32(at))
			at += n
		}
	}
	return nil
}

// deflater compresses grains, one at a time. What it makes of a grain does not
// depend on what it compressed before.
type deflater struct {
	fast, good *zlib.Writer
	trial      bytes.Buffer
}

func newDeflater() (*deflater, error) {
	fast, err := zlib.NewWriterLevel(nil, fastLevel)
	if err != nil {
		return nil, err
	}
	good, err := zlib.NewWriterLevel(nil, goodLevel)
	return &deflater{fast: fast, good: good}, err
}

// deflate appends the compressed grain to dst.
func (d *deflater) deflate(dst *bytes.Buffer, grain []byte) error {
	d.trial.Reset()
	if err := compress(d.fast, &d.trial, grain[:trialSize]); err != nil {
		return err
	}
	if d.trial.Len() > trialSize-trialGain {
		return compress(d.fast, dst, grain)
	}
	return compress(d.good, dst, grain)
}

func compress(z *zlib.Writer, dst *bytes.Buffer, p []byte) error {
	z.Reset(dst)
	if _, err := z.Write(p); err != nil {
		return err
	}
	return z.Close()
}

// zero reports whether all bytes of p, of which there is at least one, are 0.
func zero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

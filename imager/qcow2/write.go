package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ordered"
)

// Target is what Write writes to, an *os.File for example. It must be seekable:
// where a compressed cluster goes is known only when the ones before it are
// compressed, and the header and the tables, which say so, are written last.
type Target interface {
	io.WriterAt
	// Truncate changes the size. Bytes that are added are zeros.
	Truncate(size int64) error
}

// Options are how Write writes an image.
type Options struct {
	// ClusterSize in bytes is a power of two from 512 to 2 MiB. 0 is
	// DefaultClusterSize.
	ClusterSize int64
	Compression Compression
}

// batchSize is the number of bytes that are read and compressed as one piece of
// work; at least one cluster.
const batchSize = 1 << 20

// Write writes the image of a disk, version 3 and compressed, to dst, whose
// content it replaces. Holes are not read, clusters of zeros take no space, and
// a cluster that compression would make less than 1/64 smaller is stored as it
// is. The size of the disk must be a multiple of 512.
//
// It compresses on all processors and holds a few MiB for each; the bytes do not
// depend on their number. If progress is not nil it is called, from one
// goroutine at a time, with the number of bytes of the disk's extents that are
// dealt with since the last call.
func Write(ctx context.Context, dst Target, disk *extent.Map, o Options, progress func(n int64)) error {
	g, err := newGeometry(disk.Size(), o.ClusterSize)
	if err != nil {
		return err
	}
	if _, err := newCompressor(o.Compression, g.clusterSize()); err != nil {
		return err
	}
	if err := dst.Truncate(0); err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	w := &writer{geometry: g, dst: dst, place: placer{geometry: g}, progress: progress, l2: make(map[int64][]byte)}
	w.place.allocate(1) // the header
	if err := w.data(ctx, disk, o.Compression); err != nil {
		return err
	}
	return w.finish(o.Compression)
}

type writer struct {
	geometry
	dst      Target
	place    placer
	l2       map[int64][]byte // tables by their index in the L1 table
	progress func(int64)
}

// batch is a few clusters of the disk, one after the other.
type batch struct {
	first     int64 // cluster of the disk
	allocated int64 // bytes of extents in it
	content   []byte
	packed    []byte // the compressed ones of its clusters
	lengths   []int  // of each cluster in packed; 0 is zeros, -1 not compressed
}

// data compresses the clusters of the disk and writes them.
func (w *writer) data(ctx context.Context, disk *extent.Map, c Compression) error {
	workers := runtime.GOMAXPROCS(0)
	return ordered.Pipeline[*batch]{
		Workers: workers, Pieces: 2*workers + 1,
		New: func() *batch { return &batch{} },
		Cut: func(next func(func(*batch)) error) error {
			return w.cut(disk, func(first, end, allocated int64) error {
				return next(func(b *batch) {
					size := (end - first) << w.clusterBits
					if int64(cap(b.content)) < size {
						b.content = make([]byte, size)
					}
					b.first, b.allocated, b.content = first, allocated, b.content[:size]
				})
			})
		},
		Worker: func() (func(*batch) error, error) {
			z, err := newCompressor(c, w.clusterSize())
			return func(b *batch) error { return w.compress(disk, z, b) }, err
		},
		Finish: func(b *batch) error {
			if err := w.write(b); err != nil {
				return err
			}
			w.progress(b.allocated)
			return nil
		},
	}.Run(ctx)
}

// cut calls batch for the allocated clusters of the disk, a few at a time.
func (w *writer) cut(disk *extent.Map, batch func(first, end, allocated int64) error) error {
	most := max(1, int64(batchSize)>>w.clusterBits)
	extents := disk.Extents()
	for _, r := range w.runs(disk) {
		for first := r.first; first < r.end; first += most {
			end := min(r.end, first+most)
			var allocated int64
			for len(extents) > 0 && extents[0].Offset < end<<w.clusterBits {
				e := extents[0]
				allocated += min(e.End(), end<<w.clusterBits) - max(e.Offset, first<<w.clusterBits)
				if e.End() > end<<w.clusterBits {
					break
				}
				extents = extents[1:]
			}
			if err := batch(first, end, allocated); err != nil {
				return err
			}
		}
	}
	return nil
}

// compress reads the content of b and fills in packed and lengths.
func (w *writer) compress(disk *extent.Map, z compressor, b *batch) error {
	n, err := disk.ReadAt(b.content, b.first<<w.clusterBits)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(b.content[n:]) // the last cluster of the disk
	cs := int(w.clusterSize())
	b.packed, b.lengths = b.packed[:0], b.lengths[:0]
	for rest := b.content; len(rest) > 0; rest = rest[cs:] {
		cluster := rest[:cs]
		if zero(cluster) {
			b.lengths = append(b.lengths, 0)
			continue
		}
		before := len(b.packed)
		if b.packed, err = z.compress(b.packed, cluster); err != nil {
			return err
		}
		length := len(b.packed) - before
		if length > cs-cs/64 {
			b.packed, length = b.packed[:before], -1
		}
		b.lengths = append(b.lengths, length)
	}
	return nil
}

// write gives the clusters of b their places: first the compressed ones, so
// that they lie in a row, then the others.
func (w *writer) write(b *batch) error {
	// What lies in a row in the image is written at once.
	packed, from, to := b.packed, int64(0), int64(0)
	flush := func() error {
		_, err := w.dst.WriteAt(packed[:to-from], from)
		packed = packed[to-from:]
		return err
	}
	for i, length := range b.lengths {
		if length <= 0 {
			continue
		}
		at := w.place.pack(int64(length))
		if at>>w.packedShift() != 0 {
			return fmt.Errorf("%w: compressed data at %d is out of reach of clusters of %d bytes; use smaller clusters",
				ErrInvalid, at, w.clusterSize())
		}
		if at != to {
			if err := flush(); err != nil {
				return err
			}
			from = at
		}
		to = at + int64(length)
		more := uint64((to-1)/sector - at/sector)
		w.enter(b.first+int64(i), flagPacked|more<<w.packedShift()|uint64(at))
	}
	if err := flush(); err != nil {
		return err
	}
	for i := 0; i < len(b.lengths); {
		n := 0
		for i+n < len(b.lengths) && b.lengths[i+n] < 0 {
			n++
		}
		if n == 0 {
			i++
			continue
		}
		at := w.place.allocate(int64(n))
		if _, err := w.dst.WriteAt(b.content[i<<w.clusterBits:(i+n)<<w.clusterBits], at); err != nil {
			return err
		}
		for j := range n {
			w.enter(b.first+int64(i+j), flagCopied|uint64(at+int64(j)<<w.clusterBits))
		}
		i += n
	}
	return nil
}

// enter sets the entry of a cluster of the disk in its L2 table.
func (w *writer) enter(cluster int64, entry uint64) {
	t := cluster / w.perL2()
	if w.l2[t] == nil {
		w.l2[t] = make([]byte, w.clusterSize())
	}
	binary.BigEndian.PutUint64(w.l2[t][cluster%w.perL2()*entrySize:], entry)
}

// finish writes the tables, then the header.
func (w *writer) finish(c Compression) error {
	l1 := make([]byte, w.l1Entries()*entrySize)
	for t := range w.l1Entries() {
		if table := w.l2[t]; table != nil {
			at := w.place.allocate(1)
			if _, err := w.dst.WriteAt(table, at); err != nil {
				return err
			}
			binary.BigEndian.PutUint64(l1[t*entrySize:], flagCopied|uint64(at))
		}
	}
	at := tables{l1: w.place.allocate(w.l1Clusters())}
	table, blocks, err := w.refcounts(int64(len(w.place.counts)))
	if err != nil {
		return err
	}
	at.refcountTable, at.refcountClusters = w.place.allocate(table), table
	blocksAt := w.place.allocate(blocks)
	var pointers, counts []byte
	for i := range blocks {
		pointers = binary.BigEndian.AppendUint64(pointers, uint64(blocksAt+i<<w.clusterBits))
	}
	for _, n := range w.place.counts {
		counts = binary.BigEndian.AppendUint16(counts, n)
	}
	if err := w.dst.Truncate(w.place.next); err != nil {
		return err
	}
	for _, part := range []struct {
		at int64
		b  []byte
	}{
		{at.l1, l1}, {at.refcountTable, pointers}, {blocksAt, counts}, {0, w.header(at, c)},
	} {
		if _, err := w.dst.WriteAt(part.b, part.at); err != nil {
			return err
		}
	}
	return nil
}

// zero reports whether all bytes of p, of which there is at least one, are 0.
func zero(p []byte) bool {
	return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

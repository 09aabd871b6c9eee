package qcow2

import (
	"encoding/binary"
	"io"
	"sort"

	"github.com/kilnhq/kiln/imager/extent"
)

// Map returns the image of a disk, version 3 and not compressed, with clusters
// of clusterSize bytes: a power of two from 512 to 2 MiB, or 0 for
// DefaultClusterSize.
//
// Nothing is read. A cluster that no extent of the disk touches is not
// allocated, so that holes take no space; zeros that an extent covers do. Tables
// are computed when the map is read and take no memory, whatever the size of
// the disk. The size of the disk must be a multiple of 512.
func Map(disk *extent.Map, clusterSize int64) (*extent.Map, error) {
	g, err := newGeometry(disk.Size(), clusterSize)
	if err != nil {
		return nil, err
	}
	l2 := &l2Tables{geometry: g, runs: g.runs(disk)}
	var data int64
	for _, r := range l2.runs {
		data += r.end - r.first
		for t := r.first / g.perL2(); t <= (r.end-1)/g.perL2(); t++ {
			if n := len(l2.tables); n == 0 || l2.tables[n-1] < t {
				l2.tables = append(l2.tables, t)
			}
		}
	}

	others := 1 + g.l1Clusters() + int64(len(l2.tables)) + data
	table, blocks, err := g.refcounts(others)
	if err != nil {
		return nil, err
	}
	total := others + table + blocks
	cs := g.clusterSize()
	blocksAt := (1 + table) * cs
	at := tables{l1: blocksAt + blocks*cs, refcountTable: cs, refcountClusters: table}
	l2At := at.l1 + g.l1Clusters()*cs
	l2.data = l2At + int64(len(l2.tables))*cs

	l1 := make([]byte, g.l1Entries()*entrySize)
	for i, t := range l2.tables {
		binary.BigEndian.PutUint64(l1[t*entrySize:], flagCopied|uint64(l2At+int64(i)*cs))
	}
	refcountTable := make([]byte, 0, blocks*entrySize)
	for i := range blocks {
		refcountTable = binary.BigEndian.AppendUint64(refcountTable, uint64(blocksAt+i*cs))
	}

	image := extent.New(total * cs)
	for _, part := range []struct {
		at  int64
		src extent.Source
	}{
		{0, extent.Bytes(g.header(at, Zlib))},
		{at.refcountTable, extent.Bytes(refcountTable)},
		{blocksAt, onceEach(total)},
		{at.l1, extent.Bytes(l1)},
		{l2At, l2},
	} {
		if err := image.Put(part.at, part.src); err != nil {
			return nil, err
		}
	}
	for _, r := range l2.runs {
		start := r.first * cs
		content, err := extent.Section(disk, start, min(r.end*cs, g.size)-start)
		if err == nil {
			err = image.Put(l2.data+r.before*cs, content)
		}
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}

// onceEach is a Source: the refcounts of so many clusters, all referred to once.
type onceEach int64

func (n onceEach) Size() int64 { return int64(n) * refcountLen }

func (n onceEach) ReadAt(p []byte, off int64) (int, error) {
	return readBytes(p, off, n.Size(), func(pos int64) byte { return byte(pos & 1) })
}

// l2Tables is a Source: the L2 tables of a disk whose allocated clusters lie in
// the image in the order that they have on the disk.
type l2Tables struct {
	geometry
	runs   []run
	tables []int64 // which there are, as indices of the L1 table, ascending
	data   int64   // offset of the first cluster of data in the image
}

func (l *l2Tables) Size() int64 { return int64(len(l.tables)) * l.clusterSize() }

func (l *l2Tables) ReadAt(p []byte, off int64) (int, error) {
	var (
		entry [entrySize]byte
		known = int64(-1) // the entry that is in entry
		r     = -1        // the run to look in, once found
	)
	return readBytes(p, off, l.Size(), func(pos int64) byte {
		if i := pos / entrySize; i != known {
			known = i
			cluster := l.tables[i/l.perL2()]*l.perL2() + i%l.perL2()
			if r < 0 {
				r = sort.Search(len(l.runs), func(i int) bool { return l.runs[i].end > cluster })
			}
			for r < len(l.runs) && l.runs[r].end <= cluster {
				r++
			}
			var v uint64
			if r < len(l.runs) && l.runs[r].first <= cluster {
				v = flagCopied | uint64(l.data+(l.runs[r].before+cluster-l.runs[r].first)<<l.clusterBits)
			}
			binary.BigEndian.PutUint64(entry[:], v)
		}
		return entry[pos%entrySize]
	})
}

// readBytes is ReadAt of a source of size bytes, of which at returns each.
func readBytes(p []byte, off, size int64, at func(pos int64) byte) (int, error) {
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	for i := range p {
		p[i] = at(off + int64(i))
	}
	return len(p), eof
}

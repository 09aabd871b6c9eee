// Package extent describes large byte sequences that have not been written
// yet: an ordered list of (offset, source) pairs over a size, where whatever
// no source covers is a hole that reads as zeros.
//
// Partitions, file systems and whole disks are Maps. A Map is itself a Source,
// so a disk is composed by putting the map of each file system at the offset of
// its partition; file contents stay where they are until a writer streams the
// outermost map once.
package extent

import (
	"errors"
	"fmt"
	"io"
	"sort"
)

// Source is an immutable sequence of Size bytes with random access.
// ReadAt must be safe for concurrent use. Sources hold no open resources, so
// there is nothing to close.
type Source interface {
	io.ReaderAt
	Size() int64
}

// Errors returned, wrapped, by Map.Put.
var (
	ErrOverlap = errors.New("extents overlap")
	ErrBounds  = errors.New("extent out of bounds")
)

// Extent is one run of a Map: Length bytes of Source, beginning at byte At of
// the source, placed at byte Offset of the map.
type Extent struct {
	Offset int64
	Length int64
	Source Source
	At     int64
}

// End returns the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Map is a sparse sequence of bytes. Build it with Put from one goroutine;
// after that all its methods are safe for concurrent use.
type Map struct {
	size    int64
	extents []Extent // sorted by Offset, not overlapping, no empty ones
}

// New returns a map of size bytes that is one hole.
func New(size int64) *Map { return &Map{size: size} }

// Size returns the size of the map in bytes, holes included.
func (m *Map) Size() int64 { return m.size }

// Extents returns the extents in ascending order of offset.
// The caller must not modify the slice.
func (m *Map) Extents() []Extent { return m.extents }

// Allocated returns the number of bytes covered by extents.
func (m *Map) Allocated() int64 {
	var n int64
	for _, e := range m.extents {
		n += e.Length
	}
	return n
}

// Put places src at offset off. A source that is itself a Map, or a Section of
// one, contributes its extents; its holes stay holes. Nothing is read.
func (m *Map) Put(off int64, src Source) error {
	n := src.Size()
	if off < 0 || n < 0 || off > m.size-n {
		return fmt.Errorf("%w: %d bytes at %d in a map of %d", ErrBounds, n, off, m.size)
	}
	inner, ok := src.(*Map)
	if !ok {
		if n == 0 {
			return nil
		}
		return m.insert(Extent{Offset: off, Length: n, Source: src})
	}
	for _, e := range inner.extents {
		e.Offset += off
		if err := m.insert(e); err != nil {
			return err
		}
	}
	return nil
}

// PutBytes places a copy-free view of b at offset off.
func (m *Map) PutBytes(off int64, b []byte) error { return m.Put(off, Bytes(b)) }

func (m *Map) insert(e Extent) error {
	i := len(m.extents)
	if i > 0 && m.extents[i-1].End() > e.Offset { // not the usual append
		i = sort.Search(len(m.extents), func(i int) bool { return m.extents[i].Offset >= e.Offset })
	}
	if i > 0 && m.extents[i-1].End() > e.Offset {
		return overlap(m.extents[i-1], e)
	}
	if i < len(m.extents) && m.extents[i].Offset < e.End() {
		return overlap(m.extents[i], e)
	}
	m.extents = append(m.extents, Extent{})
	copy(m.extents[i+1:], m.extents[i:])
	m.extents[i] = e
	return nil
}

func overlap(a, b Extent) error {
	return fmt.Errorf("%w: [%d, %d) and [%d, %d)", ErrOverlap, a.Offset, a.End(), b.Offset, b.End())
}

// ReadAt implements io.ReaderAt; holes read as zeros.
func (m *Map) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%w: read at %d", ErrBounds, off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	i := sort.Search(len(m.extents), func(i int) bool { return m.extents[i].End() > off })
	n := 0
	for n < len(p) {
		pos := off + int64(n)
		rest := p[n:]
		if i == len(m.extents) {
			clear(rest)
			return len(p), eof
		}
		e := m.extents[i]
		if pos < e.Offset {
			hole := min(int64(len(rest)), e.Offset-pos)
			clear(rest[:hole])
			n += int(hole)
			continue
		}
		want := min(int64(len(rest)), e.End()-pos)
		got, err := readFull(e.Source, rest[:want], e.At+pos-e.Offset)
		n += got
		if err != nil {
			return n, err
		}
		i++
	}
	return n, eof
}

// readFull reads exactly len(p) bytes; a source shorter than it said is
// io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Bytes returns a source that reads b, which must not change afterwards.
func Bytes(b []byte) Source { return bytesSource(b) }

type bytesSource []byte

func (b bytesSource) Size() int64 { return int64(len(b)) }

func (b bytesSource) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Section returns n bytes of src beginning at off. A section of a Map is a Map.
func Section(src Source, off, n int64) (Source, error) {
	if off < 0 || n < 0 || off > src.Size()-n {
		return nil, fmt.Errorf("%w: section of %d bytes at %d in %d", ErrBounds, n, off, src.Size())
	}
	m, ok := src.(*Map)
	if !ok {
		sec := New(n)
		if n > 0 {
			sec.extents = []Extent{{Length: n, Source: src, At: off}}
		}
		return sec, nil
	}
	sec := New(n)
	for _, e := range m.extents {
		start, end := max(e.Offset, off), min(e.End(), off+n)
		if start >= end {
			continue
		}
		sec.extents = append(sec.extents, Extent{
			Offset: start - off, Length: end - start, Source: e.Source, At: e.At + start - e.Offset,
		})
	}
	return sec, nil
}

// Concat returns the sources one after the other, each padded with a hole to
// the next multiple of align bytes.
func Concat(align int64, sources ...Source) (*Map, error) {
	var size int64
	for _, s := range sources {
		size += Align(s.Size(), align)
	}
	m := New(size)
	var off int64
	for _, s := range sources {
		if err := m.Put(off, s); err != nil {
			return nil, err
		}
		off += Align(s.Size(), align)
	}
	return m, nil
}

// Align rounds n up to a multiple of a.
func Align(n, a int64) int64 { return (n + a - 1) / a * a }

// Reader returns a reader over the whole of src.
func Reader(src Source) *io.SectionReader { return io.NewSectionReader(src, 0, src.Size()) }

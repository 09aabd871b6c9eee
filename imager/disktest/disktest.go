// Package disktest is for the tests of packages that write and read images of
// disks: it generates disks, has QEMU judge images of them, and, in benchmarks,
// runs the usual program side by side with ours.
//
// Everything that it generates follows from its arguments.
package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
)

// Text returns n bytes that compress to about half.
func Text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, n+20)
	for len(p) < n {
		p = fmt.Appendf(p, "%x line of %d\n", rng.Uint32(), rng.IntN(50))
	}
	return p[:n]
}

// Noise returns n bytes that do not compress. None of them is 0.
func Noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = max(1, byte(rng.Uint32()))
	}
	return p
}

// Piece is content at an offset of a disk.
type Piece struct {
	at      int64
	content []byte
}

// At returns content at an offset, in bytes, of a disk.
func At(offset int64, content []byte) Piece { return Piece{offset, content} }

// Disk returns a disk of size bytes with pieces in it.
func Disk(t testing.TB, size int64, pieces ...Piece) *extent.Map {
	t.Helper()
	m := extent.New(size)
	for _, p := range pieces {
		if err := m.PutBytes(p.at, p.content); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// Mixed returns a disk of text, noise, zeros and holes in pieces of any size up
// to 1 MiB.
func Mixed(t testing.TB, size int64, seed uint64) *extent.Map {
	t.Helper()
	return pieces(t, size, seed, 1<<20, func(kind, n int, seed uint64) []byte {
		switch kind {
		case 0:
			return Text(n, seed)
		case 1:
			return Noise(n, seed)
		case 2:
			return make([]byte, n)
		}
		return nil
	})
}

// Scattered returns a disk of noise and holes in pieces of any size up to
// 4 MiB.
func Scattered(t testing.TB, size int64, seed uint64) *extent.Map {
	t.Helper()
	return pieces(t, size, seed, 4<<20, func(kind, n int, seed uint64) []byte {
		if kind < 2 {
			return Noise(n, seed)
		}
		return nil
	})
}

// pieces fills a disk with what content returns for kinds 0 to 3, nil for a
// hole.
func pieces(t testing.TB, size int64, seed uint64, most int64, content func(kind, n int, seed uint64) []byte) *extent.Map {
	t.Helper()
	m := extent.New(size)
	rng := rand.New(rand.NewPCG(seed, 3))
	for off := int64(0); off < size; {
		n := min(size-off, 1+rng.Int64N(max(16, most>>rng.IntN(16))))
		if p := content(rng.IntN(4), int(n), uint64(off)); p != nil {
			if err := m.PutBytes(off, p); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	return m
}

// ErrRead is what reading a Broken source fails with.
var ErrRead = errors.New("bad sector")

// Broken is a source of so many bytes of which none can be read.
type Broken int64

func (b Broken) Size() int64                       { return int64(b) }
func (b Broken) ReadAt([]byte, int64) (int, error) { return 0, ErrRead }

// Write writes m to a new file.
func Write(t testing.TB, path string, m *extent.Map) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
}

// Sparse returns the file at path as a map in which holes of the file are holes.
func Sparse(t testing.TB, path string) *extent.Map {
	t.Helper()
	src, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := extent.New(src.Size())
	for off := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		if off, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		section, err := extent.Section(src, start, off-start)
		if err == nil {
			err = m.Put(start, section)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Open opens the image at path with the Open function of a format.
func Open(t testing.TB, path string, open func(extent.Source) (*extent.Map, error)) *extent.Map {
	t.Helper()
	f, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := open(f)
	if err != nil {
		t.Fatalf("open %s: %v", filepath.Base(path), err)
	}
	return m
}

// Read returns n bytes of src, fewer at its end.
func Read(t testing.TB, src io.ReaderAt, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	n, err := src.ReadAt(p, off)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p[:n]
}

// Content returns all bytes of m.
func Content(t testing.TB, m *extent.Map) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Same fails the test unless two sources have the same bytes. What is a hole in
// both is not read, and neither is what only got says is data if that is more
// than 1 GiB, as in an image that has no holes: it would take too long.
func Same(t testing.TB, got, want extent.Source) {
	t.Helper()
	if got.Size() != want.Size() {
		t.Fatalf("disk of %d bytes, want %d", got.Size(), want.Size())
	}
	maps := []*extent.Map{asMap(t, want)}
	if m := asMap(t, got); m.Allocated() <= 1<<30 {
		maps = append(maps, m)
	}
	// Reads of an odd number of bytes, which cut through everything, and of a
	// little around each extent.
	const step, around = 100_003, 5000
	for _, m := range maps {
		done := int64(0)
		for _, e := range m.Extents() {
			for off := max(done, e.Offset-around); off < min(e.End()+around, want.Size()); off += step {
				n := int(min(step, e.End()+around-off))
				if a, b := Read(t, got, off, n), Read(t, want, off, n); !bytes.Equal(a, b) {
					t.Fatalf("content differs in the %d bytes at %d", n, off)
				}
				done = off + int64(n)
			}
		}
	}
}

func asMap(t testing.TB, src extent.Source) *extent.Map {
	t.Helper()
	m := extent.New(src.Size())
	if err := m.Put(0, src); err != nil {
		t.Fatal(err)
	}
	return m
}

// Disks returns disks by what is particular about them, all cheap to write.
func Disks(t testing.TB) map[string]*extent.Map {
	t.Helper()
	return map[string]*extent.Map{
		"hole":       extent.New(10 << 20),
		"one sector": Disk(t, 512, Piece{0, Text(512, 1)}),
		"zeros":      Disk(t, 3<<20, Piece{1 << 20, make([]byte, 1<<20)}),
		"full text":  Disk(t, 3<<20, Piece{0, Text(3<<20, 2)}),
		"full noise": Disk(t, 6<<20, Piece{0, Noise(6<<20, 3)}),
		"odd size":   Disk(t, 3<<20+3*512, Piece{0, Text(70000, 4)}, Piece{3 << 20, Noise(3*512, 5)}),
		"unaligned": Disk(t, 9<<20, Piece{1, Text(3, 6)}, Piece{65535, Noise(2, 7)}, Piece{1<<20 - 7, Noise(300_001, 8)},
			Piece{2<<20 - 7, Noise(4<<20, 9)}, Piece{9<<20 - 1, []byte{1}}),
		"noise then text": Disk(t, 4<<20, Piece{100, Noise(1<<20, 10)}, Piece{2<<20 + 5, Text(1<<20, 11)}),
		"mixed":           Mixed(t, 4<<20+512, 12),
		"scattered":       Scattered(t, 20<<20+512, 13),
		"past 4 GiB":      Disk(t, 5<<30, Piece{0, Text(1000, 14)}, Piece{4<<30 - 100, Noise(200, 15)}, Piece{5<<30 - 70000, Text(70000, 16)}),
	}
}

package extent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestMapReads(t *testing.T) {
	inner := New(100)
	put(t, inner, 10, Bytes([]byte("hello")))
	put(t, inner, 90, Bytes([]byte("end of it!")))
	outer := New(300)
	put(t, outer, 150, inner)
	put(t, outer, 0, Bytes([]byte("start")))
	sec, err := Section(outer, 152, 130)
	if err != nil {
		t.Fatal(err)
	}
	put(t, outer, 20, must(t)(Section(outer, 160, 5)))

	want := make([]byte, 300)
	copy(want, "start")
	copy(want[20:], "hello")
	copy(want[160:], "hello")
	copy(want[240:], "end of it!")
	if err := iotest.TestReader(Reader(outer), want); err != nil {
		t.Error(err)
	}
	if err := iotest.TestReader(Reader(sec), want[152:282]); err != nil {
		t.Error(err)
	}
	var buf bytes.Buffer
	if _, err := outer.WriteTo(&buf); err != nil || !bytes.Equal(buf.Bytes(), want) {
		t.Errorf("WriteTo: %v, %d bytes", err, buf.Len())
	}
	if n := outer.Allocated(); n != 25 {
		t.Errorf("Allocated = %d, want 25", n)
	}
}

func TestPutErrors(t *testing.T) {
	m := New(100)
	put(t, m, 50, Bytes(make([]byte, 10)))
	for _, tt := range []struct {
		off  int64
		n    int
		want error
	}{
		{45, 6, ErrOverlap}, {59, 1, ErrOverlap}, {40, 30, ErrOverlap}, {95, 6, ErrBounds}, {-1, 1, ErrBounds}, {101, 0, ErrBounds},
	} {
		if err := m.Put(tt.off, Bytes(make([]byte, tt.n))); !errors.Is(err, tt.want) {
			t.Errorf("Put(%d, %d bytes) = %v, want %v", tt.off, tt.n, err, tt.want)
		}
	}
	put(t, m, 60, Bytes(make([]byte, 40)))
	put(t, m, 0, Bytes(make([]byte, 50)))
}

// TestRandom compares maps of random pieces with a plain byte slice, read at
// random places and written sparsely.
func TestRandom(t *testing.T) {
	dir := t.TempDir()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m, want := New(4<<20), make([]byte, 4<<20)
		for range 40 {
			piece := make([]byte, rng.IntN(200_000))
			for i := range piece {
				piece[i] = byte(rng.Uint32())
			}
			off := rng.Int64N(m.Size())
			var src Source = Bytes(piece)
			if rng.IntN(2) == 0 {
				name := filepath.Join(dir, "piece-"+string(rune('a'+rng.IntN(26))))
				if _, err := os.Stat(name); err != nil {
					if err := os.WriteFile(name, piece, 0o600); err != nil {
						t.Fatal(err)
					}
					src = must(t)(File(name))
				}
			}
			if m.Put(off, src) == nil {
				copy(want[off:], piece)
			}
		}
		for range 50 {
			off := rng.Int64N(m.Size())
			p := make([]byte, rng.IntN(100_000))
			n, err := m.ReadAt(p, off)
			if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
				t.Fatalf("seed %d: ReadAt(%d, %d) = %d, %v", seed, len(p), off, n, err)
			}
		}
		out, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		var progress int64
		err = WriteSparse(t.Context(), out, m, func(n int64) { progress += n })
		out.Close()
		got, _ := os.ReadFile(out.Name())
		if err != nil || !bytes.Equal(got, want) || progress != m.Allocated() {
			t.Fatalf("seed %d: WriteSparse: %v, progress %d of %d", seed, err, progress, m.Allocated())
		}
		for _, e := range m.Extents() {
			if f, ok := e.Source.(*FileSource); ok {
				os.Remove(f.Path())
			}
		}
	}
}

func TestWriteSparseCopiesFiles(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	name := filepath.Join(dir, "in")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m := New(64 << 20)
	put(t, m, 12345, must(t)(Section(must(t)(File(name)), 7, int64(len(data)-9))))
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := WriteSparse(t.Context(), out, m, nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data)-9)
	if _, err := out.ReadAt(got, 12345); err != nil || !bytes.Equal(got, data[7:len(data)-2]) {
		t.Errorf("content differs (%v)", err)
	}
	if fi, err := out.Stat(); err != nil || fi.Size() != m.Size() {
		t.Errorf("size %d, %v", fi.Size(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteSparse(ctx, out, m, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestFileShrank(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	f := must(t)(File(name))
	if err := os.Truncate(name, 50); err != nil {
		t.Fatal(err)
	}
	m := New(100)
	put(t, m, 0, f)
	if _, err := m.WriteTo(io.Discard); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), name) {
		t.Errorf("WriteTo: %v", err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := WriteSparse(t.Context(), out, m, nil); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), name) {
		t.Errorf("WriteSparse: %v", err)
	}
}

// TestWriteSparseOfTwoFiles goes back and forth between files, with extents of
// sizes that are copied by the kernel and that are not.
func TestWriteSparseOfTwoFiles(t *testing.T) {
	dir := t.TempDir()
	var files []Source
	for i := range 2 {
		name := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i + 1), 7, 9}, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, must(t)(File(name)))
	}
	m := New(8 << 20)
	for i, n := range []int64{3, 70_000, 200_000, 5, 1 << 20, 300_000, 1} {
		put(t, m, int64(i)<<20+int64(i), must(t)(Section(files[i/2%2], int64(i)*1000, n)))
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := WriteSparse(t.Context(), out, m, nil); err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if _, err := m.WriteTo(&want); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("content differs (%v)", err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := WriteSparse(t.Context(), out, m, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file is gone: %v", err)
	}
}

func TestConcat(t *testing.T) {
	m, err := Concat(4, Bytes([]byte("abcde")), Bytes([]byte("f")))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(Reader(m), []byte("abcde\x00\x00\x00f\x00\x00\x00")); err != nil {
		t.Error(err)
	}
}

func put(t *testing.T, m *Map, off int64, src Source) {
	t.Helper()
	if err := m.Put(off, src); err != nil {
		t.Fatal(err)
	}
}

// must returns a function that unwraps a (Source, error) pair.
func must(t *testing.T) func(src any, err error) Source {
	return func(src any, err error) Source {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return src.(Source)
	}
}

package extent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestIndex(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := File(name)
	if err != nil {
		t.Fatal(err)
	}
	again, err := File(name)
	if err != nil {
		t.Fatal(err)
	}
	text := Bytes([]byte("text"))
	program, err := Concat(512, text, file) // has a hole after text
	if err != nil {
		t.Fatal(err)
	}
	m := New(10000)
	for off, src := range map[int64]Source{100: file, 2000: program, 4000: Bytes(nil)} {
		if err := m.Put(off, src); err != nil {
			t.Fatal(err)
		}
	}
	section := func(src Source, off, n int64) Source {
		s, err := Section(src, off, n)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	filled := New(10000)
	for off, src := range map[int64]Source{0: text, 100: Bytes([]byte{0}), 512: file} {
		if err := filled.Put(off, src); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		in   *Map
		src  Source
		want int64
	}{
		{"a file", m, file, 100},
		{"bytes", m, text, 2000},
		{"pieces with a hole", m, program, 2000},
		{"a section", m, section(file, 10, 20), 110},
		{"a section of pieces", m, section(program, 2, 600), 2002},
		{"the same file opened again", m, again, 100},
		{"equal bytes", m, Bytes([]byte("text")), -1},
		{"nothing", m, Bytes(nil), -1},
		{"a hole", m, New(10), -1},
		{"something where there is a hole", filled, program, -1},
		{"an end that is missing", section(m, 0, 2600).(*Map), program, -1},
		{"a source that cannot be compared", m, uncomparable{[]byte{1}}, -1},
	} {
		if got := tt.in.Index(tt.src); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

type uncomparable struct{ b []byte }

func (u uncomparable) Size() int64                             { return int64(len(u.b)) }
func (u uncomparable) ReadAt(p []byte, off int64) (int, error) { return Bytes(u.b).ReadAt(p, off) }

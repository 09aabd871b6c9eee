package ext4

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/powercut"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// What Extents says is where a file's content is: after Build, and after Rewrite,
// which leaves a part of the room that a file has unwritten.
func TestExtents(t *testing.T) {
	random := func(seed byte, size int) []byte {
		b := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	tr := tree.New()
	add := func(name string, content tree.Content) {
		if err := tr.Add(name, &tree.Inode{Mode: 0o644, Content: content}); err != nil {
			t.Fatal(err)
		}
	}
	large := random(1, 3<<20+5)
	add("large", bytes.NewReader(large))
	add("room", nil)
	add("last", nil)
	const size = 16 << 20
	m, err := Build(tr, Options{Size: size, Preallocate: map[string]int64{"room": 4 << 20, "last": 1}})
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, size)
	if _, err := m.ReadAt(image, 0); err != nil {
		t.Fatal(err)
	}
	want := func(image []byte, name string, content []byte) {
		t.Helper()
		f, err := Open(bytes.NewReader(image), size)
		if err != nil {
			t.Fatal(err)
		}
		extents, err := f.Extents(name)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for _, e := range extents {
			got = append(got, image[e.Offset:e.Offset+e.Length]...)
		}
		if len(got) != (len(content)+4095)/4096*4096 || !bytes.Equal(got[:len(content)], content) {
			t.Errorf("%s: %v is not where its content is", name, extents)
		}
	}
	want(image, "large", large)
	f, err := Open(bytes.NewReader(image), size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Extents("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, name := range []string{"room", "lost+found"} {
		if _, err := f.Extents(name); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), name+" is empty or not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}

	d := powercut.New(image)
	e, err := Edit(d, size)
	if err != nil {
		t.Fatal(err)
	}
	again := random(2, 2<<20+4095)
	files := []File{{Name: "large", Content: extent.Bytes(again)}, {Name: "room", Content: extent.Bytes(large)}, {Name: "last", Content: extent.Bytes([]byte("x"))}}
	if err := e.Rewrite(t.Context(), ".", files); err != nil {
		t.Fatal(err)
	}
	want(d.Bytes(), "large", again)
	want(d.Bytes(), "room", large)
}

// Holes cannot be parts of a device.
func TestExtentsOfHoles(t *testing.T) {
	for _, runs := range [][]mapping{
		nil,
		{{logical: 1, run: run{10, 2}}},
		{{logical: 0, run: run{10, 1}}, {logical: 2, run: run{11, 1}}},
		{{logical: 0, run: run{10, 1}}, {logical: 1, run: run{11, 2}, unwritten: true}},
	} {
		c := &content{reader: &reader{blockSize: blockSize}, size: 3 * blockSize, runs: runs}
		c.once.Do(func() {})
		tr := tree.New()
		if err := tr.Add("f", &tree.Inode{Mode: 0o644, Content: c}); err != nil {
			t.Fatal(err)
		}
		if got, err := (&FileSystem{Tree: tr}).Extents("f"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "f has a hole at byte ") {
			t.Errorf("%v: %v, %v", runs, got, err)
		}
	}
}

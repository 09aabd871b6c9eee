package ext4

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// recorder is a device in memory that remembers what was written to it, by
// sector, and between which syncs.
type recorder struct {
	base, now []byte
	writes    []sectorWrite
	epoch     int // number of syncs
	fail      int // the write or sync that fails, counted from 1
	calls     int
	err       error
}

type sectorWrite struct {
	off   int64
	data  []byte
	epoch int
}

func record(image []byte) *recorder {
	return &recorder{base: image, now: bytes.Clone(image)}
}

func (d *recorder) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.now).ReadAt(p, off)
}

func (d *recorder) WriteAt(p []byte, off int64) (int, error) {
	if d.calls++; d.calls == d.fail {
		half := len(p) / 2 / sectorSize * sectorSize // a part of it gets there
		n, _ := d.write(p[:half], off)
		return n, d.err
	}
	return d.write(p, off)
}

func (d *recorder) write(p []byte, off int64) (int, error) {
	if len(p)%sectorSize != 0 || off%sectorSize != 0 {
		return 0, fmt.Errorf("%d bytes at %d are not whole sectors", len(p), off)
	}
	for at := 0; at < len(p); at += sectorSize {
		d.writes = append(d.writes, sectorWrite{off + int64(at), bytes.Clone(p[at:][:sectorSize]), d.epoch})
	}
	return copy(d.now[off:], p), nil
}

func (d *recorder) Sync() error {
	if d.calls++; d.calls == d.fail {
		return d.err
	}
	d.epoch++
	return nil
}

// after returns the device after a cut: with the first n sectors.
func (d *recorder) after(n int) []byte {
	b := bytes.Clone(d.base)
	for _, w := range d.writes[:n] {
		copy(b[w.off:], w.data)
	}
	return b
}

// reordered returns the device after a cut between two syncs, where any of the
// sectors written since the first got there.
func (d *recorder) reordered(r *rand.Rand) []byte {
	b := bytes.Clone(d.base)
	epoch := r.IntN(d.epoch + 1)
	var open []sectorWrite
	for _, w := range d.writes {
		switch {
		case w.epoch < epoch:
			copy(b[w.off:], w.data)
		case w.epoch == epoch:
			open = append(open, w)
		}
	}
	share := r.IntN(3)
	for _, i := range r.Perm(len(open)) {
		if r.IntN(4) > share {
			copy(b[open[i].off:], open[i].data)
		}
	}
	return b
}

// slots is a BOOT partition with a full slot A and room for as much in B.
func slots(t testing.TB) (image []byte, tr *tree.Tree, opts Options) {
	t.Helper()
	tr = tree.New()
	add(t, tr, "A/vmlinuz", &tree.Inode{Mode: 0o644, Content: pattern{20_001, 1}})
	add(t, tr, "A/initramfs", &tree.Inode{Mode: 0o644, Content: pattern{60_000, 2}})
	add(t, tr, "A/slot.cfg", text("A\n"))
	for _, name := range []string{"vmlinuz", "initramfs", "slot.cfg"} {
		add(t, tr, "B/"+name, &tree.Inode{Mode: 0o644})
	}
	add(t, tr, "grub/grub.cfg", text("set default=A\n"))
	add(t, tr, "grub/grubenv", text(string(bytes.Repeat([]byte{'#'}, 1024))))
	for _, ino := range tr.All() {
		ino.ModTime = 1_600_000_000
	}
	opts = testOptions
	opts.Preallocate = map[string]int64{"A/initramfs": 100_000, "B/initramfs": 150_000, "B/slot.cfg": 1}
	size, err := MinSize(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Size = size
	if image, err = io.ReadAll(extent.Reader(build(t, tr, opts))); err != nil {
		t.Fatal(err)
	}
	return image, tr, opts
}

// newSlot are the contents of an upgrade.
func newSlot(kernel, initramfs int64) []File {
	return []File{
		{"vmlinuz", pattern{kernel, 11}, 1_700_000_001},
		{"initramfs", pattern{initramfs, 12}, 1_700_000_002},
		{"slot.cfg", extent.Bytes([]byte("new\n")), 1_700_000_003},
	}
}

// want returns the tree after a rewrite of a slot.
func want(t testing.TB, tr *tree.Tree, dir string, files []File) *tree.Tree {
	t.Helper()
	out := tree.New()
	for name, ino := range tr.All() {
		c := *ino
		add(t, out, name, &c)
	}
	for _, f := range files {
		ino := out.Lookup(dir + "/" + f.Name)
		ino.Content, ino.ModTime = f.Content, f.ModTime
	}
	return out
}

// editor opens an image for editing.
func editor(t testing.TB, dev Device, size int) *Editor {
	t.Helper()
	e, err := Edit(dev, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// holds compares the files in an image with a tree.
func holds(t *testing.T, image []byte, want *tree.Tree) {
	t.Helper()
	got, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, got.Tree, want)
}

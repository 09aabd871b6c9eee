package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestPreallocate has e2fsck check room of all sizes, also in more pieces than
// an inode can describe, and the smallest file system for it.
func TestPreallocate(t *testing.T) {
	for _, room := range []int64{14, 4096, 60_000, 4097 * 4096, 100 * mib, 128 * mib, 300 * mib, 700 * mib, 2 * gib} {
		tr := boot(t)
		opts := testOptions
		opts.Preallocate = map[string]int64{"grub/grub.cfg": room, "A/initramfs": max(room, 3_000_001)}
		size, err := MinSize(tr, opts)
		if err != nil {
			t.Fatal(err)
		}
		opts.Size = size
		m := build(t, tr, opts)
		fsck(t, writeImage(t, m))
		opts.Size -= blockSize
		var space *SpaceError
		if _, err := Build(tr, opts); !errors.As(err, &space) || space.Need != size {
			t.Errorf("%d bytes of room, one block less than %d: %v", room, size, err)
		}
		fsys, err := Open(m, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, fsys.Tree, tr)
		dev := &overlay{src: m, blocks: map[int64][]byte{}}
		e, err := Edit(dev, size)
		if err != nil {
			t.Fatal(err)
		}
		files, err := e.load()
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range opts.Preallocate {
			f := files[name]
			if got := count(f.owned()) - int64(len(f.index)); got != ceil(want, blockSize) {
				t.Errorf("%s has %d blocks, want room for %d bytes", name, got, want)
			}
		}
	}
	for name, room := range map[string]int64{"A": mib, "C": mib, "A/vmlinuz": 1_234_566} {
		opts := sized(64 * mib)
		opts.Preallocate = map[string]int64{name: room}
		if _, err := Build(boot(t), opts); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), "Preallocate: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// overlay keeps what is written to a large device.
type overlay struct {
	src    extent.Source
	blocks map[int64][]byte
}

func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.src.ReadAt(p, off)
	for i := 0; i < n; i += sectorSize - int(off+int64(i))%sectorSize {
		at := off + int64(i)
		if b := o.blocks[at/sectorSize]; b != nil {
			copy(p[i:n], b[at%sectorSize:])
		}
	}
	return n, err
}

func (o *overlay) WriteAt(p []byte, off int64) (int, error) {
	for i := 0; i < len(p); i += sectorSize {
		o.blocks[(off+int64(i))/sectorSize] = bytes.Clone(p[i:][:sectorSize])
	}
	return len(p), nil
}

func (o *overlay) Sync() error { return nil }

// image returns the device as a map, for e2fsck.
func (o *overlay) image(t *testing.T) *extent.Map {
	m := extent.New(o.src.Size())
	buf := make([]byte, blockSize)
	for off := int64(0); off < m.Size(); off += blockSize {
		if _, err := o.ReadAt(buf, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, make([]byte, blockSize)) {
			if err := m.PutBytes(off, bytes.Clone(buf)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

// TestLargeSlot rewrites a slot that lies across groups.
func TestLargeSlot(t *testing.T) {
	tr := tree.New()
	for _, name := range []string{"A/initramfs", "A/slot.cfg", "A/vmlinuz", "B/initramfs", "B/slot.cfg", "B/vmlinuz"} {
		add(t, tr, name, &tree.Inode{Mode: 0o644})
	}
	opts := sized(1200 * mib)
	opts.Preallocate = map[string]int64{"A/initramfs": 500 * mib, "A/slot.cfg": 1, "B/initramfs": 600 * mib, "B/slot.cfg": 1}
	dev := &overlay{src: build(t, tr, opts), blocks: map[int64][]byte{}}
	e, err := Edit(dev, opts.Size)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		files := newSlot(5*mib, 6*mib)
		if err := e.Rewrite(t.Context(), "B", files); err != nil {
			t.Fatal(err)
		}
		m := dev.image(t)
		fsck(t, writeImage(t, m))
		got, err := Open(m, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, got.Tree, want(t, tr, "B", files))
		var space *SpaceError
		err = e.Check("B", newSlot(5*mib, 600*mib))
		if !errors.As(err, &space) || space.Path != "B" || space.Need < 605*mib || space.Need > 605*mib+3*blockSize || space.Have < 600*mib || space.Have > 600*mib+blockSize {
			t.Errorf("too much: %v", err)
		}
	}
}

func TestOverwrite(t *testing.T) {
	image, _, _ := slots(t)
	at := int64(bytes.Index(image, bytes.Repeat([]byte{'#'}, 1024)))
	for _, tt := range []struct {
		from, to int // bytes that change
		sectors  []int64
	}{
		{0, 0, nil},
		{100, 101, []int64{at}},
		{0, 512, []int64{at}},
		{1023, 1024, []int64{at + 512}},
		{511, 513, []int64{at + 512, at}},
	} {
		dev := record(image)
		b := bytes.Repeat([]byte{'#'}, 1024)
		for i := tt.from; i < tt.to; i++ {
			b[i] = 'x'
		}
		e := editor(t, dev, len(image))
		if err := e.Overwrite("grub/grubenv", b); err != nil {
			t.Fatal(err)
		}
		var sectors []int64
		for i, w := range dev.writes {
			if sectors = append(sectors, w.off); w.epoch != i {
				t.Errorf("no sync between sectors")
			}
		}
		if fmt.Sprint(sectors) != fmt.Sprint(tt.sectors) || dev.epoch != len(tt.sectors) {
			t.Errorf("%d to %d: sectors at %d, %d syncs, want %d", tt.from, tt.to, sectors, dev.epoch, tt.sectors)
		}
		c, err := e.Content("grub/grubenv")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(extent.Reader(c)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("read back %q, %v", got, err)
		}
		fsckBytes(t, dev.now)
		for n := 1; n <= dev.calls; n++ {
			bad := record(image)
			bad.fail, bad.err = n, syscall.EIO
			if err := editor(t, bad, len(image)).Overwrite("grub/grubenv", b); !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "grub/grubenv: ext4: ") {
				t.Errorf("call %d: %v", n, err)
			}
		}
	}
}

// TestEditRefuses wants nothing written when there is an error.
func TestEditRefuses(t *testing.T) {
	image, _, _ := slots(t)
	good := newSlot(1, 1)
	for _, tt := range []struct {
		name string
		do   func(e *Editor) error
		want error
		text string
	}{
		{"room", func(e *Editor) error { return e.Rewrite(t.Context(), "B", newSlot(100_000, 100_000)) }, nil,
			"ext4: no space: the contents of B need blocks of 204800 bytes, it has 151552"},
		{"one byte", func(e *Editor) error { return e.Check("B", newSlot(1, 37*4096-4095)) }, nil, "need blocks of 155648 bytes, it has 151552"},
		{"slot.cfg", func(e *Editor) error {
			return e.Rewrite(t.Context(), "A", []File{good[0], {Name: "slot.cfg", Content: pattern{4097, 1}}})
		}, nil, "the contents of A/slot.cfg need blocks of 8192 bytes, it has 4096"},
		{"missing", func(e *Editor) error { return e.Check("A", []File{good[0], {Name: "x"}}) }, fs.ErrNotExist, "A/x"},
		{"no directory", func(e *Editor) error { return e.Check("C", good) }, fs.ErrNotExist, "C/vmlinuz"},
		{"few", func(e *Editor) error { return e.Check("A", good[:1]) }, ErrOptions, "1 files"},
		{"path", func(e *Editor) error { return e.Check("A", []File{{Name: "../B/vmlinuz"}, good[1]}) }, ErrOptions, `"../B/vmlinuz"`},
		{"twice", func(e *Editor) error { return e.Check("A", []File{good[0], good[0]}) }, ErrCorrupt, "two names"},
		{"time", func(e *Editor) error { return e.Check("A", []File{good[0], {Name: "slot.cfg", ModTime: 1 << 40}}) }, ErrOptions, "modification time"},
		{"directory", func(e *Editor) error { return e.Check(".", []File{{Name: "A"}, {Name: "B"}}) }, ErrUnsupported, "A is not a regular file"},
		{"content", func(e *Editor) error { _, err := e.Content("A/nothing"); return err }, fs.ErrNotExist, "A/nothing"},
		{"content of a directory", func(e *Editor) error { _, err := e.Content("A"); return err }, ErrUnsupported, "A is not a regular file"},
		{"size", func(e *Editor) error { return e.Overwrite("grub/grubenv", make([]byte, 512)) }, ErrUnsupported, "has 1024 bytes and gets 512"},
		{"large", func(e *Editor) error { return e.Overwrite("A/vmlinuz", make([]byte, 20_001)) }, ErrUnsupported, "1 to 4096"},
		{"overwrite nothing", func(e *Editor) error { return e.Overwrite("x", nil) }, fs.ErrNotExist, "x"},
	} {
		dev := record(image)
		err := tt.do(editor(t, dev, len(image)))
		var space *SpaceError
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && !errors.As(err, &space) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
		if len(dev.writes) > 0 || dev.epoch > 0 {
			t.Errorf("%s: %d sectors were written", tt.name, len(dev.writes))
		}
	}
	short := []File{{Name: "vmlinuz", Content: truncated{pattern{9000, 1}}}, good[1], good[2]}
	dev := record(image)
	e := editor(t, dev, len(image))
	if err := e.Rewrite(t.Context(), "A", short); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "A: write contents: vmlinuz: content at 0 of 9000") {
		t.Errorf("content that ends early: %v", err)
	}
	if c, err := e.Content("A/slot.cfg"); err != nil || c.Size() != 0 {
		t.Errorf("after an error slot.cfg has %v, %v", c, err)
	}
}

// truncated has less than it says.
type truncated struct{ pattern }

func (c truncated) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), 5000-off)))
	c.pattern.ReadAt(p[:n], off)
	return n, io.EOF
}

// TestForeign wants an error for what Build does not make.
func TestForeign(t *testing.T) {
	debugfs := oracle.Tool(t, "debugfs")
	image, _, _ := slots(t)
	for _, tt := range []struct{ command, text string }{
		{"feature needs_recovery", "not unmounted cleanly"},
		{"feature meta_bg", "incompatible features"},
		{"feature quota", "read-only compatible features"},
		{"feature -metadata_csum", "read-only compatible features"},
		{"feature sparse_super2", "compatible features"},
		{"ssv state 0", "state 0x0: it is mounted or has errors"},
		{"ssv state 3", "state 0x3"},
		{"sif A/vmlinuz flags 0x80010", "A/vmlinuz has flags 0x80010"},
		{"sif A/vmlinuz flags 0", "A/vmlinuz: ext4: not supported: inode 15 has no extents"},
		{"sif A/vmlinuz mode 0120644", "A/vmlinuz is not a regular file"},
		{"ln A/vmlinuz grub/x", "inode 15 is grub/x and another file"},
		{"sif A/vmlinuz links_count 2", "A/vmlinuz has 2 names"},
		{"ssv first_ino 0", ""}, // which does not matter
	} {
		img := writeBytes(t, image)
		runTool(t, debugfs, "-w", "-R", tt.command, img)
		dev := record(read(t, img))
		e, err := Edit(dev, int64(len(image)))
		if err == nil {
			err = e.Rewrite(t.Context(), "A", newSlot(1, 1))
		}
		if tt.text == "" && err == nil {
			continue
		}
		if tt.text == "" || err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.command, err, tt.text)
		}
		if len(dev.writes) > 0 {
			t.Errorf("%s: %d sectors were written", tt.command, len(dev.writes))
		}
	}
}

// TestGuard gives a file blocks that are not its own.
func TestGuard(t *testing.T) {
	image, _, _ := slots(t)
	e := editor(t, record(image), len(image))
	files, err := e.load()
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]int64{
		"superblock": 0, "descriptors": 1, "inode table": 5, "directory": files["grub"].extents[0].start,
		"grubenv": files["grub/grubenv"].extents[0].start, "slot.cfg": files["A/slot.cfg"].extents[0].start,
		"the other slot": files["B/initramfs"].extents[0].end() - 1,
	} {
		dev := record(image)
		e := editor(t, dev, len(image))
		f := &target{file: files["A/vmlinuz"]}
		if err := f.writeInode(e, 0, []mapping{{0, run{max(block, 1), 2}, true}}, 0); err != nil {
			t.Fatal(err)
		}
		dev.writes = nil
		if err := e.Rewrite(t.Context(), "A", newSlot(1, 1)); !errors.Is(err, ErrCorrupt) || len(dev.writes) > 0 {
			t.Errorf("%s: %v, %d sectors written", name, err, len(dev.writes))
		}
	}
}

// TestMountRewritten has the kernel read a slot that was written twice, and
// write beside it.
func TestMountRewritten(t *testing.T) {
	oracle.Root(t)
	image, tr, _ := slots(t)
	dev := record(image)
	e := editor(t, dev, len(image))
	for _, initramfs := range []int64{120_000, 80_001} {
		files := newSlot(10_000, initramfs)
		if err := e.Rewrite(t.Context(), "B", files); err != nil {
			t.Fatal(err)
		}
		tr = want(t, tr, "B", files)
	}
	img := writeBytes(t, dev.now)
	_, dir, unmount := mount(t, img)
	for name, ino := range tr.All() {
		if err := sameOnDisk(filepath.Join(dir, name), ino); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	unmount()
	fsck(t, img)
	// It was mounted for writing, and can be edited again.
	b := record(read(t, img))
	if err := editor(t, b, len(b.now)).Rewrite(t.Context(), "B", newSlot(5, 5)); err != nil {
		t.Fatal(err)
	}
	fsckBytes(t, b.now)
}

func runTool(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

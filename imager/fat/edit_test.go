package fat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func edit(t testing.TB, d *disk) *Editor {
	t.Helper()
	e, err := Edit(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func create(t testing.TB, e *Editor, name string, content []byte) {
	t.Helper()
	if err := e.Create(t.Context(), name, bytes.NewReader(content), int64(len(content)), when.Unix()); err != nil {
		t.Fatal(err)
	}
}

// state is the listing of what is on a disk, without times.
func state(t testing.TB, d *disk) string {
	t.Helper()
	got, err := Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return listing(t, got.Tree, 0)
}

// treeOf returns a tree from paths and contents; one that ends with a slash is
// a directory.
func treeOf(t testing.TB, files map[string][]byte) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for name, content := range files {
		if dir, ok := strings.CutSuffix(name, "/"); ok {
			if err := tr.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		add(t, tr, name, content)
	}
	return tr
}

func TestEdit(t *testing.T) {
	for _, tt := range []struct {
		size   int64
		sector int
	}{{38 * mib, 512}, {600 * mib, 512}, {300 * mib, 4096}} {
		d := newDisk(build(t, everything(t), options(tt.size, tt.sector)))
		want := everything(t)
		e := edit(t, d)
		before := e.Free()
		for i := range 60 {
			name := fmt.Sprintf("new %d/some/where/kiln-%d-B+3.efi", i%3, i)
			create(t, e, name, data(uint64(i), i*700))
			add(t, want, name, data(uint64(i), i*700))
		}
		for i := range 60 {
			dir := fmt.Sprintf("new %d/some/where/", i%3)
			from, to := fmt.Sprintf("kiln-%d-B+3.efi", i), fmt.Sprintf("kiln-%d-B+2-1.efi", i)
			if err := e.Rename(strings.ToUpper(dir+from), dir+to); err != nil {
				t.Fatal(err)
			}
			ino := want.Lookup(dir + from)
			want.Remove(dir + from)
			if i%4 == 0 {
				if err := e.Remove(dir + to); err != nil {
					t.Fatal(err)
				}
			} else if err := want.Add(dir+to, ino); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := state(t, d), listing(t, want, 0); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if err := fsck(t, newImage(t, d.base.(*extent.Map)).write(t, d)); err != nil {
			t.Error(err)
		}
		if free := edit(t, d).Free(); free != e.Free() || free >= before {
			t.Errorf("%d bytes are free, the editor says %d, before it were %d", free, e.Free(), before)
		}
		got, err := Open(d, d.Size())
		if err != nil || got.Free != e.Free() {
			t.Errorf("%+v, %v, want %d free", got, err, e.Free())
		}
		if ino := got.Tree.Lookup("new 0/some/where/kiln-3-B+2-1.efi"); ino == nil || ino.ModTime != when.Unix()-1 {
			t.Errorf("%+v, want the time %v", ino, when)
		}
	}
}

// TestEditErrors makes sure that nothing is written by what is refused.
func TestEditErrors(t *testing.T) {
	long := strings.Repeat("x", 196)
	tr := treeOf(t, map[string][]byte{
		"EFI/Linux/a.efi": data(1, 5000), "EFI/Linux/b.efi": nil, "A long name.txt": {1}, "dir/": nil, "full": data(2, 2*mib),
	})
	d := newDisk(build(t, tr, options(34*mib, 512)))
	e := edit(t, d)
	before := state(t, d)
	mk := func(name string, content io.Reader, size int64) error {
		return e.Create(t.Context(), name, content, size, 0)
	}
	empty := bytes.NewReader(nil)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	free := e.Free()
	for _, tt := range []struct {
		err  error
		is   error
		want string
	}{
		{mk("", empty, 0), fs.ErrInvalid, `"": invalid argument`},
		{mk("a/../b", empty, 0), fs.ErrInvalid, `"a/../b": invalid argument`},
		{mk("EFI/linux/A.EFI", empty, 0), fs.ErrExist, "EFI/linux/A.EFI: file already exists"},
		{mk("EFI", empty, 0), fs.ErrExist, "EFI: file already exists"},
		{mk("ALONGN~1.TXT", empty, 0), fs.ErrExist, "ALONGN~1.TXT: file already exists"},
		{mk("full/x", empty, 0), fs.ErrInvalid, "full/x: full is a file, not a directory"},
		{mk("x/a:b", empty, 0), ErrUnsupported, "x/a:b: not possible in FAT: the name has the character ':'"},
		{mk(long, empty, 0), ErrUnsupported, "a new name takes 17 entries of a directory, at most 16 are written at once; use one of 195 characters"},
		{mk("x", empty, 1<<32), ErrUnsupported, "x: not possible in FAT: a file of 4294967296 bytes"},
		{mk("x", empty, -1), ErrUnsupported, "x: not possible in FAT: a file of -1 bytes"},
		{mk("x", strings.NewReader("abc"), 1200), io.ErrUnexpectedEOF, "x: the content ends after 3 of 1200 bytes: unexpected EOF"},
		{mk("x", strings.NewReader("abc"), 2), nil, "x: the content goes on after 2 bytes, which were said to be all"},
		{mk("x", io.MultiReader(strings.NewReader("abc"), brokenReader{}), 3), errBroken, "x: reading the content after all 3 bytes: broken"},
		{mk("x", brokenReader{}, 3), errBroken, "x: reading the content after 0 of 3 bytes: broken"},
		{e.Create(cancelled, "x", strings.NewReader("abc"), 3, 0), context.Canceled, "x: context canceled"},
		{mk("x", empty, free+1), nil, fmt.Sprintf("x: no space: %d bytes are needed and %d are free; remove a file first", free+512, free)},
		{mk("y/x", empty, free), nil, fmt.Sprintf("y/x: no space: %d bytes are needed and %d are free", free+512, free)},
		{e.Rename("EFI/Linux/c.efi", "EFI/Linux/d.efi"), fs.ErrNotExist, "EFI/Linux/c.efi: file does not exist"},
		{e.Rename("EFI/Linux/a.efi", "EFI/Linux/B.efi"), fs.ErrExist, "EFI/Linux/a.efi: new name EFI/Linux/B.efi: file already exists"},
		{e.Rename("EFI/Linux/a.efi", "EFI/a.efi"), ErrUnsupported, "EFI/Linux/a.efi: not possible in FAT: EFI/a.efi is in another directory"},
		{e.Rename("EFI/Linux/a.efi", "EFI/Linux/a?"), ErrUnsupported, `new name "EFI/Linux/a?": not possible in FAT: the name has the character '?'`},
		{e.Rename("EFI/Linux/a.efi", ""), fs.ErrInvalid, `EFI/Linux/a.efi: new name "": invalid argument`},
		{e.Rename("EFI", "EFJ"), ErrUnsupported, "EFI: not possible in FAT: a directory cannot be renamed"},
		{e.Replace("full", "dir"), fs.ErrExist, "full: new name dir: file already exists"},
		{e.Remove("EFI"), ErrUnsupported, "EFI: not possible in FAT: a directory that is not empty, it holds 1 files, cannot be removed"},
		{e.Remove("EFI/nothing/here"), fs.ErrNotExist, "EFI/nothing/here: file does not exist"},
	} {
		if tt.err == nil || tt.is != nil && !errors.Is(tt.err, tt.is) || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("got %v, want %q", tt.err, tt.want)
		}
	}
	var space *SpaceError
	if err := mk("x", empty, free+1); !errors.As(err, &space) || space.Need != free+512 || space.Have != free {
		t.Errorf("%+v, %v", space, err)
	}
	if e.Free() != free || edit(t, d).Free() != free {
		t.Errorf("%d bytes are free after errors, and %d on the disk, want %d", e.Free(), edit(t, d).Free(), free)
	}
	if got := state(t, d); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
	// All the space there is can be had.
	content := data(9, int(free))
	create(t, e, "x", content)
	if err := e.Remove("dir"); err != nil || e.Free() != 512 {
		t.Errorf("%v, %d bytes are free, want a cluster", err, e.Free())
	}
	if got, err := Open(d, d.Size()); err != nil || got.Free != 512 || got.Tree.Lookup("x").Size() != free {
		t.Errorf("%+v, %v", got, err)
	}
}

var errBroken = errors.New("broken")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

// TestEditRefuses has file systems that are read but not changed.
func TestEditRefuses(t *testing.T) {
	opts := options(36*mib, 512)
	m := build(t, treeOf(t, map[string][]byte{"dir/FILE": data(1, 1200)}), opts)
	g := newGeometry(opts.Size/512, 512, 512)
	for _, tt := range []struct {
		at     int64
		change byte
		is     error
		want   string
	}{
		{atFATs, 2 ^ 3, ErrUnsupported, "3 FATs, want 1 or 2"},
		{atExtFlags, noMirror, ErrUnsupported, "only one of the FATs is in use"},
		{atHidden, 1, ErrCorrupt, "the parameters in the boot sector differ from those in sector 6; repair them with fsck.fat"},
		{g.reserved * 512, 8, ErrCorrupt, "the FAT begins with 0xffffff0, want the media byte 0xf8; repair it with fsck.fat"},
		{g.offset(3) + 5*entrySize, 'A', ErrCorrupt, "a directory of 3 entries has more after its end; repair it with fsck.fat"},
		{g.reserved*512 + 5*4, 0xFF, ErrCorrupt, "dir/FILE: corrupt FAT file system: cluster "},
	} {
		d := newDisk(m)
		b := make([]byte, 512)
		if _, err := d.ReadAt(b, tt.at/512*512); err != nil {
			t.Fatal(err)
		}
		b[tt.at%512] ^= tt.change
		d.put(operation{tt.at / 512 * 512, b}, nil)
		if _, err := Edit(d, d.Size()); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	disk12 := extent.New(64 * mib)
	b := small(12, 5)
	for at, part := range map[int64][]byte{0: b[:512], 512: b[512:1024], 11 * 512: b[1024:]} {
		if err := disk12.PutBytes(at, part); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Edit(newDisk(disk12), disk12.Size()); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "FAT12 cannot be edited") {
		t.Errorf("FAT12: %v", err)
	}
}

package fat

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// badSectors is a disk on which some places cannot be read until they are
// written.
type badSectors struct {
	*disk
	bad map[int64]bool // numbers of sectors of 512 bytes
}

func (b badSectors) ReadAt(p []byte, off int64) (int, error) {
	for i := off / 512; i*512 < off+int64(len(p)); i++ {
		if b.bad[i] {
			return 0, syscall.EIO
		}
	}
	return b.disk.ReadAt(p, off)
}

func (b badSectors) WriteAt(p []byte, off int64) (int, error) {
	for i := range int64(len(p) / 512) {
		delete(b.bad, off/512+i)
	}
	return b.disk.WriteAt(p, off)
}

// TestRepair has what other programs and cuts leave, and sees all of it gone
// after one change.
func TestRepair(t *testing.T) {
	files := cutFiles()
	opts := options(34*mib, 512)
	base := build(t, treeOf(t, files), opts)
	img := newImage(t, base)
	g := newGeometry(opts.Size/512, 512, 512)
	fat, second := g.reserved*512, (g.reserved+g.fatSize)*512
	free := edit(t, newDisk(base)).Free()
	info, root := int64(infoSector*512), g.offset(rootCluster)+13*entrySize // behind the last entry
	last := edit(t, newDisk(base)).clusters + 1
	for _, tt := range []struct {
		name   string
		change map[int64][]byte
		minds  bool // fsck.fat does
	}{
		{"nothing", nil, false},
		{"leaked clusters", map[int64][]byte{fat + 4*last: {0xFF, 0xFF, 0xFF, 0x0F}, second + 4*last: {0xFF, 0xFF, 0xFF, 0x0F}}, true},
		{"FATs that differ", map[int64][]byte{second + 4*10: make([]byte, 400)}, true},
		{"a second FAT that is gone", map[int64][]byte{second: make([]byte, 8192)}, true},
		{"a free count", map[int64][]byte{info + atFree: {1, 2, 0, 0}}, true},
		{"a dirty mark of Linux", map[int64][]byte{atDirty32: {dirtyMark}}, true},
		{"a dirty mark in the FAT", map[int64][]byte{fat + 7: {0x07}, second + 7: {0x07}}, true},
		{"an orphan", map[int64][]byte{root: appendLong(nil, encodeLong("orphan"), 7)}, true},
	} {
		d := newDisk(base)
		for at, b := range tt.change {
			sectors := make([]byte, ceil(at%512+int64(len(b)), 512)*512)
			if _, err := d.ReadAt(sectors, at/512*512); err != nil {
				t.Fatal(err)
			}
			copy(sectors[at%512:], b)
			d.put(operation{at / 512 * 512, sectors}, nil)
		}
		if err := fsck(t, img.write(t, d)); (err != nil) != tt.minds {
			t.Errorf("%s: fsck.fat says %v", tt.name, err)
		}
		e := edit(t, d)
		if len(d.log) > 0 || e.Free() != free {
			t.Errorf("%s: Edit wrote %d times; %d bytes are free, want %d", tt.name, len(d.log), e.Free(), free)
		}
		if err := e.Remove("loader/loader.conf"); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err := fsck(t, img.write(t, d)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got, want := state(t, d), listingAfter(t, files, func(f map[string][]byte) { delete(f, "loader/loader.conf"); f["loader/"] = nil }); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, want)
		}
	}

	// Sectors of the first FAT that cannot be read are made again from the second.
	d := badSectors{newDisk(base), map[int64]bool{g.reserved: true, g.reserved + 2: true, g.reserved + g.fatSize + 1: true}}
	if got, err := Open(d, d.Size()); err != nil || listing(t, got.Tree, 0) != listing(t, treeOf(t, files), 0) {
		t.Errorf("bad sectors: %v", err)
	}
	e, err := Edit(d, d.Size())
	if err != nil || e.Free() != free {
		t.Fatal(err)
	}
	if err := e.Remove(kernelA); err != nil {
		t.Error(err)
	}
	if err := fsck(t, img.write(t, d.disk)); err != nil || len(d.bad) > 0 {
		t.Errorf("%v; not written: %v", err, d.bad)
	}
	d.bad = map[int64]bool{g.reserved: true, g.reserved + g.fatSize: true}
	if _, err := Edit(d, d.Size()); !errors.Is(err, syscall.EIO) {
		t.Errorf("both FATs cannot be read: %v", err)
	}
}

// TestBadClusters makes sure that clusters that are marked as bad stay so.
func TestBadClusters(t *testing.T) {
	opts := options(34*mib, 512)
	g := newGeometry(opts.Size/512, 512, 512)
	d := newDisk(build(t, treeOf(t, map[string][]byte{"a": {1}}), opts))
	mark := make([]byte, 512)
	if _, err := d.ReadAt(mark, g.reserved*512); err != nil {
		t.Fatal(err)
	}
	le.PutUint32(mark[4*20:], badCluster)
	for n := range int64(2) {
		d.put(operation{(g.reserved + n*g.fatSize) * 512, mark}, nil)
	}
	e := edit(t, d)
	if want := (g.clusters - 3) * 512; e.Free() != want {
		t.Errorf("%d bytes are free, want %d", e.Free(), want)
	}
	create(t, e, "long", data(1, int(e.Free())))
	if e.Free() != 0 || e.entry(20) != badCluster || e.entry(19) != 21 {
		t.Errorf("%d bytes are free; %d, %d", e.Free(), e.entry(19), e.entry(20))
	}
	if got, err := Open(d, d.Size()); err != nil || got.Tree.Lookup("long").Size() != (g.clusters-3)*512 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestAllocate prefers one span and then the longest ones.
func TestAllocate(t *testing.T) {
	opts := options(34*mib, 512)
	d := newDisk(build(t, treeOf(t, map[string][]byte{"1": data(1, 5*512), "2": data(2, 512), "3": data(3, 9*512), "4": data(4, 512)}), opts))
	e := edit(t, d)
	for _, name := range []string{"1", "3"} { // clusters 3 to 7 and 9 to 17
		if err := e.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.allocate(9); !slices.Equal(got, []span{{9, 9}}) {
		t.Errorf("9 clusters: %v", got)
	}
	e.release([]span{{9, 9}})
	if got := e.allocate(5); !slices.Equal(got, []span{{3, 5}}) {
		t.Errorf("5 clusters: %v", got)
	}
	e.release([]span{{3, 5}})
	rest := e.free - 14
	if got := e.allocate(rest + 10); !slices.Equal(got, []span{{3, 1}, {9, 9}, {19, rest}}) {
		t.Errorf("%d clusters: %v", rest+10, got)
	}
}

// TestBitFlips changes single bits in the boot sector and the FATs: Edit fails or
// all files are right, and stay so when one is added and one removed.
func TestBitFlips(t *testing.T) {
	files := cutFiles()
	opts := options(34*mib, 512)
	base := build(t, treeOf(t, files), opts)
	g := newGeometry(opts.Size/512, 512, 512)
	want := listing(t, treeOf(t, files), 0)
	changed := listingAfter(t, files, func(f map[string][]byte) { delete(f, kernelB); f["EFI/Linux/new.efi"] = uki() })
	random := rand.New(rand.NewPCG(1, 2))
	refused, flips := 0, 0
	flip := func(at int64, bit byte) {
		flips++
		d := newDisk(base)
		sector := make([]byte, 512)
		if _, err := d.ReadAt(sector, at/512*512); err != nil {
			t.Fatal(err)
		}
		sector[at%512] ^= bit
		d.put(operation{at / 512 * 512, sector}, nil)
		e, err := Edit(d, d.Size())
		if err != nil {
			refused++
			return
		}
		if got := state(t, d); got != want {
			t.Errorf("byte %d, bit %#x: got\n%s", at, bit, got)
			return
		}
		create(t, e, "EFI/Linux/new.efi", uki())
		if err := e.Remove(kernelB); err != nil {
			t.Error(err)
		}
		if got := state(t, d); got != changed {
			t.Errorf("byte %d, bit %#x, after a change: got\n%s", at, bit, got)
		}
	}
	for at := range int64(atExtended) {
		for bit := range 8 {
			flip(at, 1<<bit)
		}
	}
	used := edit(t, newDisk(base)).clusters - edit(t, newDisk(base)).free + 30
	for n := range int64(2) {
		for range 300 {
			flip((g.reserved+n*g.fatSize)*512+random.Int64N(4*used), 1<<random.IntN(8))
		}
	}
	t.Logf("%d of %d flips are refused", refused, flips)
}

// TestNames makes names that are alike.
func TestNames(t *testing.T) {
	d := newDisk(build(t, treeOf(t, map[string][]byte{"KILN-2~1.EFI": {1}, "dir/": nil}), options(34*mib, 512)))
	e := edit(t, d)
	for _, name := range []string{"kiln-2-B+3.efi", "kiln-2-B+2-1.efi", "KILN-3~1.EFI", "kiln-3.efix"} {
		create(t, e, name, []byte(name))
	}
	if err := e.Rename("kiln-2-B+3.efi", "kiln-2-B.efi"); err != nil {
		t.Error(err)
	}
	if err := e.Rename("kiln-3.efix", "Kiln-3.EFIX"); err != nil {
		t.Error(err)
	}
	for name, content := range map[string]string{"kiln-2~3.efi": "kiln-2-B+2-1.efi", "KILN-2-b+2-1.EFI": "kiln-2-B+2-1.efi", "KILN-3~2.EFI": "kiln-3.efix"} {
		dir, f, err := e.lookup(name)
		if err != nil || dir.cluster != rootCluster || f.size != int64(len(content)) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	if got, err := Open(d, d.Size()); err != nil || strings.Join(got.Tree.Children("."), " ") != "KILN-2~1.EFI KILN-3~1.EFI Kiln-3.EFIX dir kiln-2-B+2-1.efi kiln-2-B.efi" {
		t.Errorf("%q, %v", got.Tree.Children("."), err)
	}
}

// TestTwoNames removes and renames a file that a cut rename has left with two
// names.
func TestTwoNames(t *testing.T) {
	const one, two = "span/the second one.txt", "span/renamed to this.txt"
	files := cutFiles()
	d := newDisk(build(t, treeOf(t, files), options(34*mib, 512)))
	free := edit(t, d).Free()
	d.fail = func(n int) error {
		if n == 2 { // the new entry, a Sync, and then the old one would go
			return errBroken
		}
		return nil
	}
	if err := edit(t, d).Rename(one, two); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	files[two] = files[one]
	for gone, stays := range map[string]string{one: two, two: one} {
		d := d.fork()
		if got := state(t, d); got != listing(t, treeOf(t, files), 0) {
			t.Errorf("got\n%s", got)
		}
		e := edit(t, d)
		if err := e.Rename(gone, "span/third name.txt"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "the file has two names, because a rename was cut; remove one first") {
			t.Error(err)
		}
		if err := e.Remove(gone); err != nil || e.Free() != free {
			t.Errorf("%v, %d bytes are free, want %d", err, e.Free(), free)
		}
		if got, want := state(t, d), listingAfter(t, files, func(f map[string][]byte) { delete(f, gone) }); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if err := e.Replace(stays, "span/the first one.txt"); err != nil {
			t.Error(err)
		}
		if got, want := state(t, d), listingAfter(t, files, func(f map[string][]byte) {
			f["span/the first one.txt"] = f[stays]
			delete(f, one)
			delete(f, two)
		}); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

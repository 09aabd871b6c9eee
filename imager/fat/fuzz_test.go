package fat

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// seeds returns images in a form that is small, in three parts: the boot sector,
// the first 512 bytes of the FAT, and what follows the FATs.
func seeds(f *testing.F) [][]byte {
	tr := tree.New()
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "loader/a long file name.conf", "empty"} {
		add(f, tr, name, bytes.Repeat([]byte(name), len(name)%6*100))
	}
	const sizes = 40 * mib
	m := build(f, tr, options(sizes, 512))
	g := newGeometry(sizes/512, 512, 512)
	pick := func(at, n int64) []byte {
		b := make([]byte, n)
		if _, err := m.ReadAt(b, at); err != nil {
			f.Fatal(err)
		}
		return b
	}
	return [][]byte{
		append(append(pick(0, 512), pick(g.reserved*512, 512)...), pick(g.data()*512, 16*512)...),
		small(12, 5), small(16, 40),
	}
}

// assemble returns the image that the parts describe, or nil.
func assemble(b []byte) *extent.Map {
	if len(b) < 1024 || len(b) > 64<<10 {
		return nil
	}
	sector := int64(le.Uint16(b[atSectorSize:]))
	reserved, fatSize := int64(le.Uint16(b[atReserved:])), int64(le.Uint16(b[atFATSize16:]))
	if fatSize == 0 {
		fatSize = int64(le.Uint32(b[atFATSize32:]))
	}
	disk := extent.New(64 * mib)
	for _, p := range []struct {
		at   int64
		data []byte
	}{{0, b[:512]}, {reserved * sector, b[512:1024]}, {(reserved + int64(b[atFATs])*fatSize) * sector, b[1024:]}} {
		if disk.PutBytes(p.at, p.data) != nil {
			return nil
		}
	}
	return disk
}

// FuzzOpen makes sure that Open neither panics nor returns contents that cannot
// be read.
func FuzzOpen(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := assemble(b)
		if disk == nil {
			return
		}
		got, err := Open(disk, disk.Size())
		if err != nil {
			return
		}
		var total int64
		for name, ino := range got.Tree.All() {
			if ino.Content == nil {
				continue
			}
			n, err := io.Copy(io.Discard, io.NewSectionReader(ino.Content, 0, ino.Size()))
			if err != nil || n != ino.Size() {
				t.Errorf("%q: %d of %d bytes, %v", name, n, ino.Size(), err)
			}
			total += n
		}
		if total > 2*disk.Size() { // there may be two names of each
			t.Errorf("%d bytes in files on a disk of %d", total, disk.Size())
		}
	})
}

// FuzzEdit makes sure that an Editor neither panics nor touches any file but those
// it is told to.
func FuzzEdit(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		base := assemble(b)
		if base == nil {
			return
		}
		d := newDisk(base)
		if n := int64(le.Uint16(b[atBackup:])); n != 0 { // a copy of the boot sector that agrees
			d.put(operation{n * int64(le.Uint16(b[atSectorSize:])) / 512 * 512, b[:512]}, nil)
		}
		e, err := Edit(d, d.Size())
		if err != nil {
			return
		}
		want, err := Open(d, d.Size())
		if err != nil {
			t.Fatalf("Edit works but not Open: %v", err)
		}
		// again reads all of it and compares: of what was there only lost may be
		// gone, and made must be there, with this content.
		again := func(err error, lost, made string, content []byte) {
			if e.err != nil || errors.Is(err, ErrCorrupt) {
				t.Fatalf("%q to %q: %v", lost, made, err)
			}
			got, openErr := Open(d, d.Size())
			if openErr != nil {
				t.Fatalf("%q to %q: %v, and then %v", lost, made, err, openErr)
			}
			for name, ino := range want.Tree.All() {
				if other := got.Tree.Lookup(name); name != lost && (other == nil || line(t, other) != line(t, ino)) || err != nil && other == nil {
					t.Fatalf("%q to %q, %v: %q was lost", lost, made, err, name)
				}
			}
			n := 0
			for name, ino := range got.Tree.All() {
				if fold(name) == fold(made) && line(t, ino) == line(t, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(content)}) {
					n++
				}
			}
			if err == nil && made != "" && n == 0 {
				t.Fatalf("%q to %q: it is not there", lost, made)
			}
			want = got
		}
		last := ""
		for name, ino := range want.Tree.All() {
			if ino.Mode == 0o644 {
				last = name
			}
		}
		content := bytes.Repeat([]byte("content."), 300)
		const fresh = "EFI/Linux/new file+3.efi"
		again(e.Create(t.Context(), fresh, bytes.NewReader(content), int64(len(content)), 0), "", fresh, content)
		if last == "" {
			return
		}
		old := make([]byte, want.Tree.Lookup(last).Size())
		if len(old) > 0 {
			if _, err := io.ReadFull(extent.Reader(want.Tree.Lookup(last).Content.(extent.Source)), old); err != nil {
				t.Fatal(err)
			}
		}
		to := path.Join(path.Dir(last), "another long name.txt")
		err = e.Rename(last, to)
		again(err, last, to, old)
		if err == nil {
			last = to
		}
		again(e.Remove(last), last, "", nil)
	})
}

// line describes a file.
func line(t *testing.T, ino *tree.Inode) string {
	h := sha256.New()
	if ino.Content != nil {
		if _, err := io.Copy(h, io.NewSectionReader(ino.Content, 0, ino.Size())); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%v %d %x", ino.Mode, ino.Size(), h.Sum(nil))
}

// small returns a seed of FAT12 or FAT16 with one file.
func small(bits int, fatSectors uint16) []byte {
	b := make([]byte, 4096)
	le.PutUint16(b[atSectorSize:], 512)
	b[atClusterSectors], b[atFATs], b[atMedia] = 1, 2, mediaFixed
	le.PutUint16(b[atReserved:], 1)
	le.PutUint16(b[atRootEntries:], 16)
	le.PutUint16(b[atFATSize16:], fatSectors)
	le.PutUint16(b[atSectors16:], fatSectors*512/uint16(bits)*8)
	b[atSignature], b[atSignature+1] = 0x55, 0xAA
	fat := b[512:]
	if bits == 12 {
		copy(fat, []byte{0xF8, 0xFF, 0xFF, 0xFF, 0x4F, 0x00, 0xFF, 0x0F})
	} else {
		copy(fat, []byte{0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 4, 0, 0xFF, 0xFF})
	}
	dir := appendLong(nil, encodeLong("a long name.txt"), newShortName("ALONGN~1", "TXT").checksum())
	dir = appendShort(dir, newShortName("ALONGN~1", "TXT"), attrArchive, 3, 700, stamp{})
	dir = appendShort(dir, newShortName("DIR", ""), attrDir, 2, 0, stamp{})
	copy(b[1024:], dir)
	return b
}

func TestFuzzSeeds(t *testing.T) {
	for bits, fatSectors := range map[int]uint16{12: 5, 16: 40} {
		b := small(bits, fatSectors)
		disk := extent.New(64 * mib)
		for at, data := range map[int64][]byte{0: b[:512], 512: b[512:1024], int64(1+2*fatSectors) * 512: b[1024:]} {
			if err := disk.PutBytes(at, data); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Open(disk, disk.Size())
		if err != nil || got.Bits != bits || got.Tree.Len() != 3 || got.Tree.Lookup("a long name.txt").Size() != 700 {
			t.Errorf("FAT%d: %+v, %v", bits, got, err)
		}
	}
}

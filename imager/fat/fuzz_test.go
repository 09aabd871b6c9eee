package fat

import (
	"bytes"
	"io"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// FuzzOpen makes sure that Open neither panics nor returns contents that cannot
// be read. So that the input is small, it is in three parts: the boot sector,
// the first 512 bytes of the FAT, and what follows the FATs.
func FuzzOpen(f *testing.F) {
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
	f.Add(append(append(pick(0, 512), pick(g.reserved*512, 512)...), pick(g.data()*512, 16*512)...))
	f.Add(small(12, 5))
	f.Add(small(16, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1024 || len(b) > 64<<10 {
			return
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
				return
			}
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
		if total > disk.Size() {
			t.Errorf("%d bytes in files on a disk of %d", total, disk.Size())
		}
	})
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

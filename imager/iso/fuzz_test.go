package iso

import (
	"io"
	"io/fs"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// FuzzOpen makes sure that Open neither panics nor returns contents that are
// outside of the image. The input is an image without its system area.
func FuzzOpen(f *testing.F) {
	tr := tree.New()
	add(f, tr, "EFI/BOOT/BOOTX64.EFI", file("loader"))
	add(f, tr, "a long name with many letters, some of which are elsewhere, because a record has not so much room for it", file("x"))
	add(f, tr, "link", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "../a/b"})
	opts := options()
	for range 2 {
		m := build(f, tr, opts)
		b := make([]byte, 18*SectorSize)
		n, err := m.ReadAt(b, descriptors*SectorSize)
		if err != nil && err != io.EOF {
			f.Fatal(err)
		}
		f.Add(b[:n])
		opts.BIOS = &BIOS{BootCode: []byte{1}, Image: make([]byte, SectorSize)}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := extent.New(int64(descriptors*SectorSize + len(b)))
		if err := m.PutBytes(descriptors*SectorSize, b); err != nil {
			t.Fatal(err)
		}
		got, err := Open(m)
		if err != nil {
			return
		}
		for name, ino := range got.Tree.All() {
			if ino.Size() == 0 {
				continue
			}
			p := make([]byte, 1)
			for _, off := range []int64{0, ino.Size() - 1} {
				if n, err := ino.Content.ReadAt(p, off); n != 1 {
					t.Errorf("%s: byte %d of %d: %v", name, off, ino.Size(), err)
				}
			}
		}
	})
}

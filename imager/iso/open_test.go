package iso

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestOpenErrors damages an image of a directory "d" with a file "f".
func TestOpenErrors(t *testing.T) {
	tr := tree.New()
	add(t, tr, "d/f", file("f"))
	opts := options()
	opts.BIOS = bios()
	var whole bytes.Buffer
	if _, err := build(t, tr, opts).WriteTo(&whole); err != nil {
		t.Fatal(err)
	}
	image := whole.Bytes()
	root := int(le.Uint32(image[descriptors*SectorSize+atRoot+atExtent:])) * SectorSize
	sub := bytes.Index(image[root:], []byte("\x01D"))
	if sub < 0 {
		t.Fatal("no directory D")
	}
	sub += root - atIDLength
	dir := int(le.Uint32(image[sub+atExtent:])) * SectorSize
	f := bytes.Index(image[dir:], []byte("F.;1")) + dir - recordFixed
	put := func(at int, n uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], n); return b }
	}
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
		is     error
		want   string
	}{
		{"short", func(b []byte) []byte { return b[:100] }, ErrFormat, "not an ISO 9660 image: 100 bytes"},
		{"something else", func([]byte) []byte { return make([]byte, mib) }, ErrFormat, `not an ISO 9660 image: no "CD001" at byte 32769`},
		{"cut off", func(b []byte) []byte { return b[:dir] }, ErrCorrupt, "corrupt ISO 9660 image: a volume of "},
		{"descriptors", func(b []byte) []byte { clear(b[18*SectorSize:][:SectorSize]); return b }, ErrCorrupt,
			`volume descriptor 2 begins with 00 00 00 00 00 00, want "CD001" from its second byte`},
		{"block size", put(descriptors*SectorSize+atBlockSize, 512), ErrUnsupported, "logical blocks of 512 bytes, want 2048"},
		{"catalog", put(catalogSector*SectorSize, 0x0101), ErrCorrupt, "boot catalog: corrupt ISO 9660 image: it begins with 01 01 00 00"},
		{"loop", put(sub+atExtent, uint32(root/SectorSize)), ErrCorrupt, "d: corrupt ISO 9660 image: its sector"},
		{"directory outside", put(sub+atExtent, 1<<20), ErrCorrupt, "d: corrupt ISO 9660 image: 2048 bytes at 2147483648, but the image has only"},
		{"huge directory", put(sub+atLength, 1<<30), ErrCorrupt, "d: corrupt ISO 9660 image: directories of more than 268435456 bytes"},
		{"file outside", put(f+atLength, 1<<31), ErrCorrupt, "d: f: corrupt ISO 9660 image: 2147483648 bytes at"},
		{"record", func(b []byte) []byte { b[f] = 20; return b }, ErrCorrupt, "d: corrupt ISO 9660 image: a directory record of 20 bytes"},
		{"identifier", func(b []byte) []byte { b[f+atIDLength] = 250; return b }, ErrCorrupt, "an identifier of 250 bytes in a directory record of"},
		{"interleaved", func(b []byte) []byte { b[f+atUnitSize] = 1; return b }, ErrUnsupported, "d: f: not possible in ISO 9660: interleaved contents"},
		{"more", func(b []byte) []byte { b[f+atFlags] = flagMore; return b }, ErrCorrupt, "f: its last extent is missing"},
		{"mode", func(b []byte) []byte {
			return bytes.Replace(b, []byte("PX\x2c\x01\xa4\x81"), []byte("PX\x2c\x01\xa4\x01"), -1)
		}, ErrCorrupt, "d: corrupt ISO 9660 image: mode 0644"},
		{"name", func(b []byte) []byte {
			return bytes.Replace(b, []byte("NM\x06\x01\x00f"), []byte("NM\x06\x01\x00/"), -1)
		}, ErrCorrupt, `d: corrupt ISO 9660 image: file name "/"`},
		{"entry", func(b []byte) []byte {
			return bytes.Replace(b, []byte("NM\x06\x01\x00f"), []byte("NM\xf6\x01\x00f"), -1)
		}, ErrCorrupt, `entry "NM" of Rock Ridge has 246 bytes, where 6 are left`},
		{"compressed", func(b []byte) []byte {
			return bytes.Replace(b, []byte("NM\x06\x01\x00f"), []byte("ZF\x06\x01\x00f"), -1)
		}, ErrUnsupported, "compressed contents (zisofs)"},
	} {
		damaged := tt.damage(bytes.Clone(image))
		if _, err := Open(extent.Bytes(damaged)); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	broken := errors.New("broken disk")
	if _, err := Open(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("Open: %v, want %v", err, broken)
	}
}

type failing struct{ err error }

func (f failing) Size() int64                       { return mib }
func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// TestPlain reads an image without Rock Ridge.
func TestPlain(t *testing.T) {
	tr := tree.New()
	add(t, tr, "boot/linux.img", file("kernel"))
	add(t, tr, "readme", file("text"))
	m := build(t, tr, options())
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	got, err := Open(extent.Bytes(bytes.Replace(b, []byte("SP\x07\x01"), []byte("XX\x07\x01"), 1)))
	if err != nil {
		t.Fatal(err)
	}
	sameContents(t, got.Tree, tr)
	if ino := got.Tree.Lookup("readme"); got.RockRidge || ino == nil || ino.Mode != 0o444 || ino.ModTime != epoch {
		t.Errorf("%+v, readme is %+v", got, ino)
	}
}

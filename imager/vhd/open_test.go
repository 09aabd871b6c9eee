package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// image returns all bytes of the image of a disk.
func image(t testing.TB, d *extent.Map, o Options) []byte {
	t.Helper()
	m, err := Map(d, o)
	if err != nil {
		t.Fatal(err)
	}
	return disktest.Content(t, m)
}

// change puts bytes at an offset in the footers, or the dynamic header, and
// makes the checksum right again.
func change(b []byte, in string, at int, v ...byte) []byte {
	b = bytes.Clone(b)
	switch in {
	case "header":
		h := b[footerSize : footerSize+headerSize]
		copy(h[at:], v)
		binary.BigEndian.PutUint32(h[headerChecksum:], checksum(h, headerChecksum))
	case "footer":
		for _, f := range [][]byte{b[:footerSize], b[len(b)-footerSize:]} {
			copy(f[at:], v)
			binary.BigEndian.PutUint32(f[footerChecksum:], checksum(f, footerChecksum))
		}
	default:
		copy(b[at:], v)
	}
	return b
}

func TestDamagedImages(t *testing.T) {
	d := disktest.Disk(t, 5<<20, disktest.At(0, disktest.Noise(3000, 1)), disktest.At(4<<20+100, disktest.Noise(5000, 2)))
	o := testOptions
	b := image(t, d, o)
	o.Fixed = true
	whole := image(t, d, o)
	const table = footerSize + headerSize
	for _, tt := range []struct {
		name  string
		image []byte
		is    error
		want  string
	}{
		{"empty", nil, ErrCorrupt, "a file of 0 bytes has no room for a footer"},
		{"no footer", make([]byte, 1024), ErrCorrupt, `no footer ("conectix") in the last 512 bytes`},
		{"fixed, cut off", whole[:len(whole)-1], ErrCorrupt, `no footer ("conectix") in the last 512 bytes`},
		{"fixed, cut in the middle", append(bytes.Clone(whole[:1<<20]), whole[len(whole)-512:]...), ErrCorrupt,
			"a disk of 5242880 bytes, but the file has 1048576 before the footer"},
		{"checksum", change(whole, "", len(whole)-1, 1), ErrCorrupt, "checksum of the footer is 0xffffe888, want 0xffffe887"},
		{"version", change(whole, "footer", 12, 0, 2, 0, 3), ErrUnsupported, "version 2.3, want 1.0"},
		{"size 0", change(whole, "footer", 48, 0, 0, 0, 0, 0, 0, 0, 0), ErrCorrupt, "a disk of 0 bytes, want whole sectors and at most 2040 GiB"},
		{"odd size", change(whole, "footer", 55, 1), ErrCorrupt, "a disk of 5242881 bytes, want whole sectors and at most 2040 GiB"},
		{"negative size", change(whole, "footer", 48, 0x80), ErrCorrupt, "a disk of -9223372036849532928 bytes, want whole sectors and at most 2040 GiB"},
		{"type", change(whole, "footer", 63, 1), ErrCorrupt, "disk type 1, want 2 (fixed), 3 (dynamic) or 4 (differencing)"},
		{"differencing", change(b, "footer", 63, 4), ErrUnsupported,
			"it is a differencing disk, which only has what differs from its parent; merge them with Merge-VHD or vhd-util coalesce"},
		{"header outside", change(b, "footer", 16, 0x7f), ErrCorrupt, "dynamic header at 9151314442816848384 in a file of 4202496 bytes"},
		{"no header", change(b, "footer", 22, 4), ErrCorrupt, `no dynamic header ("cxsparse") at 1024`},
		{"header checksum", change(b, "", 512+32, 1), ErrCorrupt, "checksum of the dynamic header is 0xfffff474, want 0xfffff473"},
		{"header version", change(b, "header", 24, 0, 2), ErrUnsupported, "dynamic header of version 2.0, want 1.0"},
		{"block size", change(b, "header", 35, 1), ErrCorrupt, "blocks of 2097153 bytes, want a power of two from 4096 to 268435456"},
		{"block size 0", change(b, "header", 33, 0), ErrCorrupt, "blocks of 0 bytes, want a power of two from 4096 to 268435456"},
		{"short table", change(b, "header", 31, 2), ErrCorrupt, "a table of 2 blocks, a disk of 5242880 bytes needs 3"},
		{"table outside", change(b, "header", 16, 0x7f), ErrCorrupt, "a table of 3 blocks at 9151314442816849408 in a file of 4202496 bytes"},
		{"block outside", change(b, "", table, 0x10), ErrCorrupt, "block 0 is at 137438957056, but the file ends at 4202496"},
		{"block in the footer", change(b, "", table, 0, 0, 0, 0), ErrCorrupt, "block 0 is at 0, in the footer"},
		{"block in the header", change(b, "", table, 0, 0, 0, 1), ErrCorrupt, "block 0 is at 512, in the dynamic header"},
		{"block in the table", change(b, "", table, 0, 0, 0, 3), ErrCorrupt, "block 0 is at 1536, in the table"},
		{"block used twice", change(b, "", table+4, b[table:table+4]...), ErrCorrupt, "blocks at 3584 and 3584 overlap"},
		{"blocks overlap", change(b, "", table+4, 0, 0, 0x10, 0x07), ErrCorrupt, "blocks at 3584 and 2100736 overlap"},
		{"dynamic, cut off", b[:len(b)-512-1<<20-1], ErrCorrupt, "block 2 is at 2104832, but the file ends at 3153919"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(extent.Bytes(tt.image))
			if !errors.Is(err, tt.is) || err.Error() != tt.is.Error()+": "+tt.want {
				t.Errorf("got  %v\nwant %v: %s", err, tt.is, tt.want)
			}
		})
	}
}

// TestSecondFooter reads images whose last footer is damaged or missing.
func TestSecondFooter(t *testing.T) {
	d := disktest.Disk(t, 5<<20, disktest.At(0, disktest.Noise(3000, 1)), disktest.At(4<<20+100, disktest.Noise(5000, 2)))
	b := image(t, d, testOptions)
	for name, b := range map[string][]byte{"missing": b[:len(b)-512], "damaged": change(b, "", len(b)-100, 1)} {
		got, err := Open(extent.Bytes(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		disktest.Same(t, got, d)
	}
}

// TestSizeByCreator tells the two sizes in a footer apart.
func TestSizeByCreator(t *testing.T) {
	o := testOptions
	o.Fixed = true
	b := image(t, extent.New(40<<20), o)
	for creator, want := range map[string]int64{
		"win ": 40 << 20, "wa\x00\x00": 40 << 20, "qem2": 40 << 20, "vbox": 40 << 20,
		"vpc ": 963 * 5 * 17 * 512, "qemu": 963 * 5 * 17 * 512,
	} {
		got, err := Open(extent.Bytes(change(b, "footer", footerCreator, []byte(creator)...)))
		if err != nil || got.Size() != want {
			t.Errorf("%q: %v, %v, want %d", creator, got, err, want)
		}
	}
}

// TestSmallBlocks reads blocks and a bitmap of other sizes than Map writes, with
// bits of sectors that the disk does not have.
func TestSmallBlocks(t *testing.T) {
	for _, block := range []int{4096, 8192, 8 << 20} {
		content := disktest.Noise(9*512, 7)
		b := footer(int64(len(content)), typeDynamic, testOptions.ID, testOptions.Time)
		h := header(int64((len(content) + block - 1) / block))
		binary.BigEndian.PutUint32(h[32:], uint32(block))
		binary.BigEndian.PutUint32(h[headerChecksum:], checksum(h, headerChecksum))
		b = append(b, h...)
		table := bytes.Repeat([]byte{0xff}, 512)
		var blocks []byte
		for i, rest := 0, content; len(rest) > 0; i++ {
			binary.BigEndian.PutUint32(table[4*i:], uint32((len(b)+len(table)+len(blocks))/512))
			blocks = append(blocks, bytes.Repeat([]byte{0xff}, int(bitmapSize(int64(block))))...)
			part := make([]byte, block)
			rest = rest[copy(part, rest):]
			blocks = append(blocks, part...)
		}
		b = append(append(append(b, table...), blocks...), b[:512]...)
		got, err := Open(extent.Bytes(b))
		if err != nil {
			t.Fatalf("%d: %v", block, err)
		}
		disktest.Same(t, got, disktest.Disk(t, int64(len(content)), disktest.At(0, content)))
	}
}

func FuzzOpen(f *testing.F) {
	small := func(o Options) []byte {
		b := image(f, disktest.Disk(f, 3*512, disktest.At(512, disktest.Noise(600, 1))), o)
		if !o.Fixed { // without most of the only block
			b = append(b[:4096+3*512], b[len(b)-512:]...)
		}
		return b
	}
	f.Add(small(Options{Fixed: true}))
	f.Add(small(Options{}))
	f.Add(change(small(Options{}), "header", 32, 0, 0, 0x10, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Checksums would stop nearly all of what is tried.
		if len(b) >= 2*footerSize+headerSize {
			b = change(change(b, "header", 0), "footer", 0)
		}
		m, err := Open(extent.Bytes(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("neither damaged nor unsupported: %v", err)
			}
			return
		}
		if m.Allocated() > int64(len(b)) {
			t.Errorf("%d bytes of disk from %d of file", m.Allocated(), len(b))
		}
		p := make([]byte, 1<<16)
		for _, e := range m.Extents() {
			n := min(e.Length, int64(len(p)))
			if _, err := m.ReadAt(p[:n], e.Offset); err != nil && err != io.EOF {
				t.Errorf("read at %d: %v", e.Offset, err)
			}
		}
	})
}

func TestReadError(t *testing.T) {
	if _, err := Open(disktest.Broken(4096)); err == nil || errors.Is(err, ErrCorrupt) || !errors.Is(err, disktest.ErrRead) {
		t.Errorf("got %v", err)
	}
}

package vhdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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

// sign makes the checksums of headers and region tables right again.
func sign(b []byte) {
	for at, size := range map[int64]int64{headersAt[0]: headerSize, headersAt[1]: headerSize,
		regionTablesAt[0]: regionTableSize, regionTablesAt[1]: regionTableSize} {
		if part := b[at:]; int64(len(part)) >= size {
			binary.LittleEndian.PutUint32(part[checksumAt:], checksum(part[:size]))
		}
	}
}

type patch struct {
	at      int64
	content string
}

// change returns a copy of an image with the bytes at an offset replaced, in
// both copies of a header or region table, whose checksums are right then.
func change(b []byte, patches ...patch) []byte {
	b = bytes.Clone(b)
	for _, p := range patches {
		for _, pair := range [][2]int64{headersAt, regionTablesAt} {
			if p.at >= pair[0] && p.at < pair[1] {
				copy(b[p.at+pair[1]-pair[0]:], p.content)
			}
		}
		copy(b[p.at:], p.content)
	}
	sign(b)
	return b
}

func TestDamagedImages(t *testing.T) {
	d := disktest.Disk(t, 5<<20, disktest.At(0, disktest.Noise(3000, 1)), disktest.At(4<<20+100, disktest.Noise(5000, 2)))
	b := image(t, d, testOptions)
	fixed := testOptions
	fixed.Fixed = true
	const (
		head    = 64 << 10
		regions = 192 << 10
		meta    = 2 << 20
		items   = meta + 64<<10
		bat     = 3 << 20
	)
	damaged := func(at ...int64) []byte {
		b := bytes.Clone(b)
		for _, at := range at {
			b[at] ^= 0xff
		}
		return b
	}
	for _, tt := range []struct {
		name  string
		image []byte
		is    error
		want  string
	}{
		{"empty", nil, ErrCorrupt, "8 bytes at 0: damaged VHDX image: unexpected EOF"},
		{"identifier", damaged(0), ErrCorrupt, `does not begin with "vhdxfile"`},
		{"short", b[:1000], ErrCorrupt, "headers: 1048576 bytes at 0, but the file ends at 1000"},
		{"both headers", damaged(head+100, 2*head), ErrCorrupt, `no "head" at 131072`},
		{"checksums of headers", damaged(head+4000, 2*head+4000), ErrCorrupt, "checksum at 131072 is "},
		{"version", change(b, patch{head + 66, "\x02"}), ErrUnsupported, "version 2, want 1"},
		{"log", change(b, patch{head + 48, "\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"}), ErrUnsupported,
			"it was not closed, its log (00112233-4455-6677-8899-aabbccddeeff) has to be replayed; qemu-img check -r all or Mount-VHD does that, on a copy"},
		{"log at 0", change(b, patch{head + 74, "\x00"}), ErrCorrupt, "log: 1048576 bytes at 0, some of which are used for something else too"},
		{"log outside", change(b, patch{head + 79, "\x80"}), ErrCorrupt, "log: 1048576 bytes at -9223372036853727232, but the file ends at 6291456"},
		{"both region tables", damaged(regions, regions+64<<10), ErrCorrupt, `no "regi" at 262144`},
		{"checksums of region tables", damaged(regions+60000, regions+64<<10+60000), ErrCorrupt, "checksum at 262144 is "},
		{"many regions", change(b, patch{regions + 8, "\x00\x08"}), ErrCorrupt, "region table of 2048 entries, want at most 2047"},
		{"no BAT", change(b, patch{regions + 16, "\x00"}, patch{regions + 44, "\x00"}), ErrCorrupt, "no region for BAT or metadata"},
		{"unknown region", change(b, patch{regions + 16, "\x00"}), ErrUnsupported, "unknown region 2dc27700-f623-4200-9d64-115e9bfd4a08 is required"},
		{"region twice", change(b, patch{regions + 48, string(b[regions+16 : regions+32])}), ErrCorrupt, "region 2dc27766-f623-4200-9d64-115e9bfd4a08 is there twice"},
		{"regions overlap", change(b, patch{regions + 32, "\x00\x00\x20"}), ErrCorrupt,
			"region 8b7ca206-4790-4b9a-b8fe-575f050f886e: 1048576 bytes at 2097152, some of which are used for something else too"},
		{"region not aligned", change(b, patch{regions + 32, "\x01"}), ErrCorrupt,
			"region 2dc27766-f623-4200-9d64-115e9bfd4a08: 1048576 bytes at 3145729, want multiples of 1 MiB"},
		{"region outside", change(b, patch{regions + 44 - 4, "\x00\x00\x40"}), ErrCorrupt,
			"region 2dc27766-f623-4200-9d64-115e9bfd4a08: 4194304 bytes at 3145728, but the file ends at 6291456"},
		{"no metadata", change(b, patch{meta, "M"}), ErrCorrupt, "no metadata table at 2097152"},
		{"many items", change(b, patch{meta + 11, "\x08"}), ErrCorrupt, "metadata table of 2053 entries, want at most 2047"},
		{"unknown item", change(b, patch{meta + 32, "\x00"}), ErrUnsupported, "unknown item caa16700-fa36-4d43-b3b6-33f0aa44e76b of metadata is required"},
		{"item twice", change(b, patch{meta + 64, string(b[meta+32 : meta+48])}), ErrCorrupt, "item caa16737-fa36-4d43-b3b6-33f0aa44e76b of metadata is there twice"},
		{"item missing", change(b, patch{meta + 10, "\x04"}, patch{meta + 4*32, string(b[meta+5*32 : meta+6*32])}), ErrCorrupt, "no logical sector size in the metadata"},
		{"item short", change(b, patch{meta + 64 + 20, "\x07"}), ErrCorrupt, "no disk size in the metadata"},
		{"item outside", change(b, patch{meta + 48, "\xf9\xff\x0f"}), ErrCorrupt, "no file parameters in the metadata"},
		{"differencing", change(b, patch{items + 4, "\x02"}), ErrUnsupported,
			"it is a differencing disk, which only has what differs from its parent; merge them with Merge-VHD"},
		{"block size", change(b, patch{items, "\x01"}), ErrCorrupt, "blocks of 1048577 bytes, want a power of two from 1048576 to 268435456"},
		{"disk size", change(b, patch{items + 8, "\x01"}), ErrCorrupt, "a disk of 5242881 bytes is not a whole number of 512-byte sectors, at least one"},
		{"negative disk size", change(b, patch{items + 15, "\x80"}), ErrCorrupt,
			"a disk of -9223372036849532928 bytes is not a whole number of 512-byte sectors, at least one"},
		{"large disk", change(b, patch{items + 13, "\x40"}), ErrCorrupt, "a disk of 70368749420544 bytes is larger than 64 TiB"},
		{"sector size", change(b, patch{items + 32, "\x00\x04"}), ErrCorrupt, "sectors of 1024 bytes, want 512 or 4096"},
		{"short BAT", change(b, patch{items + 13, "\x01"}), ErrCorrupt, "BAT of 131072 entries, a disk of 1099516870656 bytes needs 1048837"},
		{"block outside", change(b, patch{bat + 4, "\x01"}), ErrCorrupt, "block 0: 1048576 bytes at 4299161600, but the file ends at 6291456"},
		{"block in BAT", change(b, patch{bat + 2, "\x30"}), ErrCorrupt, "block 0: 1048576 bytes at 3145728, some of which are used for something else too"},
		{"block twice", change(b, patch{bat + 4*8, string(b[bat : bat+8])}), ErrCorrupt, "block 4: 1048576 bytes at 4194304, some of which are used for something else too"},
		{"reserved state", change(b, patch{bat, "\x05"}), ErrCorrupt, "block 0 has the reserved state 5"},
		{"partial block", change(b, patch{bat, "\x07"}), ErrCorrupt, "block 0 is partially present, but the image has no parent"},
		{"dynamic, cut off", b[:len(b)-1], ErrCorrupt, "block 4: 1048576 bytes at 5242880, but the file ends at 6291455"},
		{"fixed, cut off", image(t, d, fixed)[:7<<20], ErrCorrupt, "block 3: 1048576 bytes at 7340032, but the file ends at 7340032"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(extent.Bytes(tt.image))
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) ||
				!strings.HasSuffix(tt.want, " ") && !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %v: %s", err, tt.is, tt.want)
			}
		})
	}
}

// TestSecondCopies reads images with one of the two headers or region tables
// damaged, and takes the newer header.
func TestSecondCopies(t *testing.T) {
	d := disktest.Disk(t, 5<<20, disktest.At(0, disktest.Noise(3000, 1)), disktest.At(4<<20+100, disktest.Noise(5000, 2)))
	b := image(t, d, testOptions)
	for _, at := range []int64{headersAt[0], headersAt[1], regionTablesAt[0], regionTablesAt[1]} {
		c := bytes.Clone(b)
		c[at+100]++
		got, err := Open(extent.Bytes(c))
		if err != nil {
			t.Fatalf("damage at %d: %v", at, err)
		}
		disktest.Same(t, got, d)
	}
	for _, tt := range []struct {
		at  int64 // of the header with a log
		seq string
		ok  bool
	}{{headersAt[0], "\x01", true}, {headersAt[0], "\x03", false}, {headersAt[1], "\x02", false}} {
		c := bytes.Clone(b)
		c[tt.at+logGUIDAt] = 1
		copy(c[tt.at+8:], tt.seq)
		sign(c)
		if _, err := Open(extent.Bytes(c)); (err == nil) != tt.ok {
			t.Errorf("log in the header at %d, sequence %q: %v", tt.at, tt.seq, err)
		}
	}
}

// TestLog has qemu-img replay the log of an image that Open has refused.
func TestLog(t *testing.T) {
	d := disktest.Scattered(t, 20<<20, 5)
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vhdx")
	disktest.Write(t, raw, d)
	disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", raw, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// An entry of the log that is still there, as if the image had not been closed.
	// It is old, so the disk is another one with it.
	at := binary.LittleEndian.Uint64(b[headersAt[0]+72:])
	if string(b[at:at+4]) != "loge" {
		t.Fatalf("qemu-img has left nothing in the log at %d", at)
	}
	b = change(b, patch{headersAt[0] + logGUIDAt, string(b[at+32 : at+48])})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, "qemu-img", "check", "-f", "vhdx", path); err == nil || !strings.Contains(out, "log that needs to be replayed") {
		t.Fatalf("qemu-img finds no log:\n%s", out)
	}
	f, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "has to be replayed") {
		t.Errorf("got %v", err)
	}
	disktest.Run(t, "qemu-img", "check", "-f", "vhdx", "-r", "all", path)
	disktest.Run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw)
	content, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Same(t, disktest.Open(t, path, Open), disktest.Disk(t, d.Size(), disktest.At(0, content)))
}

func FuzzOpen(f *testing.F) {
	b := image(f, disktest.Disk(f, 3<<20+512, disktest.At(512, disktest.Noise(600, 1)), disktest.At(2<<20, disktest.Noise(600, 2))), Options{})
	seed := func(b []byte) {
		f.Add(b[headersAt[0]:][:80], b[regionTablesAt[0]:][:80], b[metadataAt:][:192], b[metadataAt+itemsAt:][:40], b[batAt:][:48])
	}
	seed(b)
	seed(change(b, patch{metadataAt + itemsAt, "\x00\x00\x00\x01"}))
	seed(change(b, patch{metadataAt + itemsAt + 13, "\x10"}))
	f.Fuzz(func(t *testing.T, header, regions, table, items, bat []byte) {
		m := extent.New(8 << 20)
		for _, part := range []struct {
			at, size int64
			content  []byte
		}{
			{0, 8, []byte("vhdxfile")},
			{headersAt[0], headerSize, header},
			{regionTablesAt[0], regionTableSize, regions},
			{metadataAt, itemsAt, table},
			{metadataAt + itemsAt, mib - itemsAt, items},
			{batAt, mib, bat},
		} {
			b := append(make([]byte, 0, part.size), part.content[:min(len(part.content), int(part.size))]...)
			if part.size == headerSize || part.size == regionTableSize {
				b = b[:part.size]
				binary.LittleEndian.PutUint32(b[checksumAt:], checksum(b))
			}
			if err := m.PutBytes(part.at, b); len(b) > 0 && err != nil {
				t.Fatal(err)
			}
		}
		disk, err := Open(m)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("neither damaged nor unsupported: %v", err)
			}
			return
		}
		if disk.Allocated() > m.Size() {
			t.Errorf("%d bytes of disk from %d of file", disk.Allocated(), m.Size())
		}
		p := make([]byte, 1<<12)
		for _, e := range disk.Extents() {
			if _, err := disk.ReadAt(p, e.Offset); err != nil && err != io.EOF {
				t.Errorf("read at %d: %v", e.Offset, err)
			}
		}
	})
}

func TestReadError(t *testing.T) {
	if _, err := Open(disktest.Broken(4 << 20)); err == nil || errors.Is(err, ErrCorrupt) || !errors.Is(err, disktest.ErrRead) {
		t.Errorf("got %v", err)
	}
	if _, err := Open(disktest.Broken(maxFile + 1)); !errors.Is(err, ErrUnsupported) || !strings.HasSuffix(err.Error(), "a file of 140737488355329 bytes, want at most 140737488355328") {
		t.Errorf("got %v", err)
	}
}

package vhdx

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// What the specification says, number by number: QEMU would overlook some of it.

// crc32c is the checksum of RFC 3720, bit by bit.
func crc32c(b []byte) string {
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78&-(crc&1)
		}
	}
	crc = ^crc
	return hex.EncodeToString([]byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
}

func TestChecksum(t *testing.T) {
	if got := crc32c([]byte("123456789")); got != "839206e3" { // 0xe3069283
		t.Fatalf("the test's own checksum: %s", got)
	}
}

// TestGolden reads every structure of a small image.
func TestGolden(t *testing.T) {
	d := disktest.Disk(t, 7<<20, disktest.At(2<<20+100, disktest.Noise(200, 1)), disktest.At(5<<20-1, disktest.Noise(1<<20, 2)))
	for _, tt := range []struct {
		name       string
		o          Options
		size       int64
		parameters string
		sector     string
		bat        []string
		data       map[int64]int64 // from the disk to the image
	}{
		{"dynamic", Options{}, 7 << 20, "00001000" + "00000000", "00020000",
			[]string{"0200000000000000", "0200000000000000", "0600400000000000", "0200000000000000",
				"0600500000000000", "0600600000000000", "0200000000000000"},
			map[int64]int64{2 << 20: 4 << 20, 4 << 20: 5 << 20, 5 << 20: 6 << 20}},
		{"fixed", Options{Fixed: true}, 11 << 20, "00001000" + "01000000", "00020000",
			[]string{"0600400000000000", "0600500000000000", "0600600000000000", "0600700000000000",
				"0600800000000000", "0600900000000000", "0600a00000000000"},
			map[int64]int64{0: 4 << 20, 5 << 20: 9 << 20, 6 << 20: 10 << 20}},
		{"4096", Options{SectorSize: 4096, BlockSize: 4 << 20}, 12 << 20, "00004000" + "00000000", "00100000",
			[]string{"0600400000000000", "0600800000000000"},
			map[int64]int64{0: 4 << 20, 4 << 20: 8 << 20}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.FileWriteID, tt.o.DataWriteID, tt.o.DiskID = testOptions.FileWriteID, testOptions.DataWriteID, testOptions.DiskID
			m, err := Map(d, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if m.Size() != tt.size {
				t.Errorf("image of %d bytes, want %d", m.Size(), tt.size)
			}
			// A structure up to where the next one begins.
			want := func(name string, at, end int64, content string) {
				t.Helper()
				content += strings.Repeat("00", int(end-at)-len(content)/2)
				if got := hex.EncodeToString(disktest.Read(t, m, at, int(end-at))); got != content {
					n := 0
					for got[n] == content[n] {
						n++
					}
					t.Errorf("%s, byte %#x: got %.40s…, want %.40s…", name, n/2, got[n/2*2:], content[n/2*2:])
				}
			}
			signed := func(signature, rest string, size int) string {
				b, err := hex.DecodeString(signature + "00000000" + rest)
				if err != nil {
					t.Fatal(err)
				}
				b = append(b, make([]byte, size-len(b))...)
				return signature + crc32c(b) + rest
			}
			want("identifier", 0, 64<<10, "7668647866696c65"+"6b0069006c006e00") // vhdxfile, kiln
			for i, sequence := range []string{"0100000000000000", "0200000000000000"} {
				at := int64(i+1) << 16
				want("header", at, at+64<<10, signed("68656164", sequence+
					"33221100554477668899aabbccddeeff"+ // file write GUID
					"433221106554877698a9bacbdcedfe0f"+ // data write GUID
					strings.Repeat("00", 16)+ // log GUID
					"0000"+"0100"+ // version of log, and of format
					"00001000"+"0000100000000000", 4096)) // log: length, offset
			}
			for _, at := range []int64{192 << 10, 256 << 10} {
				want("region table", at, at+64<<10, signed("72656769", "02000000"+"00000000"+
					"6677c22d23f600429d64115e9bfd4a08"+"0000300000000000"+"00001000"+"01000000"+
					"06a27c8b90479a4bb8fe575f050f886e"+"0000200000000000"+"00001000"+"01000000", 64<<10))
			}
			want("log", 320<<10, 2<<20, "")
			want("metadata table", 2<<20, 2<<20+64<<10, "6d65746164617461"+"0000"+"0500"+strings.Repeat("00", 20)+
				"3767a1ca36fa434db3b633f0aa44e76b"+"00000100"+"08000000"+"04000000"+"00000000"+
				"2442a52f1bcd7648b2115dbed83bf4b8"+"08000100"+"08000000"+"06000000"+"00000000"+
				"ab12cabee6b2234593efc309e000c746"+"10000100"+"10000000"+"06000000"+"00000000"+
				"1dbf41816fa90947ba47f233a8faab5f"+"20000100"+"04000000"+"06000000"+"00000000"+
				"c748a3cd5d4471449cc9e9885251c556"+"24000100"+"04000000"+"06000000"+"00000000")
			want("metadata", 2<<20+64<<10, 3<<20, tt.parameters+"0000700000000000"+
				"1a6d9b0c5e7d6a4b8a1b2f1e3c4d5e6f"+tt.sector+"00100000")
			want("BAT", 3<<20, 4<<20, strings.Join(tt.bat, ""))
			for from, to := range tt.data {
				n := int(min(1<<20, 7<<20-from))
				if !bytes.Equal(disktest.Read(t, m, to, n), disktest.Read(t, d, from, n)) {
					t.Errorf("the MiB at %d of the disk is not at %d", from, to)
				}
			}
		})
	}
}

// TestBAT compares a BAT with more chunks than one with what the specification
// says of each entry, read in pieces that cut through entries.
func TestBAT(t *testing.T) {
	for _, o := range []Options{{}, {BlockSize: 256 << 20}, {BlockSize: 256 << 20, SectorSize: 4096}} {
		const size = 70 << 30
		d := disktest.Disk(t, size, disktest.At(0, disktest.Noise(1, 1)), disktest.At(4<<30-1, disktest.Noise(2, 2)), disktest.At(32<<30-1, disktest.Noise(2, 3)),
			disktest.At(40<<30, disktest.Noise(1<<20, 4)), disktest.At(size-1, disktest.Noise(1, 5)))
		m, err := Map(d, o)
		if err != nil {
			t.Fatal(err)
		}
		block := max(DefaultBlockSize, o.BlockSize)
		ratio := int64(1<<23) * max(512, o.SectorSize) / block
		blocks := (size + block - 1) / block
		entries := blocks + (blocks-1)/ratio
		// Where the data is follows from the size of the image.
		var touched []int64
		for _, e := range d.Extents() {
			for b := e.Offset / block; b <= (e.End()-1)/block; b++ {
				if n := len(touched); n == 0 || touched[n-1] != b {
					touched = append(touched, b)
				}
			}
		}
		next := m.Size() - int64(len(touched))*block
		if next < 3<<20+entries*8 || next%(1<<20) != 0 {
			t.Fatalf("%+v: blocks begin at %d", o, next)
		}
		var want []byte
		for i := range blocks {
			if i > 0 && i%ratio == 0 {
				want = append(want, make([]byte, 8)...)
			}
			v := int64(2)
			if len(touched) > 0 && touched[0] == i {
				v, next, touched = next|6, next+block, touched[1:]
			}
			for range 8 {
				want = append(want, byte(v))
				v >>= 8
			}
		}
		if int64(len(want)) != entries*8 {
			t.Fatalf("%+v: the test has %d entries, want %d", o, len(want)/8, entries)
		}
		for _, step := range []int64{1 << 20, 9973, 8 * 4097} {
			for off := int64(0); off < int64(len(want)); off += step {
				n := min(step, int64(len(want))-off)
				if got := disktest.Read(t, m, 3<<20+off, int(n)); !bytes.Equal(got, want[off:off+n]) {
					t.Fatalf("%+v: %d bytes at %d of the BAT differ", o, n, off)
				}
			}
		}
	}
}

func TestRefusedDisks(t *testing.T) {
	for _, tt := range []struct {
		size int64
		o    Options
		want string
	}{
		{0, Options{}, "a disk of 0 bytes is not a whole number of 512-byte sectors, at least one"},
		{1000, Options{}, "a disk of 1000 bytes is not a whole number of 512-byte sectors, at least one"},
		{512, Options{SectorSize: 4096}, "a disk of 512 bytes is not a whole number of 4096-byte sectors, at least one"},
		{MaxSize + 512, Options{}, "a disk of 70368744178176 bytes is larger than 64 TiB"},
		{1 << 20, Options{SectorSize: 1024}, "sectors of 1024 bytes, want 512 or 4096"},
		{1 << 20, Options{BlockSize: 3 << 20}, "blocks of 3145728 bytes, want a power of two from 1048576 to 268435456"},
		{1 << 20, Options{BlockSize: 512 << 10}, "blocks of 524288 bytes, want a power of two from 1048576 to 268435456"},
		{1 << 20, Options{BlockSize: 512 << 20}, "blocks of 536870912 bytes, want a power of two from 1048576 to 268435456"},
		{1 << 20, Options{BlockSize: -1 << 63}, "blocks of -9223372036854775808 bytes, want a power of two from 1048576 to 268435456"},
	} {
		_, err := Map(extent.New(tt.size), tt.o)
		if !errors.Is(err, ErrInvalid) || err.Error() != ErrInvalid.Error()+": "+tt.want {
			t.Errorf("%d bytes, %+v: %v, want %q", tt.size, tt.o, err, tt.want)
		}
	}
}

// TestLargest maps and reads disks of 3 and 64 TiB, without writing them.
func TestLargest(t *testing.T) {
	for _, size := range []int64{3 << 40, MaxSize} {
		d := disktest.Disk(t, size, disktest.At(0, disktest.Noise(600, 1)), disktest.At(2<<40, disktest.Noise(600, 3)), disktest.At(size-600, disktest.Noise(600, 2)))
		for _, o := range []Options{{BlockSize: 64 << 20}, {Fixed: true, BlockSize: 256 << 20, SectorSize: 4096}, {BlockSize: 32 << 20, SectorSize: 4096}} {
			m, err := Map(d, o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Open(m)
			if err != nil {
				t.Fatal(err)
			}
			disktest.Same(t, got, d)
		}
	}
}

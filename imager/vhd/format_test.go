package vhd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// What the specification says, number by number: QEMU would overlook some of it.

// azureFooter begins the footer of a fixed disk of 5 GiB that Azure has
// exported, as printed in message 20241118143646.33377-1-vkuznets@redhat.com to
// the list qemu-devel.
const azureFooter = "636f6e6563746978" + "00000002" + "00010000" + // cookie, features, version
	"ffffffffffffffff" + "2ec79b96" + // data offset, time stamp
	"77610000" + "00070000" + "5769326b" + // creator "wa", version 7.0, "Wi2k"
	"0000000140000000" + "0000000140000000" + // original and current size
	"28a2103f" + "00000002" + "ffffe747" + // geometry, type, checksum
	"8c54df94bd35714c945fe5444453921a" + "00" // unique ID, saved state

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenFooter compares with Azure's footer: only the creator differs, and
// the checksum by that.
func TestGoldenFooter(t *testing.T) {
	azure := append(unhex(t, azureFooter), make([]byte, footerSize-len(azureFooter)/2)...)
	f, err := parseFooter(azure)
	if err != nil || f.kind != typeFixed || f.size != 5<<30 {
		t.Fatalf("Azure's own footer: %+v, %v", f, err)
	}
	id := uuid.MustParse("8c54df94-bd35-714c-945f-e5444453921a")
	at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(0x2ec79b96 * time.Second)
	want := bytes.Clone(azure)
	copy(want[28:], "win \x00\x0a\x00\x00")
	const more = 'w' + 'i' + 'n' + ' ' + 10 - ('w' + 'a' + 7)
	binary.BigEndian.PutUint32(want[64:], 0xffffe747-more)
	if got := footer(5<<30, typeFixed, id, at); !bytes.Equal(got, want) {
		t.Errorf("\n got %x\nwant %x", got[:96], want[:96])
	}
}

func TestGeometry(t *testing.T) {
	for _, tt := range []struct {
		size int64
		want geometry
	}{
		{512, geometry{0, 4, 17}},
		{4 * 17 * 512, geometry{1, 4, 17}},
		{40 << 20, geometry{963, 5, 17}},
		{0x2802800, geometry{964, 5, 17}},                    // of qemu-img
		{16*1024*17*512 - 512, geometry{1023, 16, 17}},       // the last with 17
		{16 * 1024 * 17 * 512, geometry{561, 16, 31}},        // the first without
		{16*1024*31*512 - 512, geometry{1023, 16, 31}},       //
		{16 * 1024 * 31 * 512, geometry{503, 16, 63}},        // 504 tracks would be more
		{5 << 30, geometry{10402, 16, 63}},                   // of Azure
		{65535*16*63*512 - 512, geometry{65534, 16, 63}},     //
		{65535 * 16 * 63 * 512, geometry{16191, 16, 255}},    //
		{136365211648, geometry{65278, 16, 255}},             // of Virtual PC
		{65535 * 16 * 255 * 512, geometry{65535, 16, 255}},   // 127 GiB
		{65535*16*255*512 + 1<<20, geometry{65535, 16, 255}}, // more than it can say
		{MaxSize, geometry{65535, 16, 255}},                  //
		{1<<30 + 512, geometry{2080, 16, 63}},                //
		{500 << 20, geometry{1015, 16, 63}},                  //
		{17*1024*4*512 - 512, geometry{1023, 4, 17}},         //
		{17 * 1024 * 4 * 512, geometry{140, 16, 31}},         // 1024 cylinders are too many,
		{17*1024*4*512 + 17*512, geometry{819, 5, 17}},       // but not with a head more
		{17*1024*5*512 - 512, geometry{1023, 5, 17}},         //
	} {
		if got := geometryOf(tt.size); got != tt.want {
			t.Errorf("%d bytes: %+v, want %+v", tt.size, got, tt.want)
		}
	}
}

func TestTimestamp(t *testing.T) {
	for in, want := range map[time.Time]uint32{
		time.Date(2000, 1, 1, 0, 0, 1, 5, time.FixedZone("", 0)):    1,
		time.Date(2000, 1, 1, 1, 0, 0, 0, time.FixedZone("", 3600)): 0,
		time.Unix(0, 0): 0,
		{}:              0,
		time.Date(2136, 2, 7, 6, 28, 15, 0, time.UTC): 0xffffffff,
		time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC):   0xffffffff,
	} {
		if got := timestamp(in); got != want {
			t.Errorf("%v: %d, want %d", in, got, want)
		}
	}
}

// TestGoldenDynamic reads every structure of a small image.
func TestGoldenDynamic(t *testing.T) {
	const size = 7 << 20 // four blocks, the last half as long
	d := disktest.Disk(t, size,
		disktest.At(2<<20+512*7+511, disktest.Noise(2, 1)),      // sectors 7 and 8 of block 1
		disktest.At(2<<20+512*20+10, disktest.Noise(512*30, 2)), // 20 to 50 of block 1
		disktest.At(6<<20-1, disktest.Noise(2, 3)),              // the last of block 2, the first of 3
		disktest.At(7<<20-5, disktest.Noise(5, 4)),              // the last there is
	)
	m, err := Map(d, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	const stride = blockSize + 4096
	if want := int64(4096 + 2*stride + blockSize + 512); m.Size() != want {
		t.Errorf("image of %d bytes, want %d", m.Size(), want)
	}
	foot := "636f6e6563746978" + "00000002" + "00010000" +
		"0000000000000200" + "00000005" + // dynamic header, time
		"77696e20" + "000a0000" + "5769326b" + // "win ", version 10.0, "Wi2k"
		"0000000000700000" + "0000000000700000" +
		"00d20411" + "00000003" + "fffff001" + // geometry 210*4*17, type, checksum
		"00112233445566778899aabbccddeeff" + "00"
	foot += strings.Repeat("00", footerSize-len(foot)/2)
	head := "6378737061727365" + "ffffffffffffffff" + "0000000000000600" +
		"00010000" + "00000004" + "00200000" + "fffff473"
	head += strings.Repeat("00", headerSize-len(head)/2)
	table := "ffffffff" + "00000007" + "0000100f" + "00002017" + strings.Repeat("ff", sector-16)
	if got := hex.EncodeToString(disktest.Read(t, m, 0, 2048)); got != foot+head+table {
		t.Errorf("\n got %s\nwant %s", got, foot+head+table)
	}
	if got := hex.EncodeToString(disktest.Read(t, m, m.Size()-512, 512)); got != foot {
		t.Errorf("footer at the end:\n got %s\nwant %s", got, foot)
	}
	for i, want := range []string{
		"01" + "80" + "0f" + "ffffff" + "e0" + strings.Repeat("00", 505),
		strings.Repeat("00", 511) + "01",
		"80" + strings.Repeat("00", 254) + "01" + strings.Repeat("00", 256),
	} {
		at := int64(4096 + i*stride)
		if got := hex.EncodeToString(disktest.Read(t, m, at-512, 512)); got != want {
			t.Errorf("bitmap %d:\n got %s\nwant %s", i, got, want)
		}
		n := min(blockSize, size-(i+1)*blockSize)
		if !bytes.Equal(disktest.Read(t, m, at, n), disktest.Read(t, d, int64(i+1)*blockSize, n)) {
			t.Errorf("data of block %d is not at %d", i+1, at)
		}
	}
	// The bitmap in pieces.
	b := bitmap{d, 2 << 20}
	if err := checkReader(b, disktest.Read(t, b, 0, bitmapLen)); err != nil {
		t.Error(err)
	}
}

func checkReader(src extent.Source, want []byte) error {
	got, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size()))
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("other bytes in pieces")
	}
	return err
}

func TestRefusedDisks(t *testing.T) {
	for size, want := range map[int64]string{
		0:             "a disk of 0 bytes is not a whole number of 512-byte sectors, at least one",
		1000:          "a disk of 1000 bytes is not a whole number of 512-byte sectors, at least one",
		MaxSize + 512: "a disk of 2190433321472 bytes is larger than 2040 GiB; use VHDX",
	} {
		for _, fixed := range []bool{true, false} {
			_, err := Map(extent.New(size), Options{Fixed: fixed})
			if !errors.Is(err, ErrInvalid) || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%d bytes: %v, want %q", size, err, want)
			}
		}
	}
}

// TestLargest maps disks of the largest size there is, without writing them.
func TestLargest(t *testing.T) {
	d := disktest.Disk(t, MaxSize, disktest.At(0, disktest.Noise(600, 1)), disktest.At(MaxSize-600, disktest.Noise(600, 2)))
	for _, o := range []Options{{Fixed: true}, {}} {
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
	// And all of it allocated: the last block is where 32 bits still reach.
	full := extent.New(MaxSize)
	if err := full.Put(0, zeros(MaxSize)); err != nil {
		t.Fatal(err)
	}
	m, err := Map(full, Options{})
	if err != nil {
		t.Fatal(err)
	}
	table := disktest.Read(t, m, 1536+(MaxSize/blockSize-1)*4, 4)
	at := int64(binary.BigEndian.Uint32(table)) * sector
	if want := m.Size() - footerSize - blockSize - bitmapLen; at != want {
		t.Errorf("last block at %d, want %d", at, want)
	}
}

// zeros is a Source of so many zeros.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}

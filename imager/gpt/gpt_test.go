package gpt

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
)

const mib = 1 << 20

func id(n byte) GUID { return GUID{0: 0x12, 1: 0x34, 2: 0x56, 3: 0x78, 6: 0x40, 8: 0x80, 15: n} }

// table returns kiln's six partitions on a disk of 32 MiB.
func table(sector int64) *Table {
	t := &Table{DiskID: id(0), SectorSize: sector, Size: 32 * mib, BootCode: bytes.Repeat([]byte{0xEB}, bootCodeSize)}
	start := int64(mib)
	for i, p := range []Partition{
		{Type: EFISystem, Name: "EFI", Size: 4 * mib},
		{Type: BIOSBoot, Name: "BIOS", Size: mib, Attributes: LegacyBIOSBootable},
		{Type: LinuxFilesystem, Name: "BOOT", Size: 4 * mib},
		{Type: LinuxFilesystem, Name: "META", Size: mib},
		{Type: LinuxFilesystem, Name: "STATE", Size: 10 * mib},
		{Type: LinuxFilesystem, Name: "EPHEMERAL-åß∂ƒ", Size: 8 * mib},
	} {
		p.ID, p.Start = id(byte(i+1)), start
		start += p.Size
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

func build(t testing.TB, tab *Table) *extent.Map {
	t.Helper()
	m, err := tab.Map()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// image returns the bytes of the disk.
func image(t testing.TB, tab *Table) []byte {
	t.Helper()
	b := make([]byte, tab.Size)
	if _, err := build(t, tab).ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

// writeImage writes the disk to a sparse file.
func writeImage(t testing.TB, m *extent.Map) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRoundTrip(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, change := range []func(*Table){
			func(*Table) {},
			func(t *Table) { t.Partitions[1] = Partition{}; t.BootCode = nil },
			func(t *Table) { t.Partitions[0].Start, t.Partitions[0].Size = 2*4096+tableBytes, 4096 },
			func(t *Table) { t.Partitions = nil },
			func(t *Table) { t.Size = 12 << 40 },
			func(t *Table) { t.Partitions[5].Name = strings.Repeat("ÿ", 36) },
			func(t *Table) { t.Partitions[5].Name = strings.Repeat("😀", 18) },
			func(t *Table) { t.Partitions[5].Size = t.Size - tableBytes - sector - t.Partitions[5].Start },
		} {
			want := table(sector)
			change(want)
			m := build(t, want)
			got, err := Read(m, m.Size())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("sector size %d: got %+v, %v, want %+v", sector, got, err, want)
			}
		}
	}
}

// TestBytes checks the places that no other test would notice, against the
// specification.
func TestBytes(t *testing.T) {
	b := image(t, table(512))
	for _, tt := range []struct {
		what string
		at   int
		want []byte
	}{
		{"boot code", 0, bytes.Repeat([]byte{0xEB}, 440)},
		{"disk signature", 440, make([]byte, 6)},
		{"protective partition", 446, []byte{0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 0xFF, 0, 0}},
		{"other partitions", 462, make([]byte, 48)},
		{"MBR signature", 510, []byte{0x55, 0xAA}},
		{"header", 512, []byte("EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")},
		{"header, usable sectors", 552, []byte{34, 0, 0, 0, 0, 0, 0, 0, 0xDE, 0xFF, 0, 0, 0, 0, 0, 0}},
		{"disk GUID", 568, []byte{0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0}},
		{"EFI's type", 1024, []byte{0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B}},
		{"EFI's sectors", 1056, []byte{0, 8, 0, 0, 0, 0, 0, 0, 0xFF, 0x27, 0, 0, 0, 0, 0, 0}},
		{"EFI's name", 1080, []byte{'E', 0, 'F', 0, 'I', 0, 0, 0}},
	} {
		if got := b[tt.at:][:len(tt.want)]; !bytes.Equal(got, tt.want) {
			t.Errorf("%s: % x, want % x", tt.what, got, tt.want)
		}
	}
	big := table(512)
	big.Size = 4 << 40
	mbr := make([]byte, 512)
	if _, err := build(t, big).ReadAt(mbr, 0); err != nil || le.Uint32(mbr[458:]) != 0xFFFFFFFF {
		t.Errorf("protective partition of a disk of 4 TiB has %d sectors (%v)", le.Uint32(mbr[458:]), err)
	}
	if n := build(t, table(512)).Allocated(); n != 2*512+2*tableBytes+512 {
		t.Errorf("%d bytes allocated", n)
	}
}

func TestMapErrors(t *testing.T) {
	for _, tt := range []struct {
		change func(*Table)
		want   string
	}{
		{func(t *Table) { t.SectorSize = 520 }, "sector size 520, want 512 or 4096"},
		{func(t *Table) { t.Size += 100 }, "disk of 33554532 bytes, want a multiple of the sector size 512"},
		{func(t *Table) { t.Size, t.Partitions = 33792, nil }, "disk of 33792 bytes has no room for partitions, want more than 34304"},
		{func(t *Table) { t.DiskID = GUID{} }, "DiskID is zero"},
		{func(t *Table) { t.BootCode = make([]byte, 512) }, "boot code of 512 bytes, at most 440 fit"},
		{func(t *Table) { t.Partitions = make([]Partition, 129) }, "129 partitions, at most 128 fit"},
		{func(t *Table) { t.Partitions[2].Start -= 512 }, "partition 2 (BIOS), bytes [5242880, 6291456) overlaps partition 3 (BOOT), bytes [6290944, 10485248)"},
		{func(t *Table) { t.Partitions[5].Size += 3*mib - 16384 }, "partition 6 (EPHEMERAL-åß∂ƒ): 11517952 bytes at 22020096 are not within the usable range from 17408 to 33537536 of a disk of 33554432 bytes"},
		{func(t *Table) { t.Partitions[0].Start = 512 }, "partition 1 (EFI): 4194304 bytes at 512 are not within the usable range from 17408 to "},
		{func(t *Table) { t.Partitions[0].Start = -512 }, "partition 1 (EFI): 4194304 bytes at -512 are not within"},
		{func(t *Table) { t.Partitions[3].Start += 100 }, "partition 4 (META): 1048576 bytes at 10485860, want multiples of the sector size 512"},
		{func(t *Table) { t.Partitions[3].Size = 0 }, "partition 4 (META): its size is 0 bytes"},
		{func(t *Table) { t.Partitions[3].Type = GUID{} }, "partition 4 (META): its type is zero"},
		{func(t *Table) { t.Partitions[3].ID = GUID{} }, "partition 4 (META): its ID is zero"},
		{func(t *Table) { t.Partitions[3].Name = strings.Repeat("😀", 18) + "x" }, "its name has 37 UTF-16 code units, at most 36 fit"},
		{func(t *Table) { t.Partitions[3].Name = "\xff" }, "its name is not valid UTF-8"},
		{func(t *Table) { t.Partitions[3].ID = id(2) }, "partition 4 (META) has the same ID as partition 2 (BIOS): " + id(2).String()},
		{func(t *Table) { t.Partitions[3].ID = t.DiskID }, "partition 4 (META) has the same ID as the disk"},
	} {
		tab := table(512)
		tt.change(tab)
		_, err := tab.Map()
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// TestDamage damages one place after the other.
func TestDamage(t *testing.T) {
	const last = 32*mib - 512
	zero := func(at, n int) func([]byte) { return func(b []byte) { clear(b[at:][:n]) } }
	flip := func(at int) func([]byte) { return func(b []byte) { b[at] ^= 1 } }
	// header changes a header and corrects its CRC.
	header := func(at int, change func(h []byte)) func([]byte) {
		return func(b []byte) {
			h := b[at:][:headerSize]
			change(h)
			le.PutUint32(h[atHeaderCRC:], 0)
			le.PutUint32(h[atHeaderCRC:], crc32.ChecksumIEEE(h))
		}
	}
	// entry changes an entry of the primary table and corrects its CRCs.
	entry := func(n int, change func(e []byte)) func([]byte) {
		return func(b []byte) {
			change(b[1024+128*n:])
			header(512, func(h []byte) { le.PutUint32(h[atEntriesCRC:], crc32.ChecksumIEEE(b[1024:][:tableBytes])) })(b)
		}
	}
	for _, tt := range []struct {
		change func([]byte)
		want   string
	}{
		{flip(512), "there is no primary header in sector 1"},
		{flip(512 + 60), "header in sector 1 (of 512 bytes): damaged GUID partition table: its CRC is 0x"},
		{flip(1024 + 40), "header in sector 1 (of 512 bytes): damaged GUID partition table: the CRC of its entries is 0x"},
		{flip(1024 + 127*128), "the CRC of its entries is 0x"},
		{zero(0, 4096), "there is no protective MBR in sector 0"},
		{zero(0, 4096), "there is no primary header in sector 1"},
		{zero(446, 64), "there is no protective MBR in sector 0"},
		{zero(last, 512), "there is no backup header in sector 65535"},
		{flip(last + 60), "header in sector 65535 (of 512 bytes): damaged GUID partition table: its CRC is 0x"},
		{flip(last - 128), "the CRC of its entries is 0x"},
		{header(last, func(h []byte) { h[atDiskID] ^= 1 }), "the backup in sector 65535 is another table than the primary"},
		{header(512, func(h []byte) { h[atRevision] = 1 }), "revision 0x00010001, want 0x00010000"},
		{header(512, func(h []byte) { h[atHeaderSize] = 91 }), "header of 91 bytes, want 92 up to a sector"},
		{header(512, func(h []byte) { h[atMyLBA] = 3 }), "it says that it is in sector 3"},
		{header(512, func(h []byte) { h[atAlternate+3] = 1 }), "the disk has 65536 sectors, the table is for one with sectors 34 to 65502 usable and the other header in sector 16842751; was the image cut off?"},
		{header(512, func(h []byte) { le.PutUint64(h[atAlternate:], 1) }), "the other header is in sector 1"},
		{header(512, func(h []byte) { le.PutUint64(h[atFirstUsable:], 1) }), "sectors 1 to 65502 are for partitions"},
		{header(512, func(h []byte) { h[atEntrySize] = 129 }), "128 entries of 129 bytes, want at most 1048576 bytes and a power of two from 128"},
		{header(512, func(h []byte) { h[atEntries+3] = 1 }), "16777344 entries of 128 bytes"},
		{header(512, func(h []byte) { le.PutUint64(h[atEntriesLBA:], 65530) }), "32 sectors of entries at sector 65530"},
		{header(512, func(h []byte) { le.PutUint64(h[atEntriesLBA:], 3) }), "32 sectors of entries at sector 3, of which 34 to 65502 are for partitions"},
		{entry(3, func(e []byte) { le.PutUint64(e[atFirstLBA:], 33) }), "partition 4 is from sector 33 to 22527, usable are 34 to 65502"},
		{entry(3, func(e []byte) { le.PutUint64(e[atLastLBA:], 1<<63) }), "partition 4 is from sector 20480 to 9223372036854775808, usable are"},
		{entry(3, func(e []byte) { le.PutUint64(e[atFirstLBA:], 20479) }), "partition 3 (BOOT), bytes [6291456, 10485760) overlaps partition 4 (META), bytes [10485248, 11534336)"},
	} {
		want := table(512)
		b := image(t, want)
		tt.change(b)
		got, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", tt.want, err)
			continue
		}
		if !errors.Is(got.Damaged, ErrDamaged) || !strings.Contains(got.Damaged.Error(), tt.want) {
			t.Errorf("damage %v, want %q", got.Damaged, tt.want)
		}
		got.Damaged, got.BootCode, want.BootCode = nil, nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v", tt.want, got)
		}
	}
}

func TestReadErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		change func([]byte) []byte
		is     error
		want   string
	}{
		"empty":  {func([]byte) []byte { return nil }, ErrNone, "the disk has 0 bytes"},
		"zeros":  {func(b []byte) []byte { return make([]byte, 4*mib) }, ErrNone, "no header in sector 1 or in the last one"},
		"cut":    {func(b []byte) []byte { return b[:20*mib] }, ErrDamaged, "was the image cut off?"},
		"sector": {func(b []byte) []byte { return b[:1024] }, ErrDamaged, "was the image cut off?"},
		"both damaged": {func(b []byte) []byte {
			b[512+60] ^= 1
			b[len(b)-512+60] ^= 1
			return b
		}, ErrDamaged, "header in sector 65535"},
		"MBR": {func(b []byte) []byte { b[450] = 0x83; return b }, ErrNone, "the MBR has 1 partitions and none of the type 0xee that protects a GPT"},
	} {
		b := tt.change(image(t, table(512)))
		got, err := Read(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, tt.want)
		}
	}
	b := image(t, table(512))
	if _, err := Read(bytes.NewReader(b[:600]), int64(len(b))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a disk shorter than said: %v", err)
	}
}

// TestGrow is what happens to an image on a larger disk on its first boot.
func TestGrow(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		small := build(t, table(sector))
		disk := extent.New(1 << 40)
		if err := disk.Put(0, small); err != nil {
			t.Fatal(err)
		}
		tab, err := Read(disk, disk.Size())
		if err != nil || tab.Damaged != nil || tab.Size != disk.Size() {
			t.Fatalf("%+v, %v", tab, err)
		}
		last := &tab.Partitions[len(tab.Partitions)-1]
		_, end := tab.Usable()
		last.Size = end - last.Start
		grown, err := Read(build(t, tab), tab.Size)
		if err != nil || !reflect.DeepEqual(grown, tab) {
			t.Errorf("%+v, %v, want %+v", grown, err, tab)
		}
	}
}

func TestTypeName(t *testing.T) {
	other := uuid.MustParse("e6d6d379-f507-44c2-a23c-238f2a3df928")
	got := []string{TypeName(EFISystem), TypeName(BIOSBoot), TypeName(LinuxFilesystem), TypeName(other)}
	if want := []string{"EFI system", "BIOS boot", "Linux filesystem", other.String()}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzRead makes sure that Read neither panics nor accepts a table that Map
// would refuse for anything else than duplicate or missing IDs.
func FuzzRead(f *testing.F) {
	// A seed is as much from the beginning as from the end of the disk; what is
	// between is zero.
	for _, sector := range []int64{512, 4096} {
		b, half := image(f, table(sector)), 2*sector+tableBytes
		f.Add(slices.Concat(b[:half], b[int64(len(b))-half:]), int64(len(b)))
	}
	f.Add([]byte("EFI PART"), int64(mib))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 || size > 1<<50 {
			return
		}
		disk := extent.New(size)
		n := min(int64(len(b)), size)
		if err := disk.PutBytes(0, b[:n/2]); err != nil {
			t.Fatal(err)
		}
		if err := disk.PutBytes(size-(n-n/2), b[n/2:n]); err != nil {
			t.Fatal(err)
		}
		for _, fix := range []bool{false, true} {
			tab, err := Read(fixed{disk, fix}, size)
			if err != nil {
				continue
			}
			for i, p := range tab.Partitions {
				if p != (Partition{}) && (p.Start < tab.SectorSize*2 || p.Size <= 0 || p.End() > tab.Size) {
					t.Errorf("partition %d: %+v on %d bytes", i+1, p, size)
				}
			}
			if m, err := tab.Map(); err == nil {
				if again, err := Read(m, m.Size()); err != nil || !slices.Equal(again.Partitions, tab.Partitions) {
					t.Errorf("not the same again: %+v, %v", again, err)
				}
			}
		}
	})
}

// fixed corrects the CRC of every header that is read, so that the fuzzer gets
// past it.
type fixed struct {
	io.ReaderAt
	fix bool
}

func (f fixed) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, off)
	if f.fix && n >= headerSize && string(p[:8]) == signature {
		le.PutUint32(p[atHeaderCRC:], 0)
		size := min(uint32(n), le.Uint32(p[atHeaderSize:]))
		le.PutUint32(p[atHeaderCRC:], crc32.ChecksumIEEE(p[:size]))
	}
	return n, err
}

func ExampleTable() {
	t := &Table{
		DiskID: uuid.MustParse("6a1c9b5e-0d0f-4c43-9d3e-3f4d6f2f7a10"), SectorSize: 512, Size: 64 * mib,
		Partitions: []Partition{{
			Type: EFISystem, ID: uuid.MustParse("0c9b6d1a-7d5e-4b6a-8a1b-2f1e3c4d5e6f"),
			Name: "EFI", Start: mib, Size: 62 * mib,
		}},
	}
	m, err := t.Map()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range m.Extents() {
		fmt.Println(e.Offset, e.Length)
	}
	// Output:
	// 0 17408
	// 67091968 16896
}

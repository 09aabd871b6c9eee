package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zlib"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

const wantDescriptor = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=1a2b3c4d
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 20480 SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "10"
ddb.geometry.heads = "64"
ddb.geometry.sectors = "32"
ddb.longContentID = "100102030405060708090a0b1a2b3c4d"
ddb.toolsVersion = "2147483647"
ddb.uuid = "60 00 C2 9b 01 02 03 04-05 06 07 08 09 0a 0b 0c"
ddb.virtualHWVersion = "4"
`

func TestDescriptor(t *testing.T) {
	if got := string(options.descriptor(20480, monolithicSparse)); got != wantDescriptor {
		t.Errorf("descriptor\n%s\nwant\n%s", got, wantDescriptor)
	}
	for _, test := range []struct {
		o        Options
		capacity uint64
		want     []string
	}{
		{Options{Adapter: PVSCSI, ToolsVersion: 12352}, 1 << 20, []string{`"lsilogic"`, `toolsVersion = "12352"`}},
		{Options{Adapter: IDE}, 1 << 20, []string{`"ide"`, `cylinders = "1040"`, `heads = "16"`, `sectors = "63"`}},
		{Options{Adapter: IDE}, 1 << 31, []string{`cylinders = "16383"`}},
		{Options{}, 1<<21 - 1, []string{`cylinders = "1023"`, `heads = "64"`, `sectors = "32"`}},
		{Options{}, 1 << 21, []string{`cylinders = "512"`, `heads = "128"`, `sectors = "32"`}},
		{Options{}, 1 << 22, []string{`cylinders = "261"`, `heads = "255"`, `sectors = "63"`}},
		{Options{}, 1 << 40, []string{`cylinders = "65535"`}},
		{Options{}, 1, []string{`cylinders = "1"`}},
		{Options{ContentID: [16]byte{12: 0xff, 13: 0xff, 14: 0xff, 15: 0xfe}}, 1,
			[]string{"\nCID=7ffffffe\n", `longContentID = "0000000000000000000000007ffffffe"`}},
	} {
		got := string(test.o.descriptor(test.capacity, streamOptimized))
		for _, want := range append(test.want, `createType="streamOptimized"`, "\nRDONLY ") {
			if !strings.Contains(got, want) {
				t.Errorf("%+v: no %q in\n%s", test.o, want, got)
			}
		}
		if strings.Contains(got, "ddb.uuid") {
			t.Error("a UUID of zeros is written")
		}
	}
}

// sectors cuts an image.
func sectors(image []byte, at, n int) []byte { return image[at*sector : (at+n)*sector] }

// fields are the bytes of numbers of 2, 4 and 8 bytes.
func fields(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		binary.Write(&b, binary.LittleEndian, v)
	}
	return append(b.Bytes(), make([]byte, sector-b.Len()%sector)...)
}

func TestMapGolden(t *testing.T) {
	// 33 MiB: two tables, of which one is used.
	m, err := Map(disktest.Disk(t, 33<<20, disktest.At(65536, []byte("data")), disktest.At(3*65536, []byte("more"))), options)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	image := b.Bytes()
	// Two directories of a sector, each with two tables of 4, from sector 21.
	if len(image) != (128+2*128)*sector {
		t.Errorf("%d bytes", len(image))
	}
	for _, test := range []struct {
		name string
		at   int
		want []byte
	}{
		{"header", 0, fields([]byte("KDMV"), uint32(1), uint32(3), uint64(33<<11), uint64(128), uint64(1), uint64(20), uint32(512),
			uint64(21), uint64(30), uint64(128), byte(0), []byte{0x0a, 0x20, 0x0d, 0x0a}, uint16(0))},
		{"redundant directory", 21, fields(uint32(22), uint32(26))},
		{"redundant table", 22, fields(uint32(0), uint32(128), uint32(0), uint32(256))},
		{"unused redundant table", 26, fields()},
		{"directory", 30, fields(uint32(31), uint32(35))},
		{"table", 31, fields(uint32(0), uint32(128), uint32(0), uint32(256))},
		{"grain", 128, fields([]byte("data"))},
		{"second grain", 256, fields([]byte("more"))},
	} {
		if got := sectors(image, test.at, 1); !bytes.Equal(got, test.want) {
			t.Errorf("%s: %x, want %x", test.name, got[:96], test.want[:96])
		}
	}
	if m.Allocated() > 20<<10 {
		t.Errorf("%d bytes are not holes", m.Allocated())
	}
}

func TestWriteGolden(t *testing.T) {
	// Tables 0 and 2 of three are used.
	var b bytes.Buffer
	if err := Write(t.Context(), &b, disktest.Disk(t, 65<<20, disktest.At(65536, []byte("data")), disktest.At(64<<20, []byte("more"))), options, nil); err != nil {
		t.Fatal(err)
	}
	image := b.Bytes()
	head := func(directory uint64) []byte {
		return fields([]byte("KDMV"), uint32(3), uint32(0x30001), uint64(65<<11), uint64(128), uint64(1), uint64(20), uint32(512),
			uint64(0), directory, uint64(128), byte(0), []byte{0x0a, 0x20, 0x0d, 0x0a}, uint16(1))
	}
	for _, test := range []struct {
		name string
		at   int
		want []byte
	}{
		{"header", 0, head(1<<64 - 1)},
		// The grain is at 128.
		{"marker of the first table", 129, fields(uint64(4), uint32(0), uint32(1))},
		{"first table", 130, fields(uint32(0), uint32(128))},
		{"marker of the second table", 135, fields(uint64(4), uint32(0), uint32(1))},
		{"second table", 136, fields(uint32(134))},
		{"marker of the directory", 140, fields(uint64(1), uint32(0), uint32(2))},
		{"directory", 141, fields(uint32(130), uint32(0), uint32(136))},
		{"marker of the footer", 142, fields(uint64(1), uint32(0), uint32(3))},
		{"footer", 143, head(141)},
		{"end of stream", 144, fields()},
	} {
		if got := sectors(image, test.at, 1); !bytes.Equal(got, test.want) {
			t.Errorf("%s: %x, want %x", test.name, got[:96], test.want[:96])
		}
	}
	if len(image) != 145*sector {
		t.Errorf("%d sectors, want 145", len(image)/sector)
	}
	grain := sectors(image, 134, 1)
	if lba := binary.LittleEndian.Uint64(grain); lba != 64<<11 {
		t.Errorf("second grain is for sector %d", lba)
	}
	z, err := zlib.NewReader(bytes.NewReader(grain[12 : 12+binary.LittleEndian.Uint32(grain[8:])]))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(z)
	if err != nil || len(content) != 65536 || !bytes.HasPrefix(content, []byte("more\x00")) {
		t.Errorf("second grain: %d bytes, %v", len(content), err)
	}
}

func TestWriteRefuses(t *testing.T) {
	sized := extent.New(1 << 20)
	for _, test := range []struct {
		disk *extent.Map
		o    Options
		want string
	}{
		{extent.New(1000), options, "the disk has 1000 bytes, want a multiple of 512"},
		{sized, Options{}, "the descriptor needs the name of the file"},
		{sized, Options{Name: "a/b.vmdk"}, `file name "a/b.vmdk", want one without quotes, slashes and line ends`},
		{sized, Options{Name: "a\"\nRW"}, "want one without quotes"},
		{sized, Options{Name: "d", Adapter: "nvme"}, `adapter "nvme", want lsilogic, pvscsi or ide`},
	} {
		_, err := Map(test.disk, test.o)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Map: %v, want %q", err, test.want)
		}
		err = Write(t.Context(), io.Discard, test.disk, test.o, nil)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Write: %v, want %q", err, test.want)
		}
	}
	full := extent.New(2 << 40)
	if err := full.Put(0, disktest.Broken(2<<40)); err != nil {
		t.Fatal(err)
	}
	if _, err := Map(full, options); err == nil || !strings.Contains(err.Error(), "2048 GiB of data; a sparse file ends at 2 TiB") {
		t.Errorf("2 TiB of data: %v", err)
	}
}

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, os.ErrPermission
	}
	return len(p), nil
}

func TestWriteStops(t *testing.T) {
	bad := extent.New(1 << 30)
	if err := bad.Put(0, disktest.Broken(1<<30)); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), io.Discard, bad, options, nil); !errors.Is(err, disktest.ErrRead) {
		t.Errorf("source that fails: %v", err)
	}
	good := disktest.Mixed(t, 20<<20, 1)
	for _, after := range []int{0, 100_000, 3 << 20} {
		if err := Write(t.Context(), &failing{after}, good, options, nil); !errors.Is(err, os.ErrPermission) {
			t.Errorf("writer that fails after %d: %v", after, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Write(ctx, io.Discard, good, options, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// image returns an image of a small disk, changed.
func image(t testing.TB, kind string, change func([]byte) []byte) extent.Source {
	t.Helper()
	d := disktest.Disk(t, 1<<20, disktest.At(0, disktest.Text(200_000, 1)))
	var b bytes.Buffer
	if kind == streamOptimized {
		if err := Write(t.Context(), &b, d, options, nil); err != nil {
			t.Fatal(err)
		}
	} else {
		m, err := Map(d, options)
		if err == nil {
			_, err = m.WriteTo(&b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return extent.Bytes(change(b.Bytes()))
}

func TestOpenRefuses(t *testing.T) {
	set := func(at int, b ...byte) func([]byte) []byte {
		return func(p []byte) []byte { copy(p[at:], b); return p }
	}
	replace := func(old, new string) func([]byte) []byte {
		return func(p []byte) []byte { return bytes.Replace(p, []byte(old), []byte(new), 1) }
	}
	cut := func(n int) func([]byte) []byte { return func(p []byte) []byte { return p[:len(p)-n] } }
	for _, test := range []struct {
		name, kind string
		change     func([]byte) []byte
		is         error
		want       string
	}{
		{"empty", monolithicSparse, func([]byte) []byte { return nil }, ErrCorrupt, "begins neither with a sparse header nor with a descriptor"},
		{"not a vmdk", monolithicSparse, set(0, []byte("QFI\xfb")...), ErrCorrupt, "begins neither"},
		{"redo log", monolithicSparse, set(0, []byte("COWD")...), ErrUnsupported, "ESX redo log (COWD)"},
		{"SE sparse", monolithicSparse, set(0, 0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0), ErrUnsupported, "SE sparse"},
		{"unfinished", monolithicSparse, set(0, []byte("vmdk")...), ErrCorrupt, "did not come to the end"},
		{"version", monolithicSparse, set(4, 4), ErrUnsupported, "version 4, want 1 to 3"},
		{"flags", monolithicSparse, set(10, 4), ErrUnsupported, "unknown flags 0x40003"},
		{"text", monolithicSparse, set(73, []byte("\r\n \r")...), ErrCorrupt, "it was transferred as text"},
		{"unclean", monolithicSparse, set(72, 1), ErrUnsupported, "it was not closed"},
		{"grain", monolithicSparse, set(20, 100), ErrCorrupt, "grains of 100 sectors, want a power of two from 8 to 16384"},
		{"table size", monolithicSparse, set(45, 4), ErrUnsupported, "grain tables of 1024 entries, want 512"},
		{"capacity", monolithicSparse, set(19, 0x7f), ErrCorrupt, "a disk of "},
		{"many tables", monolithicSparse, set(17, 0x10), ErrUnsupported, "grain tables, at most 4194304 are read"},
		{"descriptor place", monolithicSparse, set(29, 0xff, 0xff), ErrCorrupt, "descriptor of 20 sectors at sector 16776961"},
		{"no descriptor", monolithicSparse, set(28, 0), ErrUnsupported, "an extent without a descriptor"},
		{"directory place", monolithicSparse, set(57, 0xff, 0xff), ErrCorrupt, "grain directory of 1 entries at sector"},
		{"table place", monolithicSparse, set((21+1+4)*sector, 0, 0, 0, 0xf0), ErrCorrupt, "grain table 0 at 2061584302080 in a file of"},
		{"grain place", monolithicSparse, set((21+1+4+1)*sector+4, 0, 0, 0, 0xf0), ErrCorrupt, "grain 1 is at 2061584302080, but the file ends at"},
		{"parent", monolithicSparse, replace("parentCID=ffffffff", "parentCID=00c0ffee"), ErrUnsupported, "only has what differs from a parent (CID 00c0ffee)"},
		{"parent's number", monolithicSparse, replace("parentCID=ffffffff", "parentCID=nonsense"), ErrCorrupt, `parentCID "nonsense"`},
		{"encrypted", monolithicSparse, replace(`encoding="UTF-8"`, `encryption.key="a"`), ErrUnsupported, "it is encrypted"},
		{"type", monolithicSparse, replace(`"monolithicSparse"`, `"custom"`), ErrUnsupported, `a descriptor of "custom" inside an extent`},
		{"no type", monolithicSparse, replace("createType", "#reateType"), ErrCorrupt, "has no createType"},
		{"no version", monolithicSparse, replace("version=1", "#ersion=1"), ErrCorrupt, "has no version"},
		{"nonsense", monolithicSparse, replace("version=1", "version 1"), ErrCorrupt, `line "version 1" of the descriptor`},
		{"no extent", monolithicSparse, replace("RW ", "#W "), ErrUnsupported, "the descriptor has 0 extents"},
		{"extent", monolithicSparse, replace("RW 2048", "RW x048"), ErrCorrupt, `extent "RW x048`},
		{"no access", monolithicSparse, replace("RW 2048 SPARSE", "NOACCESS 2048 S"), ErrUnsupported, "an extent without access"},
		{"cut off", monolithicSparse, cut(65536), ErrCorrupt, "but the file ends at"},
		{"no footer", streamOptimized, cut(512), ErrCorrupt, "it does not end with a footer; it was cut off"},
		{"short", streamOptimized, func(p []byte) []byte { return p[:1024] }, ErrCorrupt, "descriptor of 20 sectors"},
		{"only the start", streamOptimized, func(p []byte) []byte { return p[:21*sector] }, ErrCorrupt, "it does not end with a footer"},
		{"footer's capacity", streamOptimized, func(p []byte) []byte { p[len(p)-1024+12]++; return p }, ErrCorrupt, "header and footer differ"},
		{"no markers", streamOptimized, set(10, 1), ErrUnsupported, "compressed grains without markers"},
		{"method", streamOptimized, set(77, 2), ErrUnsupported, "compression 2, want 1 (deflate)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(image(t, test.kind, test.change))
			if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	first := grainSectors * sector
	for _, test := range []struct {
		name string
		at   int
		with byte
		want string
	}{
		{"place", first, 1, "grain 0 at 65536: its marker is that of sector 1, want 0"},
		{"length", first + 11, 1, "its marker has a length of 16"},
		{"data", first + 100, 0x55, "grain 0 at 65536: "},
	} {
		m, err := Open(image(t, streamOptimized, func(p []byte) []byte { p[test.at] ^= test.with; return p }))
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.ReadAt(make([]byte, 65536), 0)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	// The checksum of every grain is looked at.
	m, err := Open(image(t, streamOptimized, func(p []byte) []byte {
		n := int(binary.LittleEndian.Uint32(p[first+8:]))
		p[first+12+n-1] ^= 1
		return p
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{65536, 1000} {
		if _, err = m.ReadAt(make([]byte, n), 0); !errors.Is(err, zlib.ErrChecksum) {
			t.Errorf("%d bytes of a grain with a wrong checksum: %v", n, err)
		}
	}
}

const flat = `# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="vmfs"
RW 16 ZERO
RW 8 VMFS "disk-flat.vmdk"
RW 8 FLAT "disk-flat.vmdk" 4
`

func TestOpenFiles(t *testing.T) {
	content := disktest.Noise(16*512, 1)
	files := func(name string) (extent.Source, error) {
		if name != "disk-flat.vmdk" {
			return nil, os.ErrNotExist
		}
		return extent.Bytes(content), nil
	}
	got, err := OpenFiles(extent.Bytes([]byte(flat)), files)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Same(t, got, disktest.Disk(t, 32*512, disktest.At(16*512, content[:8*512]), disktest.At(24*512, content[4*512:12*512])))

	for _, test := range []struct {
		old, new string
		is       error
		want     string
	}{
		{"disk-flat", "other", os.ErrNotExist, `"other.vmdk": file does not exist`},
		{"disk-flat", "../secret", ErrUnsupported, `an extent in another directory ("../secret.vmdk")`},
		{"RW 8 VMFS", "RW 17 VMFS", ErrCorrupt, `"disk-flat.vmdk": damaged vmdk image: has 8192 bytes, want 17 sectors at 0`},
		{"VMFS", "VMFSRDM", ErrUnsupported, `an extent of type "VMFSRDM"`},
		{"VMFS", "SPARSE", ErrCorrupt, "does not begin with a sparse header"},
		{"RW 16 ", "RW 9007199254740991 ", ErrCorrupt, "more than 9007199254740992 sectors"},
	} {
		_, err := OpenFiles(extent.Bytes([]byte(strings.Replace(flat, test.old, test.new, 1))), files)
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	_, err = Open(extent.Bytes([]byte(flat)))
	if want := `a descriptor only (vmfs); its data is in "disk-flat.vmdk"`; !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// FuzzOpen has the parts of an image apart, as most of one is padding.
func FuzzOpen(f *testing.F) {
	const head, body = dataStart * sector, grainSectors * sector
	for _, kind := range []string{monolithicSparse, streamOptimized} {
		src := image(f, kind, func(p []byte) []byte { return p })
		p := make([]byte, src.Size())
		if err := readAt(src, p, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(p[:79], bytes.TrimRight(p[sector:head], "\x00"), bytes.TrimRight(p[head:body], "\x00"), p[body:][:8<<10], p[len(p)-9*sector:])
	}
	f.Add([]byte(flat), []byte{}, []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, header, descriptor, tables, grains, end []byte) {
		p := header
		if bytes.HasPrefix(header, []byte("KDMV")) {
			p = append(make([]byte, 0, body+8<<10), header[:min(len(header), sector)]...)
			p = append(p[:sector], descriptor[:min(len(descriptor), head-sector)]...)
			p = append(p[:head], tables[:min(len(tables), body-head)]...)
			p = append(append(p[:body], grains...), end...)
		}
		m, err := OpenFiles(extent.Bytes(p), func(string) (extent.Source, error) { return extent.Bytes(p), nil })
		if err != nil {
			return
		}
		buf := make([]byte, 70_000)
		for i, e := range m.Extents() {
			if i == 5 {
				break
			}
			for _, off := range []int64{e.Offset, e.Offset + e.Length/2, e.End() - 1} {
				m.ReadAt(buf, off)
				m.ReadAt(buf[:100], off)
			}
		}
	})
}

package vhdx

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

var testOptions = Options{
	FileWriteID: uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
	DataWriteID: uuid.MustParse("10213243-5465-7687-98a9-bacbdcedfe0f"),
	DiskID:      uuid.MustParse("0c9b6d1a-7d5e-4b6a-8a1b-2f1e3c4d5e6f"),
}

func random(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(rng.Uint32()) | 1 // no zeros
	}
	return p
}

type piece struct {
	at      int64
	content []byte
}

func disk(t testing.TB, size int64, pieces ...piece) *extent.Map {
	t.Helper()
	m := extent.New(size)
	for _, p := range pieces {
		if err := m.PutBytes(p.at, p.content); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// scattered returns a disk of pieces and holes of any size.
func scattered(t testing.TB, size int64, seed uint64) *extent.Map {
	m := extent.New(size)
	rng := rand.New(rand.NewPCG(seed, 3))
	for off := int64(0); off < size; {
		n := min(size-off, 1+rng.Int64N(1<<uint(4+rng.IntN(19))))
		if rng.IntN(2) == 0 {
			if err := m.PutBytes(off, random(int(n), uint64(off))); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	return m
}

func disks(t testing.TB) map[string]*extent.Map {
	return map[string]*extent.Map{
		"one sector": disk(t, 512, piece{0, random(512, 1)}),
		"hole":       disk(t, 10<<20),
		"zeros":      disk(t, 3<<20, piece{1 << 20, make([]byte, 1<<20)}),
		"full":       disk(t, 6<<20, piece{0, random(6<<20, 3)}),
		"odd size":   disk(t, 3<<20+3*512, piece{0, random(70000, 4)}, piece{3 << 20, random(3*512, 5)}),
		"unaligned":  disk(t, 9<<20, piece{1, random(3, 6)}, piece{65535, random(2, 7)}, piece{2<<20 - 7, random(4<<20, 8)}, piece{9<<20 - 1, []byte{1}}),
		"scattered":  scattered(t, 20<<20+512, 11),
		// On both sides of the entries of the BAT that are for bitmaps.
		"chunks": disk(t, 9<<30, piece{0, random(1000, 12)}, piece{4<<30 - 100, random(200, 13)},
			piece{8<<30 - 1, random(1, 14)}, piece{9<<30 - 70000, random(70000, 15)}),
	}
}

func write(t testing.TB, path string, m *extent.Map) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
}

func writeImage(t testing.TB, path string, disk *extent.Map, o Options) {
	t.Helper()
	m, err := Map(disk, o)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, m)
}

func try(t testing.TB, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(t.Context(), oracle.Tool(t, name), args...).CombinedOutput()
	return string(out), err
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// judge has qemu-img check an image, compare it with the raw disk and say its
// size.
//
// QEMU has no map of the holes in this format and reads them all, so of a large
// disk only the surroundings of what is not a hole are compared.
func judge(t testing.TB, raw, image string, disk *extent.Map) {
	t.Helper()
	size := disk.Size()
	if out := tool(t, "qemu-img", "check", "-f", "vhdx", image); out != "No errors were found on the image.\n" {
		t.Errorf("qemu-img check:\n%s", out)
	}
	const margin = 8 << 20
	windows := []extent.Extent{{Length: size}}
	if size > 1<<30 {
		windows = disk.Extents()
	}
	for _, w := range windows {
		from, to := max(0, w.Offset/512*512-margin), min(size, extent.Align(w.End(), 512)+margin)
		window := fmt.Sprintf("driver=raw,offset=%d,size=%d,", from, to-from)
		out := tool(t, "qemu-img", "compare", "--image-opts", window+"file.filename="+raw,
			window+"file.driver=vhdx,file.file.filename="+image)
		if out != "Images are identical.\n" {
			t.Errorf("qemu-img compare from %d to %d:\n%s", from, to, out)
		}
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if out := tool(t, "qemu-img", "info", "-f", "vhdx", "--output=json", image); json.Unmarshal([]byte(out), &info) != nil || info.Size != size {
		t.Errorf("qemu-img info, want a disk of %d bytes:\n%s", size, out)
	}
}

func open(t testing.TB, path string) *extent.Map {
	t.Helper()
	f, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(f)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return m
}

// same compares two disks, in pieces of odd sizes, without reading what is a
// hole in both.
func same(t testing.TB, got, want *extent.Map) {
	t.Helper()
	if got.Size() != want.Size() {
		t.Fatalf("disk of %d bytes, want %d", got.Size(), want.Size())
	}
	lists := []*extent.Map{got, want}
	if got.Allocated() > 1<<30 { // a fixed image: all of it may be data
		lists = lists[1:]
	}
	for _, m := range lists {
		for _, e := range m.Extents() {
			for off := e.Offset; off < e.End(); off += 100_003 {
				n := min(100_003, e.End()-off)
				a, b := make([]byte, n), make([]byte, n)
				for _, r := range []struct {
					m *extent.Map
					p []byte
				}{{got, a}, {want, b}} {
					if _, err := r.m.ReadAt(r.p, off); err != nil && err != io.EOF {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(a, b) {
					t.Fatalf("content differs in the %d bytes at %d", n, off)
				}
			}
		}
	}
}

func TestWrittenImages(t *testing.T) {
	for name, d := range disks(t) {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		write(t, raw, d)
		for _, o := range []Options{{}, {BlockSize: 32 << 20}, {BlockSize: 256 << 20}, {Fixed: true}, {Fixed: true, BlockSize: 8 << 20}} {
			t.Run(fmt.Sprintf("%s/fixed=%v/%d MiB", name, o.Fixed, max(o.BlockSize, DefaultBlockSize)>>20), func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhdx")
				writeImage(t, image, d, o)
				judge(t, raw, image, d)
				got := open(t, image)
				same(t, got, d)
				block := max(o.BlockSize, DefaultBlockSize)
				if most := d.Allocated() + int64(len(d.Extents()))*2*block; !o.Fixed && got.Allocated() > most {
					t.Errorf("%d bytes of the disk are not holes, want at most %d", got.Allocated(), most)
				}
			})
		}
	}
}

// TestImagesOfQEMU reads what qemu-img writes with each of its options.
func TestImagesOfQEMU(t *testing.T) {
	for name, d := range disks(t) {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		write(t, raw, d)
		for _, options := range []string{
			"subformat=dynamic", "subformat=fixed", "subformat=dynamic,block_size=1M", "subformat=fixed,block_size=64M,log_size=3M",
			"subformat=dynamic,block_size=256M", "subformat=dynamic,block_state_zero=off",
		} {
			if name == "chunks" && strings.Contains(options, "fixed") {
				continue // it would write all of it
			}
			t.Run(name+"/"+options, func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhdx")
				tool(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, image)
				same(t, open(t, image), d)
			})
		}
	}
}

// TestStreams compares the image as a stream with the one written sparsely.
func TestStreams(t *testing.T) {
	d := scattered(t, 9<<20, 17)
	for _, fixed := range []bool{true, false} {
		m, err := Map(d, Options{Fixed: fixed})
		if err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(t.TempDir(), "disk.vhdx")
		write(t, image, m)
		want, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := m.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("fixed %v: the stream differs from the file (%v)", fixed, err)
		}
	}
}

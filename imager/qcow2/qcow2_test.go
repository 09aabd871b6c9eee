package qcow2

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// text returns n bytes that compress, random n bytes that do not.
func text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, n+20)
	for len(p) < n {
		p = fmt.Appendf(p, "%x line of %d\n", rng.Uint32(), rng.IntN(50))
	}
	return p[:n]
}

func random(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
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

// mixed returns a disk of text, noise, zeros and holes in pieces of any size.
func mixed(t testing.TB, size int64, seed uint64) *extent.Map {
	m := extent.New(size)
	rng := rand.New(rand.NewPCG(seed, 3))
	for off := int64(0); off < size; {
		n := min(size-off, 1+rng.Int64N(1<<uint(4+rng.IntN(15))))
		var p []byte
		switch rng.IntN(4) {
		case 0:
			p = text(int(n), uint64(off))
		case 1:
			p = random(int(n), uint64(off))
		case 2:
			p = make([]byte, n)
		case 3:
			off += n
			continue
		}
		if err := m.PutBytes(off, p); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	return m
}

// disks are of every shape that is cheap to write.
func disks(t testing.TB) map[string]*extent.Map {
	return map[string]*extent.Map{
		"no sectors":      disk(t, 0),
		"hole":            disk(t, 10<<20),
		"one sector":      disk(t, 512, piece{0, text(512, 1)}),
		"zeros":           disk(t, 1<<20, piece{0, make([]byte, 1<<20)}),
		"full text":       disk(t, 3<<20, piece{0, text(3<<20, 2)}),
		"full noise":      disk(t, 3<<20, piece{0, random(3<<20, 3)}),
		"odd size":        disk(t, 1<<20+3*512, piece{0, text(70000, 4)}, piece{1 << 20, random(3*512, 5)}),
		"unaligned":       disk(t, 5<<20, piece{1, text(3, 6)}, piece{65535, random(2, 7)}, piece{1<<20 - 7, random(300_001, 8)}, piece{5<<20 - 1, []byte{1}}),
		"noise then text": disk(t, 4<<20, piece{100, random(1<<20, 9)}, piece{2<<20 + 5, text(1<<20, 10)}),
		"mixed":           mixed(t, 4<<20+512, 11),
		"past 4 GiB":      disk(t, 5<<30, piece{0, text(1000, 12)}, piece{4<<30 - 100, random(200, 13)}, piece{5<<30 - 70000, text(70000, 14)}),
	}
}

var clusterSizes = []int64{512, 4096, 0, 2 << 20}

// kinds are the ways to write an image.
var kinds = map[string]func(t testing.TB, path string, disk *extent.Map, clusterSize int64){
	"none": writeMap,
	"zlib": func(t testing.TB, path string, disk *extent.Map, clusterSize int64) {
		writePacked(t, path, disk, Options{ClusterSize: clusterSize})
	},
	"zstd": func(t testing.TB, path string, disk *extent.Map, clusterSize int64) {
		writePacked(t, path, disk, Options{ClusterSize: clusterSize, Compression: Zstd})
	},
}

func create(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writeMap(t testing.TB, path string, disk *extent.Map, clusterSize int64) {
	t.Helper()
	m, err := Map(disk, clusterSize)
	if err != nil {
		t.Fatal(err)
	}
	f := create(t, path)
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func writePacked(t testing.TB, path string, disk *extent.Map, o Options) {
	t.Helper()
	f := create(t, path)
	var progress int64
	if err := Write(t.Context(), f, disk, o, func(n int64) { progress += n }); err != nil {
		t.Fatal(err)
	}
	if progress != disk.Allocated() {
		t.Errorf("progress %d of %d", progress, disk.Allocated())
	}
	f.Close()
}

func writeRaw(t testing.TB, path string, disk *extent.Map) {
	t.Helper()
	f := create(t, path)
	if err := extent.WriteSparse(t.Context(), f, disk, nil); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), oracle.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// judge has qemu-img compare an image with the raw disk, and check that every
// refcount is right.
func judge(t testing.TB, raw, image string) {
	t.Helper()
	if out := tool(t, "qemu-img", "check", "-f", "qcow2", image); !strings.Contains(out, "No errors were found on the image") {
		t.Errorf("qemu-img check:\n%s", out)
	}
	if out := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image); !strings.Contains(out, "Images are identical") {
		t.Errorf("qemu-img compare:\n%s", out)
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
	for _, m := range []*extent.Map{got, want} {
		for _, e := range m.Extents() {
			for off := e.Offset; off < e.End(); off += 100_003 {
				n := min(100_003, e.End()-off)
				a, b := make([]byte, n), make([]byte, n)
				if _, err := got.ReadAt(a, off); err != nil && err != io.EOF {
					t.Fatal(err)
				}
				if _, err := want.ReadAt(b, off); err != nil && err != io.EOF {
					t.Fatal(err)
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
		writeRaw(t, raw, d)
		for kind, write := range kinds {
			for _, clusterSize := range clusterSizes {
				if clusterSize != 0 && !slices.Contains([]string{"no sectors", "odd size", "unaligned", "mixed"}, name) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%d", name, kind, clusterSize), func(t *testing.T) {
					image := filepath.Join(t.TempDir(), "disk.qcow2")
					write(t, image, d, clusterSize)
					judge(t, raw, image)
					got := open(t, image)
					same(t, got, d)
					if clusterSize == 0 {
						clusterSize = DefaultClusterSize
					}
					if most := d.Allocated() + int64(len(d.Extents()))*2*clusterSize; got.Allocated() > most {
						t.Errorf("%d bytes of the disk are not holes, want at most %d", got.Allocated(), most)
					}
				})
			}
		}
	}
}

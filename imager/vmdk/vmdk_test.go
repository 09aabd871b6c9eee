package vmdk

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// text returns n bytes that compress, noise n bytes that do not.
func text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, n+20)
	for len(p) < n {
		p = fmt.Appendf(p, "%x line of %d\n", rng.Uint32(), rng.IntN(50))
	}
	return p[:n]
}

func noise(n int, seed uint64) []byte {
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
		n := min(size-off, 1+rng.Int64N(1<<uint(8+rng.IntN(13))))
		var p []byte
		switch rng.IntN(4) {
		case 0:
			p = text(int(n), uint64(off))
		case 1:
			p = noise(int(n), uint64(off))
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
		"no sectors":   disk(t, 0),
		"hole":         disk(t, 10<<20),
		"one sector":   disk(t, 512, piece{0, text(512, 1)}),
		"zeros":        disk(t, 1<<20, piece{0, make([]byte, 1<<20)}),
		"full text":    disk(t, 3<<20, piece{0, text(3<<20, 2)}),
		"full noise":   disk(t, 3<<20, piece{0, noise(3<<20, 3)}),
		"odd size":     disk(t, 1<<20+3*512, piece{0, text(70000, 4)}, piece{1 << 20, noise(3*512, 5)}),
		"unaligned":    disk(t, 5<<20, piece{1, text(3, 6)}, piece{65535, noise(2, 7)}, piece{1<<20 - 7, noise(300_001, 8)}, piece{5<<20 - 1, []byte{1}}),
		"three tables": disk(t, 96<<20, piece{32<<20 - 1, []byte("on both sides")}, piece{80 << 20, text(2<<20, 9)}),
		"mixed":        mixed(t, 40<<20+512, 11),
		"past 4 GiB":   disk(t, 5<<30, piece{0, text(1000, 12)}, piece{4<<30 - 100, noise(200, 13)}, piece{5<<30 - 70000, text(70000, 14)}),
	}
}

var options = Options{
	Name:      "disk.vmdk",
	ContentID: [16]byte{0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x1a, 0x2b, 0x3c, 0x4d},
	UUID:      [16]byte{0xff, 0xff, 0xff, 0xfb, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
}

// kinds are the ways to write an image.
var kinds = map[string]func(t testing.TB, path string, disk *extent.Map){
	monolithicSparse: writeMap,
	streamOptimized:  writeStream,
}

func writeMap(t testing.TB, path string, disk *extent.Map) {
	t.Helper()
	m, err := Map(disk, options)
	if err != nil {
		t.Fatal(err)
	}
	writeRaw(t, path, m)
}

func writeStream(t testing.TB, path string, disk *extent.Map) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var progress int64
	// Nothing but Write.
	if err := Write(t.Context(), struct{ io.Writer }{f}, disk, options, func(n int64) { progress += n }); err != nil {
		t.Fatal(err)
	}
	if progress != disk.Allocated() {
		t.Errorf("progress %d of %d", progress, disk.Allocated())
	}
}

func writeRaw(t testing.TB, path string, m *extent.Map) {
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

func open(t testing.TB, path string) *extent.Map {
	t.Helper()
	f, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), oracle.Tool(t, "qemu-img"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// equal compares two disks where either has data.
func equal(t testing.TB, got, want *extent.Map) {
	t.Helper()
	equalIn(t, got, want, got)
	equalIn(t, got, want, want)
}

// equalIn compares two disks where m has data.
func equalIn(t testing.TB, got, want, m *extent.Map) {
	t.Helper()
	if got.Size() != want.Size() {
		t.Fatalf("disk of %d bytes, want %d", got.Size(), want.Size())
	}
	a, b := make([]byte, 100_003), make([]byte, 100_003)
	for _, e := range m.Extents() {
		for off := e.Offset; off < e.End(); off += int64(len(a)) {
			n := min(int64(len(a)), e.End()-off)
			if _, err := got.ReadAt(a[:n], off); err != nil && err != io.EOF {
				t.Fatalf("read at %d: %v", off, err)
			}
			if _, err := want.ReadAt(b[:n], off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !bytes.Equal(a[:n], b[:n]) {
				t.Fatalf("differs in the %d bytes at %d", n, off)
			}
		}
	}
}

func TestQEMUReadsOurs(t *testing.T) {
	oracle.Tool(t, "qemu-img")
	for name, disk := range disks(t) {
		for kind, write := range kinds {
			t.Run(name+"/"+kind, func(t *testing.T) {
				dir := t.TempDir()
				path, raw := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "disk.raw")
				write(t, path, disk)
				equal(t, open(t, path), disk)
				if disk.Size() == 0 {
					return // qemu-img takes no capacity for no extent
				}
				writeRaw(t, raw, disk)
				if out := qemuImg(t, "check", "-f", "vmdk", path); !strings.Contains(out, "No errors were found") {
					t.Errorf("check: %s", out)
				}
				if out := qemuImg(t, "compare", "-f", "raw", "-F", "vmdk", raw, path); !strings.Contains(out, "Images are identical") {
					t.Errorf("compare: %s", out)
				}
			})
		}
	}
}

func TestOpenQEMU(t *testing.T) {
	oracle.Tool(t, "qemu-img")
	for name, opts := range map[string]string{
		"sparse":       "subformat=monolithicSparse",
		"zero grains":  "subformat=monolithicSparse,zeroed_grain=on",
		"version 6":    "subformat=monolithicSparse,compat6=on",
		"lsilogic":     "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=7,toolsversion=10346",
		"stream":       "subformat=streamOptimized",
		"flat":         "subformat=monolithicFlat",
		"split flat":   "subformat=twoGbMaxExtentFlat",
		"split sparse": "subformat=twoGbMaxExtentSparse",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "disk.raw")
			want := disk(t, 5<<30+1536, piece{7, text(100, 1)}, piece{70 << 10, noise(3<<20, 2)}, piece{100 << 20, text(1<<20, 3)},
				piece{2<<30 - 512, noise(1024, 4)}, piece{5 << 30, noise(1536, 5)})
			writeRaw(t, raw, want)
			qemuImg(t, "convert", "-f", "raw", "-O", "vmdk", "-o", opts, raw, path)
			f, err := extent.File(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := OpenFiles(f, func(name string) (extent.Source, error) { return extent.File(filepath.Join(dir, name)) })
			if err != nil {
				t.Fatal(err)
			}
			equalIn(t, got, want, want)
			if strings.Contains(opts, "Flat") {
				return // all of it is data
			}
			equalIn(t, got, want, got)
			if n := got.Allocated(); n > 8<<20 {
				t.Errorf("%d bytes are not holes", n)
			}
		})
	}
}

// TestLarge reads only the end with qemu-img, which looks at every grain of a
// disk to compare it.
func TestLarge(t *testing.T) {
	const size = 3<<40 + 512
	tail := noise(1<<20+512, 15)
	for kind, write := range kinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path, out := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "tail")
			want := disk(t, size, piece{2<<40 - 10, noise(20, 16)}, piece{size - int64(len(tail)), tail})
			write(t, path, want)
			equal(t, open(t, path), want)
			qemuImg(t, "dd", "-f", "vmdk", "-O", "raw", "bs=1M", fmt.Sprintf("skip=%d", 3<<20-1), "if="+path, "of="+out)
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, tail) {
				t.Errorf("%d bytes (%v), want the %d of the tail", len(got), err, len(tail))
			}
		})
	}
}

// TestOpenExtents checks that grains in a row of an uncompressed image are one
// extent of the file.
func TestOpenExtents(t *testing.T) {
	want := disk(t, 64<<20, piece{5 << 20, noise(8<<20, 1)}, piece{20 << 20, text(65536, 2)})
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	writeMap(t, path, want)
	got := open(t, path).Extents()
	if len(got) != 2 || got[0].Length != 8<<20 {
		t.Fatalf("extents %v, want one of 8 MiB and one of a grain", got)
	}
	if f, ok := got[0].Source.(*extent.FileSource); !ok {
		t.Errorf("source %T, want the file", f)
	}
}

func TestSameBytes(t *testing.T) {
	d := mixed(t, 20<<20, 21)
	var want []byte
	for _, procs := range []int{1, 2, 7} {
		old := runtime.GOMAXPROCS(procs)
		var got bytes.Buffer
		err := Write(t.Context(), &got, d, options, nil)
		runtime.GOMAXPROCS(old)
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got.Bytes()
		} else if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("GOMAXPROCS %d: other bytes", procs)
		}
	}
}

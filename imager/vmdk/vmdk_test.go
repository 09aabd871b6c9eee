package vmdk

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

func disks(t testing.TB) map[string]*extent.Map {
	list := disktest.Disks(t)
	list["no sectors"] = extent.New(0)
	list["three tables"] = disktest.Disk(t, 96<<20, disktest.At(32<<20-1, []byte("on both sides")), disktest.At(80<<20, disktest.Text(2<<20, 9)))
	list["mixed"] = disktest.Mixed(t, 40<<20+512, 11) // in two tables
	return list
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
	disktest.Write(t, path, m)
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

func TestQEMUReadsOurs(t *testing.T) {
	for name, disk := range disks(t) {
		for kind, write := range kinds {
			t.Run(name+"/"+kind, func(t *testing.T) {
				dir := t.TempDir()
				path, raw := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "disk.raw")
				write(t, path, disk)
				disktest.Same(t, disktest.Open(t, path, Open), disk)
				if disk.Size() == 0 {
					return // qemu-img takes no capacity for no extent
				}
				disktest.Write(t, raw, disk)
				disktest.Judge(t, "vmdk", raw, path)
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
			want := disktest.Disk(t, 5<<30+1536, disktest.At(7, disktest.Text(100, 1)), disktest.At(70<<10, disktest.Noise(3<<20, 2)), disktest.At(100<<20, disktest.Text(1<<20, 3)),
				disktest.At(2<<30-512, disktest.Noise(1024, 4)), disktest.At(5<<30, disktest.Noise(1536, 5)))
			disktest.Write(t, raw, want)
			disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", opts, raw, path)
			f, err := extent.File(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := OpenFiles(f, func(name string) (extent.Source, error) { return extent.File(filepath.Join(dir, name)) })
			if err != nil {
				t.Fatal(err)
			}
			disktest.Same(t, got, want)
			if n := got.Allocated(); n > 8<<20 && !strings.Contains(opts, "Flat") {
				t.Errorf("%d bytes are not holes", n)
			}
		})
	}
}

// TestLarge reads only the end with qemu-img, which looks at every grain of a
// disk to compare it.
func TestLarge(t *testing.T) {
	const size = 3<<40 + 512
	tail := disktest.Noise(1<<20+512, 15)
	for kind, write := range kinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path, out := filepath.Join(dir, "disk.vmdk"), filepath.Join(dir, "tail")
			want := disktest.Disk(t, size, disktest.At(2<<40-10, disktest.Noise(20, 16)), disktest.At(size-int64(len(tail)), tail))
			write(t, path, want)
			disktest.Same(t, disktest.Open(t, path, Open), want)
			disktest.Run(t, "qemu-img", "dd", "-f", "vmdk", "-O", "raw", "bs=1M", fmt.Sprintf("skip=%d", 3<<20-1), "if="+path, "of="+out)
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, tail) {
				t.Errorf("%d bytes (%v), want the %d of the tail", len(got), err, len(tail))
			}
		})
	}
}

// TestOpenExtents checks that grains in a row of an uncompressed image are one
// extent of the file.
func TestOpenExtents(t *testing.T) {
	want := disktest.Disk(t, 64<<20, disktest.At(5<<20, disktest.Noise(8<<20, 1)), disktest.At(20<<20, disktest.Text(65536, 2)))
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	writeMap(t, path, want)
	got := disktest.Open(t, path, Open).Extents()
	if len(got) != 2 || got[0].Length != 8<<20 {
		t.Fatalf("extents %v, want one of 8 MiB and one of a grain", got)
	}
	if f, ok := got[0].Source.(*extent.FileSource); !ok {
		t.Errorf("source %T, want the file", f)
	}
}

func TestSameBytes(t *testing.T) {
	d := disktest.Mixed(t, 20<<20, 21)
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

package vhd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

var testOptions = Options{
	ID:   uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
	Time: time.Date(2000, 1, 1, 0, 0, 5, 0, time.UTC),
}

// kinds are the two kinds of image.
var kinds = []struct {
	name string
	o    Options
}{{"dynamic", Options{}}, {"fixed", Options{Fixed: true}}}

func writeImage(t testing.TB, path string, disk *extent.Map, o Options) {
	t.Helper()
	m, err := Map(disk, o)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Write(t, path, m)
}

func TestWrittenImages(t *testing.T) {
	for name, d := range disktest.Disks(t) {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		disktest.Write(t, raw, d)
		for _, fixed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/fixed=%v", name, fixed), func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhd")
				o := testOptions
				o.Fixed = fixed
				writeImage(t, image, d, o)
				disktest.Judge(t, "vpc", raw, image)
				got := disktest.Open(t, image, Open)
				disktest.Same(t, got, d)
				// Of a dynamic image, all that the bitmaps say is not a hole.
				if most := d.Allocated() + int64(len(d.Extents()))*2*sector; !fixed && got.Allocated() > most {
					t.Errorf("%d bytes of the disk are not holes, want at most %d", got.Allocated(), most)
				}
			})
		}
	}
}

// TestImagesOfQEMU reads what qemu-img writes with each of its options.
func TestImagesOfQEMU(t *testing.T) {
	for name, d := range disktest.Disks(t) {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		disktest.Write(t, raw, d)
		for _, options := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size", "subformat=fixed,force_size"} {
			t.Run(name+"/"+options, func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhd")
				disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, raw, image)
				got := disktest.Open(t, image, Open)
				// Without force_size the disk has become larger.
				want := extent.New(got.Size())
				if got.Size() < d.Size() || strings.Contains(options, "force_size") && got.Size() != d.Size() {
					t.Fatalf("disk of %d bytes, want %d", got.Size(), d.Size())
				}
				if err := want.Put(0, d); err != nil {
					t.Fatal(err)
				}
				disktest.Same(t, got, want)
				if got.Allocated() > 1<<30 {
					return // all of a large fixed image
				}
				// And it is the size that QEMU sees.
				again := filepath.Join(t.TempDir(), "again.raw")
				disktest.Write(t, again, got)
				disktest.Judge(t, "vpc", again, image)
			})
		}
	}
}

// TestStreams compares the image as a stream with the one written sparsely.
func TestStreams(t *testing.T) {
	d := disktest.Scattered(t, 9<<20, 17)
	for _, fixed := range []bool{true, false} {
		o := testOptions
		o.Fixed = fixed
		m, err := Map(d, o)
		if err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(t.TempDir(), "disk.vhd")
		disktest.Write(t, image, m)
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

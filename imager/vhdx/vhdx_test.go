package vhdx

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

var testOptions = Options{
	FileWriteID: uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
	DataWriteID: uuid.MustParse("10213243-5465-7687-98a9-bacbdcedfe0f"),
	DiskID:      uuid.MustParse("0c9b6d1a-7d5e-4b6a-8a1b-2f1e3c4d5e6f"),
}

// kinds are the two kinds of image.
var kinds = []struct {
	name string
	o    Options
}{{"dynamic", Options{}}, {"fixed", Options{Fixed: true}}}

func disks(t testing.TB) map[string]*extent.Map {
	list := disktest.Disks(t)
	// On both sides of the entries of the BAT that are for bitmaps.
	list["chunks"] = disktest.Disk(t, 9<<30, disktest.At(0, disktest.Noise(1000, 12)), disktest.At(4<<30-100, disktest.Noise(200, 13)),
		disktest.At(8<<30-1, disktest.Noise(1, 14)), disktest.At(9<<30-70000, disktest.Noise(70000, 15)))
	return list
}

func writeImage(t testing.TB, path string, disk *extent.Map, o Options) {
	t.Helper()
	m, err := Map(disk, o)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Write(t, path, m)
}

func try(t testing.TB, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(t.Context(), oracle.Tool(t, name), args...).CombinedOutput()
	return string(out), err
}

func TestWrittenImages(t *testing.T) {
	for name, d := range disks(t) {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		disktest.Write(t, raw, d)
		for _, o := range []Options{{}, {BlockSize: 32 << 20}, {BlockSize: 256 << 20}, {Fixed: true}, {Fixed: true, BlockSize: 8 << 20}} {
			t.Run(fmt.Sprintf("%s/fixed=%v/%d MiB", name, o.Fixed, max(o.BlockSize, DefaultBlockSize)>>20), func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhdx")
				writeImage(t, image, d, o)
				disktest.Judge(t, "vhdx", raw, image)
				got := disktest.Open(t, image, Open)
				disktest.Same(t, got, d)
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
		disktest.Write(t, raw, d)
		for _, options := range []string{
			"subformat=dynamic", "subformat=fixed", "subformat=dynamic,block_size=1M", "subformat=fixed,block_size=64M,log_size=3M",
			"subformat=dynamic,block_size=256M", "subformat=dynamic,block_state_zero=off",
		} {
			if d.Size() > 4<<30 && strings.Contains(options, "fixed") {
				continue // it would write all of it
			}
			t.Run(name+"/"+options, func(t *testing.T) {
				image := filepath.Join(t.TempDir(), "disk.vhdx")
				disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, image)
				disktest.Same(t, disktest.Open(t, image, Open), d)
			})
		}
	}
}

// TestStreams compares the image as a stream with the one written sparsely.
func TestStreams(t *testing.T) {
	d := disktest.Scattered(t, 9<<20, 17)
	for _, fixed := range []bool{true, false} {
		m, err := Map(d, Options{Fixed: fixed})
		if err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(t.TempDir(), "disk.vhdx")
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

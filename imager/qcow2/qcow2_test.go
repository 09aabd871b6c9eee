package qcow2

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

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

func writeMap(t testing.TB, path string, disk *extent.Map, clusterSize int64) {
	t.Helper()
	m, err := Map(disk, clusterSize)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Write(t, path, m)
}

func writePacked(t testing.TB, path string, disk *extent.Map, o Options) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var progress int64
	if err := Write(t.Context(), f, disk, o, func(n int64) { progress += n }); err != nil {
		t.Fatal(err)
	}
	if progress != disk.Allocated() {
		t.Errorf("progress %d of %d", progress, disk.Allocated())
	}
}

func TestWrittenImages(t *testing.T) {
	disks := disktest.Disks(t)
	disks["no sectors"] = extent.New(0)
	for name, d := range disks {
		raw := filepath.Join(t.TempDir(), "disk.raw")
		disktest.Write(t, raw, d)
		for kind, write := range kinds {
			for _, clusterSize := range clusterSizes {
				if clusterSize != 0 && !slices.Contains([]string{"no sectors", "odd size", "unaligned", "mixed"}, name) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%d", name, kind, clusterSize), func(t *testing.T) {
					image := filepath.Join(t.TempDir(), "disk.qcow2")
					write(t, image, d, clusterSize)
					disktest.Judge(t, "qcow2", raw, image)
					got := disktest.Open(t, image, Open)
					disktest.Same(t, got, d)
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

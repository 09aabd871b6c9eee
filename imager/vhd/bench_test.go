package vhd

import (
	"io"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

func BenchmarkMap(b *testing.B) {
	for _, p := range disktest.Payloads(b) {
		for _, kind := range kinds {
			b.Run(p.Name+"/"+kind.name, func(b *testing.B) {
				disktest.Versus(b, func(b *testing.B, path string) { writeImage(b, path, p.Disk, kind.o) }, "cp", "--sparse=always", p.Raw)
			})
		}
	}
}

func BenchmarkMemory(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { writeImage(b, path, disk, kind.o) })
		})
	}
}

// BenchmarkOpen opens an image with many blocks.
func BenchmarkOpen(b *testing.B) {
	m, err := Map(disktest.Scattered(b, 256<<20, 31), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(m.Size())
	for b.Loop() {
		disk, err := Open(m)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := disk.ReadAt(make([]byte, 1), 0); err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
}

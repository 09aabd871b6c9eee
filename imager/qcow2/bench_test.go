package qcow2

import (
	"fmt"
	"os"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// pack writes a compressed image.
func pack(b *testing.B, path string, disk *extent.Map, c Compression) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := Write(b.Context(), f, disk, Options{Compression: c}, nil); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWrite compares with the same compression of QEMU and, as that is what
// convert -c does when not told otherwise, zstd with its zlib.
func BenchmarkWrite(b *testing.B) {
	for _, p := range disktest.Payloads(b) {
		for _, c := range []struct{ ours, theirs Compression }{{Zlib, Zlib}, {Zstd, Zlib}, {Zstd, Zstd}} {
			b.Run(fmt.Sprintf("%s/%v-%v", p.Name, c.ours, c.theirs), func(b *testing.B) {
				disktest.Versus(b, func(b *testing.B, path string) { pack(b, path, p.Disk, c.ours) },
					"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", fmt.Sprint("compression_type=", c.theirs), p.Raw)
			})
		}
	}
}

// BenchmarkMap writes the image as it is.
func BenchmarkMap(b *testing.B) {
	for _, p := range disktest.Payloads(b) {
		b.Run(p.Name, func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { writeMap(b, path, p.Disk, 0) }, "cp", "--sparse=always", p.Raw)
		})
	}
}

func BenchmarkMemory(b *testing.B) {
	b.Run("none", func(b *testing.B) {
		disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { writeMap(b, path, disk, 0) })
	})
	for _, c := range []Compression{Zlib, Zstd} {
		b.Run(c.String(), func(b *testing.B) {
			disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { pack(b, path, disk, c) })
		})
	}
}

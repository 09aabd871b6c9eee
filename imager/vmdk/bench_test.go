package vmdk

import (
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

func BenchmarkWrite(b *testing.B) {
	for _, p := range disktest.Payloads(b) {
		b.Run(p.Name, func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { writeStream(b, path, p.Disk) },
				"qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", p.Raw)
		})
	}
}

func BenchmarkMap(b *testing.B) {
	for _, p := range disktest.Payloads(b) {
		b.Run(p.Name, func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { writeMap(b, path, p.Disk) }, "cp", "--sparse=always", p.Raw)
		})
	}
}

func BenchmarkMemory(b *testing.B) {
	for _, kind := range []string{monolithicSparse, streamOptimized} {
		b.Run(kind, func(b *testing.B) {
			disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { kinds[kind](b, path, disk) })
		})
	}
}

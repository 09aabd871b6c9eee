package compress

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// writeFile compresses a disk at the default level.
func writeFile(b *testing.B, path string, disk *extent.Map, f Format) {
	b.Helper()
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	if err := Write(b.Context(), file, disk, Options{Format: f}, nil); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWrite compares with the usual programs, and zstd with cp too, on what
// is compressed already: that is to be written at the speed of the disk.
func BenchmarkWrite(b *testing.B) {
	payload := func(name string, disk *extent.Map) disktest.Payload {
		raw := filepath.Join(b.TempDir(), name)
		disktest.Write(b, raw, disk)
		return disktest.Payload{Name: name, Raw: raw, Disk: disktest.Sparse(b, raw)}
	}
	versus := func(p disktest.Payload, f Format, program string, args ...string) {
		b.Run(fmt.Sprintf("%s/%s-%s", p.Name, f, program), func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { writeFile(b, path, p.Disk, f) }, program, args...)
		})
	}
	noise := payload("noise", disktest.Scattered(b, 256<<20, 31))
	versus(noise, Zstd, "cp", "--sparse=always", noise.Raw)
	for _, p := range append(disktest.Payloads(b), noise) {
		versus(p, Zstd, "zstd", "-q", "-f", p.Raw, "-o")
	}
	// The others take minutes for more.
	small := payload("small", disktest.Mixed(b, 16<<20, 32))
	versus(small, Gzip, "sh", "-c", "gzip -c "+small.Raw+` > "$0"`)
	versus(small, XZ, "sh", "-c", "xz -c "+small.Raw+` > "$0"`)
}

func BenchmarkMemory(b *testing.B) {
	for _, f := range []Format{Zstd, Gzip} {
		b.Run(string(f), func(b *testing.B) {
			disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { writeFile(b, path, disk, f) })
		})
	}
}

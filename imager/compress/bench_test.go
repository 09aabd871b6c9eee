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

// BenchmarkWrite compares with the usual programs, and zstd with cp too: what is
// compressed already is to be written at the speed of the disk.
func BenchmarkWrite(b *testing.B) {
	small := filepath.Join(b.TempDir(), "disk.raw")
	disktest.Write(b, small, disktest.Mixed(b, 16<<20, 32))
	versus := func(p disktest.Payload, f Format, program string, args ...string) {
		b.Run(fmt.Sprintf("%s/%s-%s", p.Name, f, program), func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { writeFile(b, path, p.Disk, f) }, program, args...)
		})
	}
	for _, p := range disktest.Payloads(b) {
		versus(p, Zstd, "cp", "--sparse=always", p.Raw)
		versus(p, Zstd, "zstd", "-q", "-f", p.Raw, "-o")
	}
	// The others take minutes for more.
	p := disktest.Payload{Name: "small", Raw: small, Disk: disktest.Sparse(b, small)}
	versus(p, Gzip, "sh", "-c", "gzip -c "+small+` > "$0"`)
	versus(p, XZ, "sh", "-c", "xz -c "+small+` > "$0"`)
}

func BenchmarkMemory(b *testing.B) {
	for _, f := range []Format{Zstd, Gzip} {
		b.Run(string(f), func(b *testing.B) {
			disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) { writeFile(b, path, disk, f) })
		})
	}
}

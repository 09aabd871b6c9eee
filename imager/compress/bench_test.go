package compress

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// BenchmarkWrite compresses a disk of 1 GiB with 256 MiB that are compressed
// already and 16 MiB that are not. It reports the processor time of what cp
// --sparse=always and the usual program take for the same as a multiple.
func BenchmarkWrite(b *testing.B) {
	dir := b.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	const size = 1 << 30
	f, err := os.Create(raw)
	if err != nil {
		b.Fatal(err)
	}
	m := disk(b, size, part{5 * mib, noise(1, 256*mib)}, part{700 * mib, text(16 * mib)})
	if err := extent.WriteSparse(context.Background(), f, m, nil); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	src, err := extent.File(raw)
	if err != nil {
		b.Fatal(err)
	}
	onDisk := extent.New(size)
	for _, x := range m.Extents() {
		s, err := extent.Section(src, x.Offset, x.Length)
		if err != nil {
			b.Fatal(err)
		}
		if err := onDisk.Put(x.Offset, s); err != nil {
			b.Fatal(err)
		}
	}
	cp := cpuOf(b, "cp", "--sparse=always", raw, filepath.Join(dir, "copy"))
	for _, f := range []Format{Zstd, Gzip, XZ} {
		b.Run(string(f), func(b *testing.B) {
			b.SetBytes(onDisk.Allocated())
			start := ownCPU(b)
			for b.Loop() {
				if err := Write(context.Background(), io.Discard, onDisk, Options{Format: f}, nil); err != nil {
					b.Fatal(err)
				}
			}
			each := (ownCPU(b) - start) / time.Duration(b.N)
			b.ReportMetric(each.Seconds(), "cpu-s/op")
			b.ReportMetric(each.Seconds()/cp.Seconds(), "x-cp")
			if f == Zstd { // the others take minutes
				tool := cpuOf(b, "zstd", "-q", "-3", "-f", raw, "-o", filepath.Join(dir, "disk.zst"))
				b.ReportMetric(each.Seconds()/tool.Seconds(), "x-zstd")
			}
		})
	}
}

func cpuOf(b *testing.B, name string, args ...string) time.Duration {
	cmd := exec.Command(oracle.Tool(b, name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

func ownCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package squashfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/dir"
)

// benchTree returns the directory to make images of: the one that the
// environment names, for example an unpacked kernel package, or a made-up one,
// which is quick but whose sizes say nothing about real files.
func benchTree(b *testing.B) string {
	if name := os.Getenv("KILN_BENCH_TREE"); name != "" {
		return name
	}
	root := b.TempDir()
	for i := range 400 {
		name := filepath.Join(root, fmt.Sprintf("drivers/class%d/module%d.ko", i/20, i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, text(2000+i*i, uint64(i/4)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return root
}

// BenchmarkWrite measures Write alone.
func BenchmarkWrite(b *testing.B) {
	tr, err := dir.Read(b.Context(), benchTree(b), dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	var bytes int64
	for _, ino := range tr.All() {
		bytes += ino.Size()
	}
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression} {
		b.Run(level.String(), func(b *testing.B) {
			b.SetBytes(bytes)
			for b.Loop() {
				n, err := Write(b.Context(), discard{}, tr, Options{Level: level})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(n), "image-bytes")
			}
		})
	}
}

// BenchmarkBesideMksquashfs makes an image of the same directory with
// mksquashfs at level 15 with 128 KiB blocks, and with Write, and reports size
// and processor time of both.
func BenchmarkBesideMksquashfs(b *testing.B) {
	mksquashfs := oracle.Tool(b, "mksquashfs")
	root := benchTree(b)
	image := filepath.Join(b.TempDir(), "image.sqsh")
	var theirs, ours, theirSize, ourSize float64
	for b.Loop() {
		cmd := exec.Command(mksquashfs, root, image, "-noappend", "-no-progress", "-quiet",
			"-comp", "zstd", "-Xcompression-level", "15", "-b", "128K")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("mksquashfs: %v: %s", err, out)
		}
		theirs += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
		fi, err := os.Stat(image)
		if err != nil {
			b.Fatal(err)
		}
		theirSize += float64(fi.Size())

		before := cpu(b)
		tr, err := dir.Read(b.Context(), root, dir.Options{})
		if err != nil {
			b.Fatal(err)
		}
		f, err := os.Create(image)
		if err != nil {
			b.Fatal(err)
		}
		n, err := Write(b.Context(), f, tr, Options{})
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
		ours += (cpu(b) - before).Seconds()
		ourSize += float64(n)
	}
	n := float64(b.N)
	b.ReportMetric(theirSize/n, "mksquashfs-bytes")
	b.ReportMetric(ourSize/n, "bytes")
	b.ReportMetric(theirs/n, "mksquashfs-cpu-s")
	b.ReportMetric(ours/n, "cpu-s")
	b.ReportMetric(ours/theirs, "cpu-ratio")
	b.ReportMetric(ourSize/theirSize, "size-ratio")
	b.ReportMetric(maxRSS(b), "max-rss-MB")
}

// maxRSS returns the most memory this process ever had resident, in MB.
func maxRSS(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Maxrss) * 1024 / 1e6
}

// cpu returns the processor time this process has taken.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package vhdx

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// cpu is the processor time, in seconds, that this process has used, or its
// children that have ended.
func cpu(b *testing.B, who int) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// payload is the disk in the file KILN_IMAGE, or pieces of noise. As the
// composer has it: holes are holes.
func payload(b *testing.B) (raw string, disk *extent.Map) {
	raw = os.Getenv("KILN_IMAGE")
	if raw == "" {
		raw = filepath.Join(b.TempDir(), "disk.raw")
		write(b, raw, scattered(b, 256<<20, 31))
	}
	src, err := extent.File(raw)
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(raw)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	disk = extent.New(src.Size())
	for off := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return raw, disk
		}
		if err != nil {
			b.Fatal(err)
		}
		if off, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			b.Fatal(err)
		}
		section, err := extent.Section(src, start, off-start)
		if err == nil {
			err = disk.Put(start, section)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMap compares writing images, in processor and wall clock time, with
// cp --sparse=always of the raw disk.
func BenchmarkMap(b *testing.B) {
	raw, disk := payload(b)
	for name, fixed := range map[string]bool{"dynamic": false, "fixed": true} {
		b.Run(name, func(b *testing.B) {
			out := filepath.Join(b.TempDir(), "out")
			var ours, theirs, oursWall, theirsWall float64
			b.SetBytes(disk.Allocated())
			for b.Loop() {
				before, start := cpu(b, syscall.RUSAGE_SELF), time.Now()
				writeImage(b, out, disk, Options{Fixed: fixed})
				ours += cpu(b, syscall.RUSAGE_SELF) - before
				oursWall += time.Since(start).Seconds()
				b.StopTimer()
				before, start = cpu(b, syscall.RUSAGE_CHILDREN), time.Now()
				if msg, err := exec.CommandContext(b.Context(), oracle.Tool(b, "cp"), "--sparse=always", raw, out+".peer").CombinedOutput(); err != nil {
					b.Fatalf("cp: %v\n%s", err, msg)
				}
				theirs += cpu(b, syscall.RUSAGE_CHILDREN) - before
				theirsWall += time.Since(start).Seconds()
				os.Remove(out)
				os.Remove(out + ".peer")
				b.StartTimer()
			}
			b.ReportMetric(ours/theirs, "cpu/cp")
			b.ReportMetric(oursWall/theirsWall, "wall/cp")
		})
	}
}

// BenchmarkOpen opens an image with many blocks.
func BenchmarkOpen(b *testing.B) {
	m, err := Map(scattered(b, 256<<20, 31), Options{})
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

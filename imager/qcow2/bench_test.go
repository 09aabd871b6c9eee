package qcow2

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

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

// peer runs a program once and returns its processor time and the size of the
// file it writes.
func peer(b *testing.B, out, name string, args ...string) (float64, float64) {
	before := cpu(b, syscall.RUSAGE_CHILDREN)
	if msg, err := exec.CommandContext(b.Context(), oracle.Tool(b, name), append(args, out)...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, msg)
	}
	return cpu(b, syscall.RUSAGE_CHILDREN) - before, fileSize(b, out)
}

func fileSize(b *testing.B, path string) float64 {
	fi, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return float64(fi.Size())
}

// payload is the disk in the file KILN_IMAGE, or one of text and noise.
func payload(b *testing.B) (raw string, disk *extent.Map) {
	raw = os.Getenv("KILN_IMAGE")
	if raw == "" {
		raw = filepath.Join(b.TempDir(), "disk.raw")
		writeRaw(b, raw, mixed(b, 256<<20, 31))
	}
	f, err := extent.File(raw)
	if err != nil {
		b.Fatal(err)
	}
	// As the composer has it: holes are holes.
	disk = extent.New(f.Size())
	const step = 64 << 10
	p := make([]byte, step)
	start := int64(-1)
	for off := int64(0); off <= f.Size(); off += step {
		data := false
		if off < f.Size() {
			n, err := f.ReadAt(p, off)
			if n == 0 {
				b.Fatal(err)
			}
			data = !zero(p[:n])
		}
		switch {
		case data && start < 0:
			start = off
		case !data && start >= 0:
			section, err := extent.Section(f, start, min(off, f.Size())-start)
			if err == nil {
				err = disk.Put(start, section)
			}
			if err != nil {
				b.Fatal(err)
			}
			start = -1
		}
	}
	return raw, disk
}

func report(b *testing.B, out string, ours, theirs, theirSize float64) {
	b.ReportMetric(ours/float64(b.N)/theirs, "cpu/peer")
	b.ReportMetric(fileSize(b, out)/theirSize, "size/peer")
	b.ReportMetric(theirs, "peer-cpu-s")
}

func BenchmarkWrite(b *testing.B) {
	raw, disk := payload(b)
	for _, c := range []Compression{Zlib, Zstd} {
		b.Run(c.String(), func(b *testing.B) {
			out := filepath.Join(b.TempDir(), "out")
			theirs, size := peer(b, out+".peer", "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", fmt.Sprint("compression_type=", c), raw)
			before := cpu(b, syscall.RUSAGE_SELF)
			b.SetBytes(disk.Allocated())
			for b.Loop() {
				f := create(b, out)
				if err := Write(b.Context(), f, disk, Options{Compression: c}, nil); err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
			report(b, out, cpu(b, syscall.RUSAGE_SELF)-before, theirs, size)
		})
	}
}

// BenchmarkMap writes the image as it is, and for comparison the raw disk.
func BenchmarkMap(b *testing.B) {
	raw, disk := payload(b)
	for _, bb := range []struct {
		name  string
		write func(path string)
	}{
		{"qcow2", func(path string) { writeMap(b, path, disk, 0) }},
		{"raw", func(path string) { writeRaw(b, path, disk) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			out := filepath.Join(b.TempDir(), "out")
			theirs, size := peer(b, out+".peer", "cp", "--sparse=always", raw)
			before := cpu(b, syscall.RUSAGE_SELF)
			b.SetBytes(disk.Allocated())
			for b.Loop() {
				os.Remove(out)
				bb.write(out)
			}
			report(b, out, cpu(b, syscall.RUSAGE_SELF)-before, theirs, size)
		})
	}
}

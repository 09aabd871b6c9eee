package vmdk

import (
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
	p := make([]byte, grainSize)
	for off := int64(0); off < f.Size(); off += grainSize {
		n, err := f.ReadAt(p, off)
		if n == 0 {
			b.Fatal(err)
		}
		if zero(p[:n]) {
			continue
		}
		section, err := extent.Section(f, off, int64(n))
		if err == nil {
			err = disk.Put(off, section)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return raw, disk
}

// versus runs ours, and once the peer, which writes its last argument.
func versus(b *testing.B, disk *extent.Map, write func(testing.TB, string, *extent.Map), peer string, args ...string) {
	dir := b.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	start := cpu(b, syscall.RUSAGE_CHILDREN)
	if msg, err := exec.CommandContext(b.Context(), oracle.Tool(b, peer), append(args, theirs)...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", peer, err, msg)
	}
	their := cpu(b, syscall.RUSAGE_CHILDREN) - start
	b.SetBytes(disk.Allocated())
	start = cpu(b, syscall.RUSAGE_SELF)
	for b.Loop() {
		os.Remove(ours)
		write(b, ours, disk)
	}
	b.ReportMetric((cpu(b, syscall.RUSAGE_SELF)-start)/float64(b.N)/their, "cpu/peer")
	b.ReportMetric(fileSize(b, ours)/fileSize(b, theirs), "size/peer")
	b.ReportMetric(their, "peer-cpu-s")
}

func BenchmarkWrite(b *testing.B) {
	raw, disk := payload(b)
	versus(b, disk, writeStream, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw)
}

func BenchmarkMap(b *testing.B) {
	raw, disk := payload(b)
	versus(b, disk, writeMap, "cp", "--sparse=always", raw)
}

package disktest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// Payload is a disk to write in a benchmark, and the same as a raw file.
type Payload struct {
	Name string
	Raw  string
	Disk *extent.Map
}

// Payloads returns the disks to measure with: the one that 'make bench' names in
// KILN_IMAGE, if there is one, of which most is compressed already; 256 MiB of
// text, noise and holes; and 128 MiB of machine code.
func Payloads(b *testing.B) []Payload {
	b.Helper()
	var list []Payload
	if raw := os.Getenv("KILN_IMAGE"); raw != "" {
		list = append(list, Payload{"image", raw, Sparse(b, raw)})
	}
	mixed := pieces(b, 256<<20, 31, 1<<20, func(kind, n int, seed uint64) []byte {
		switch kind {
		case 0:
			return Text(n, seed)
		case 1:
			return Noise(n, seed)
		}
		return nil
	})
	// The test itself, again and again, is code like any other.
	path, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	self, err := extent.File(path)
	if err != nil {
		b.Fatal(err)
	}
	code := extent.New(128 << 20)
	for off := int64(0); off+self.Size() <= code.Size(); off += extent.Align(self.Size(), 1<<20) {
		if err := code.Put(off, self); err != nil {
			b.Fatal(err)
		}
	}
	for _, p := range []Payload{{Name: "mixed", Disk: mixed}, {Name: "code", Disk: code}} {
		p.Raw = filepath.Join(b.TempDir(), p.Name)
		Write(b, p.Raw, p.Disk)
		p.Disk = Sparse(b, p.Raw)
		list = append(list, p)
	}
	return list
}

// Versus measures write, which writes the file at path, side by side with a
// program, which writes its last argument. It reports, as multiples of what the
// program takes, the processor time (cpu-ratio), the time (wall-ratio), the size
// of the file (size-ratio) and the space that it takes on the disk (disk-ratio).
//
// What takes less than a second or two is measured a few times, of which the
// best counts.
func Versus(b *testing.B, write func(b *testing.B, path string), program string, args ...string) {
	b.Helper()
	oracle.Tool(b, program)
	dir := b.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	var our, their usage
	for b.Loop() {
		for range 5 {
			remove(b, ours)
			before, start := ownCPU(b), time.Now()
			write(b, ours)
			our.add(ownCPU(b)-before, time.Since(start))

			b.StopTimer()
			remove(b, theirs)
			cmd := exec.CommandContext(b.Context(), oracle.Tool(b, program), append(args, theirs)...)
			start = time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%s: %v\n%s", program, err, out)
			}
			their.add(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), time.Since(start))
			b.StartTimer()
			if our.total+their.total > 4*time.Second {
				break
			}
		}
	}
	ourSize, ourSpace := sizes(b, ours)
	theirSize, theirSpace := sizes(b, theirs)
	b.ReportMetric(0, "ns/op") // of some rounds: it says nothing
	b.ReportMetric(our.cpu.Seconds()/their.cpu.Seconds(), "cpu-ratio")
	b.ReportMetric(our.wall.Seconds()/their.wall.Seconds(), "wall-ratio")
	b.ReportMetric(ourSize/theirSize, "size-ratio")
	b.ReportMetric(ourSpace/theirSpace, "disk-ratio")
	b.ReportMetric(their.cpu.Seconds(), program+"-cpu-s")
}

// usage is the least that something took.
type usage struct{ cpu, wall, total time.Duration }

func (u *usage) add(cpu, wall time.Duration) {
	if u.total == 0 {
		u.cpu, u.wall = cpu, wall
	}
	u.cpu, u.wall, u.total = min(u.cpu, cpu), min(u.wall, wall), u.total+wall
}

// ownCPU is the processor time that this process has used.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// remove makes both sides write to a new file.
func remove(b *testing.B, path string) {
	b.Helper()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
}

// sizes returns the size of a file and the space that it takes, in bytes.
func sizes(b *testing.B, path string) (size, space float64) {
	b.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		b.Fatal(err)
	}
	return float64(st.Size), float64(st.Blocks * 512)
}

// maxMemory is the most that writing an image may take, in bytes.
const maxMemory = 200e6

// Memory measures the most memory that the process takes, in MB (peak-MB), while
// write writes an image of a disk of 8 GiB. It fails if that is more than 200.
func Memory(b *testing.B, write func(b *testing.B, path string, disk *extent.Map)) {
	b.Helper()
	disk := extent.New(8 << 30)
	src := extent.Bytes(append(Text(24<<10, 1), Noise(8<<10, 2)...))
	// A piece in each MiB, so that every table of an image has entries.
	for off := int64(0); off < disk.Size(); off += 1 << 20 {
		if err := disk.Put(off, src); err != nil {
			b.Fatal(err)
		}
	}
	path := filepath.Join(b.TempDir(), "out")
	var peak int64
	for b.Loop() {
		remove(b, path)
		debug.FreeOSMemory()
		// Forget the peak that there was: proc(5), clear_refs.
		if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
			b.Fatal(err)
		}
		write(b, path, disk)
		peak = max(peak, peakMemory(b))
	}
	b.ReportMetric(float64(peak)/1e6, "peak-MB")
	if peak > maxMemory {
		b.Errorf("writing a disk of 8 GiB takes %d bytes of memory, want at most %d", peak, int64(maxMemory))
	}
}

// peakMemory returns the highest resident set size, in bytes, of this process.
func peakMemory(b *testing.B) int64 {
	b.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(strings.TrimSpace(s.Text()), "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	b.Fatal("no VmHWM in /proc/self/status")
	return 0
}

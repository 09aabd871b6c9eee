//go:build linux

package test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
)

// What composing may cost: wall time as a multiple of copying the image, seconds,
// and bytes of memory.
const (
	maxCopies = 3.0
	maxWarm   = 1500 * time.Millisecond
	maxCold   = 3 * time.Second
	maxMemory = 200 << 20
)

// measure returns how long a command takes, and its peak resident set in bytes.
func measure(b *testing.B, f func() *os.ProcessState) (time.Duration, int64) {
	start := time.Now()
	state := f()
	return time.Since(start), state.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// BenchmarkCompose composes metal with an extension: warm, with the extension's
// layer in the cache; cold, with an empty cache; and copies the image with cp,
// in turns, so that what else the machine does falls on all of them. Of each the
// fastest counts.
func BenchmarkCompose(b *testing.B) {
	dir := inputs(b)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		b.Fatal(err)
	}
	image, cp := filepath.Join(work, "metal.raw"), oracle.Tool(b, "cp")
	kiln := func() *os.ProcessState {
		cmd := compose(dir, work)
		output(b, cmd)
		return cmd.ProcessState
	}
	copied := filepath.Join(work, "copy.raw")
	copyImage := func() *os.ProcessState {
		cmd := compose(dir, work)
		cmd.Path, cmd.Args = cp, []string{cp, "--sparse=always", "--reflink=never", image, copied}
		output(b, cmd)
		return cmd.ProcessState
	}
	remove := func(path string) {
		if err := os.RemoveAll(path); err != nil {
			b.Fatal(err)
		}
	}
	best := func(d *time.Duration, got time.Duration) {
		if *d == 0 || got < *d {
			*d = got
		}
	}
	var warm, cold, copying time.Duration
	var memory int64
	for b.Loop() {
		for range 3 {
			remove(filepath.Join(work, "cache"))
			remove(image)
			took, rss := measure(b, kiln)
			best(&cold, took)
			memory = max(memory, rss)
			remove(image)
			took, rss = measure(b, kiln)
			best(&warm, took)
			memory = max(memory, rss)
			remove(copied)
			took, _ = measure(b, copyImage)
			best(&copying, took)
		}
	}
	ratio := warm.Seconds() / copying.Seconds()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(warm.Seconds(), "warm-s")
	b.ReportMetric(cold.Seconds(), "cold-s")
	b.ReportMetric(copying.Seconds(), "cp-s")
	b.ReportMetric(ratio, "warm/cp")
	b.ReportMetric(float64(memory)/(1<<20), "MiB-RSS")
	if ratio > maxCopies || warm > maxWarm {
		b.Errorf("warm: %v, %.1f times as long as cp; want at most %v and %.0f times", warm, ratio, maxWarm, maxCopies)
	}
	if cold > maxCold {
		b.Errorf("cold: %v, want at most %v", cold, maxCold)
	}
	if memory > maxMemory {
		b.Errorf("%d MiB resident, want at most %d", memory>>20, maxMemory>>20)
	}
}

package depmod_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
)

// cpuTime returns the CPU time this process has used, the collector's included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDepmod reads, parses and indexes all modules of a kernel and has
// depmod do the same on the same files: cpu-s and kmod-cpu-s are the seconds of
// CPU each takes. "xz" are the files of the package, "plain" the same
// decompressed, "facts" what is left if the modules' facts are known.
func BenchmarkDepmod(b *testing.B) {
	for _, dir := range moduleDirs(b) {
		b.Run(filepath.Base(dir), func(b *testing.B) {
			b.Run("xz", func(b *testing.B) { benchmark(b, dir) })
			b.Run("plain", func(b *testing.B) { benchmark(b, decompressed(b, dir)) })
			b.Run("facts", func(b *testing.B) {
				in := input(b, dir)
				in.Modules = parseAll(b, dir)
				for b.Loop() {
					if _, err := depmod.Index(in); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("json", func(b *testing.B) {
				text, err := json.Marshal(parseAll(b, dir))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					var mods []depmod.Module
					if err := json.Unmarshal(text, &mods); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func benchmark(b *testing.B, dir string) {
	runtime.GC()
	var own, kmod time.Duration
	for b.Loop() {
		start := cpuTime(b)
		in := input(b, dir)
		in.Modules = parseAll(b, dir)
		if _, err := depmod.Index(in); err != nil {
			b.Fatal(err)
		}
		own += cpuTime(b) - start

		b.StopTimer()
		_, _, took := reference(b, dir)
		kmod += took
		b.StartTimer()
	}
	b.ReportMetric(own.Seconds()/float64(b.N), "cpu-s")
	b.ReportMetric(kmod.Seconds()/float64(b.N), "kmod-cpu-s")
	b.ReportMetric(own.Seconds()/kmod.Seconds(), "ratio")
}

// decompressed returns a copy of a module directory without compression.
func decompressed(b *testing.B, dir string) string {
	to := filepath.Join(b.TempDir(), filepath.Base(dir))
	for _, p := range append(modulePaths(b, dir), "modules.order", "modules.builtin", "modules.builtin.modinfo") {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			b.Fatal(err)
		}
		if data, err = module.Decompress(p, data, module.MaxSize); err != nil {
			b.Fatal(err)
		}
		out := filepath.Join(to, module.TrimCompression(p))
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(out, data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return to
}

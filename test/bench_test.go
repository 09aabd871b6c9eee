//go:build linux

package test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// What composing may cost with a base of baseSize: wall time as a multiple of
// copying the image, and in seconds; bytes of memory.
const (
	baseSize  = 80 << 20
	maxCopies = 3.0
	maxWarm   = 1500 * time.Millisecond
	maxCold   = 3 * time.Second
	maxMemory = 200 << 20
	maxModule = 2 * time.Second // from built modules to an image with them
)

// enlarge makes the root file system of a base that large: nothing looks into it
// before a node does.
func enlarge(b *testing.B, path string, size int) {
	old, err := base.Open(path, "amd64")
	if err != nil {
		b.Fatal(err)
	}
	parts := map[string]extent.Source{}
	for _, name := range []string{base.Vmlinuz, base.Init, base.RootFS, base.KernelConfig, base.SystemMap, base.Symvers, base.Certificates, base.ModuleFacts, base.ModulesOrder,
		base.ModulesBuiltin, base.BuiltinModinfo, base.Files, base.Stub, base.Loader, base.GrubBoot, base.GrubCore} {
		p, err := old.Part(name)
		if errors.Is(err, base.ErrPart) {
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		parts[name] = p.Content
	}
	root := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(root) // does not fail
	parts[base.RootFS] = extent.Bytes(root)
	if err := base.Write(b.Context(), path, old.Config, parts); err != nil {
		b.Fatal(err)
	}
}

// cost is the least that was measured of each: with the extension's layer in the
// cache, with an empty cache, and of copying the image with cp.
type cost struct {
	warm, cold, copy time.Duration
	memory           int64 // the most
}

// measure composes and copies in turns, so that what else the machine does falls
// on all of them.
func measure(b *testing.B, dir string) cost {
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		b.Fatal(err)
	}
	image, copied, cache := filepath.Join(work, "metal.raw"), filepath.Join(work, "copy.raw"), filepath.Join(work, "cache")
	timed := func(least *time.Duration, cmd *exec.Cmd, without ...string) (memory int64) {
		for _, path := range without {
			if err := os.RemoveAll(path); err != nil {
				b.Fatal(err)
			}
		}
		unix.Sync() // what earlier commands have left to write is not this one's
		start := time.Now()
		output(b, cmd)
		if took := time.Since(start); *least == 0 || took < *least {
			*least = took
		}
		return cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	}
	cp := oracle.Tool(b, "cp")
	var c cost
	for range 5 {
		c.memory = max(c.memory, timed(&c.cold, compose(dir, work, "--no-sidecars"), cache, image))
		c.memory = max(c.memory, timed(&c.warm, compose(dir, work, "--no-sidecars"), image))
		timed(&c.copy, exec.Command(cp, "--sparse=always", "--reflink=never", image, copied), copied)
	}
	return c
}

// BenchmarkCompose composes metal with an extension, from the base as it is and
// from one as large as with container programs, which the limits are for.
func BenchmarkCompose(b *testing.B) {
	for _, large := range []bool{false, true} {
		name := "small base"
		if large {
			name = "base of 80 MiB"
		}
		b.Run(name, func(b *testing.B) {
			dir := inputs(b)
			if large {
				enlarge(b, filepath.Join(dir, "base"), baseSize)
			}
			var c cost
			for b.Loop() {
				c = measure(b, dir)
			}
			copies := c.warm.Seconds() / c.copy.Seconds()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(c.warm.Seconds(), "warm-s")
			b.ReportMetric(c.cold.Seconds(), "cold-s")
			b.ReportMetric(c.copy.Seconds(), "cp-s")
			b.ReportMetric(copies, "warm/cp")
			b.ReportMetric(float64(c.memory)/(1<<20), "MiB-RSS")
			if !large {
				return
			}
			if copies > maxCopies || c.warm > maxWarm {
				b.Errorf("warm: %v, %.1f times as long as cp; want at most %v and %.0f times", c.warm, copies, maxWarm, maxCopies)
			}
			if c.cold > maxCold {
				b.Errorf("cold: %v, want at most %v", c.cold, maxCold)
			}
			if c.memory > maxMemory {
				b.Errorf("%d MiB resident, want at most %d", c.memory>>20, maxMemory>>20)
			}
		})
	}
}

// BenchmarkModule makes an extension of built modules, then an image with it, as
// someone does who works on a driver.
func BenchmarkModule(b *testing.B) {
	kiln, base, dir := oracle.Artifact(b, "KILN_BIN"), oracle.Artifact(b, "KILN_BASE"), b.TempDir()
	if os.Getenv("KILN_TEST_KERNELS") == "" {
		b.Skip("SKIPPED: KILN_TEST_KERNELS is not set")
	}
	var modules []string
	err := filepath.WalkDir(filepath.SplitList(os.Getenv("KILN_TEST_KERNELS"))[0], func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(d.Name(), ".ko.xz"); err == nil && ok && slices.Contains([]string{"btrfs", "nfs", "ntfs3"}, name) {
			plain := filepath.Join(dir, name+".ko")
			out, err := exec.Command(oracle.Tool(b, "xz"), "-dc", p).Output()
			if err == nil {
				err = os.WriteFile(plain, out, 0o644)
			}
			modules = append(modules, "--ko", plain)
			return err
		}
		return err
	})
	if err != nil || len(modules) != 6 {
		b.Fatalf("modules %v, %v", modules, err)
	}
	extension, image := filepath.Join(dir, "extension"), filepath.Join(dir, "metal.raw")
	build := append([]string{"extension", "build", "--progress", "none", "--name", "three", "--version", "1", "--base", base, "--output", extension}, modules...)
	least := time.Hour
	for b.Loop() {
		began := time.Now()
		run(b, kiln, build...)
		run(b, kiln, "build", "metal", "--progress", "none", "--base", base, "--extension", extension, "--cache", filepath.Join(dir, "cache"), "--output", image)
		least = min(least, time.Since(began))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(least.Seconds(), "s")
	if least > maxModule {
		b.Errorf("%v from modules to an image, want at most %v", least, maxModule)
	}
}

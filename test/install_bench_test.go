//go:build linux

package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// pack writes what is not zeros in an image to a file.
func pack(b *testing.B, image, file string) (size int64) {
	in, err := os.Open(image)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	block, zero := make([]byte, 4096), make([]byte, 4096)
	for {
		n, err := io.ReadFull(in, block)
		if err == io.EOF {
			return size
		}
		if err != nil {
			b.Fatal(err)
		}
		if bytes.Equal(block[:n], zero[:n]) {
			continue
		}
		if _, err := out.Write(block[:n]); err != nil {
			b.Fatal(err)
		}
		size += int64(n)
	}
}

// BenchmarkInstall installs metal with an extension on a loop device, in turns with
// dd writing as many bytes as are not zeros, and reading them back. What composing
// takes, which no device makes faster, is measured by a plan. The device takes its
// part of the processor's time: install.BenchmarkWrite has one that does not.
func BenchmarkInstall(b *testing.B) {
	oracle.Root(b)
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
			output(b, compose(dir, dir, "--no-sidecars"))
			packed := filepath.Join(dir, "packed")
			size := pack(b, filepath.Join(dir, "metal.raw"), packed)
			dd := oracle.Tool(b, "dd")
			install := func(disk string, more ...string) *exec.Cmd {
				return exec.Command(filepath.Join(dir, "kiln"), append([]string{"install", "--base", filepath.Join(dir, "base"), "--extension", filepath.Join(dir, "extension"),
					"--progress", "none", "--cache", filepath.Join(dir, "cache"), "--disk", disk, "--force"}, more...)...)
			}
			var write, readBack, full, none, plan time.Duration
			for b.Loop() {
				disk := newLoop(b, 3<<30)
				timed := func(least *time.Duration, cmd *exec.Cmd) {
					unix.Sync()
					start := time.Now()
					output(b, cmd)
					if took := time.Since(start); *least == 0 || took < *least {
						*least = took
					}
				}
				for range 5 {
					timed(&write, exec.Command(dd, "if="+packed, "of="+disk.device, "bs=4M", "conv=notrunc,fsync"))
					timed(&readBack, exec.Command(dd, "if="+disk.device, "of=/dev/null", "bs=4M", "iflag=direct,count_bytes", fmt.Sprint("count=", size)))
					timed(&full, install(disk.device))
					timed(&none, install(disk.device, "--verify", "none"))
					timed(&plan, install(disk.device, "--plan"))
				}
			}
			b.ReportMetric(0, "ns/op")
			for unit, took := range map[string]time.Duration{"dd-s": write, "dd-back-s": readBack, "plan-s": plan, "full-s": full, "none-s": none} {
				b.ReportMetric(took.Seconds(), unit)
			}
			b.ReportMetric(full.Seconds()/write.Seconds(), "full/dd")
			b.ReportMetric((full-plan).Seconds()/(write+readBack).Seconds(), "full-plan/dd+back")
			b.ReportMetric((none-plan).Seconds()/write.Seconds(), "none-plan/dd")
		})
	}
}

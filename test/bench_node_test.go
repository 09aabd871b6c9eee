//go:build linux

package test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// What the machines of BenchmarkNode run: a container that says a word, and an init
// that does nothing else.
const (
	greeting = "guest: hello"
	sayer    = `package main

import (
	"fmt"
	"time"
)

func main() {
	fmt.Println("` + greeting + `")
	time.Sleep(time.Hour)
}
`
	sayerService = `---
apiVersion: v1alpha1
kind: Service
name: sayer
image: example.org/greet:1
pull: never
`
)

// BenchmarkNode measures, from when a machine is turned on, until a container host
// is ready, its API answers, and a container from the image cache has printed its
// line; and, in the same machine, until Debian's kernel has started an init that
// does nothing. The quotients depend less on the computer than the seconds.
func BenchmarkNode(b *testing.B) {
	kiln, from, dir := oracle.Artifact(b, "KILN_BIN"), oracle.Artifact(b, "KILN_BASE_CONTAINERS"), b.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module sayer\n\ngo 1.24\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte(sayer), 0o600)); err != nil {
		b.Fatal(err)
	}
	program, err := rootfs.BuildProgram(b.Context(), rootfs.Sources{Arch: "amd64", GoDir: dir}, rootfs.Program{Package: "."})
	if err != nil {
		b.Fatal(err)
	}
	archive, disk := filepath.Join(dir, "greet.tar"), filepath.Join(dir, "metal.raw")
	if err := os.WriteFile(archive, imageArchive(b, program), 0o600); err != nil {
		b.Fatal(err)
	}
	run(b, kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", filepath.Join(dir, "config"))
	machine, err := os.ReadFile(filepath.Join(dir, "config/machine.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "machine.yaml"), append(machine, sayerService...), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	run(b, kiln, "build", "metal", "--base", from, "--config", filepath.Join(dir, "machine.yaml"), "--image-cache", archive, "--size", "3GiB", "--no-sidecars", "--output", disk)
	kernel, initrd := reference(b, from, program)
	for _, firmware := range []vm.Firmware{vm.BIOS, vm.UEFI} {
		b.Run(string(firmware), func(b *testing.B) {
			for b.Loop() {
				plain := untilLine(b, vm.Config{Firmware: firmware, Kernel: kernel, Initrd: initrd, Cmdline: "console=ttyS0 quiet"})
				ready, api, container := untilContainer(b, kiln, disk, filepath.Join(dir, "config/client.yaml"), firmware)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(plain.Seconds(), "plain-s")
				b.ReportMetric(ready.Seconds(), "ready-s")
				b.ReportMetric(api.Seconds(), "api-s")
				b.ReportMetric(container.Seconds(), "container-s")
				b.ReportMetric(ready.Seconds()/plain.Seconds(), "ready/plain")
				b.ReportMetric(api.Seconds()/plain.Seconds(), "api/plain")
				b.ReportMetric(container.Seconds()/plain.Seconds(), "container/plain")
			}
		})
	}
}

// reference returns the files of the base's kernel, and of an initramfs with the
// program and nothing else.
func reference(b *testing.B, from string, program []byte) (kernel, initrd string) {
	from64, err := base.Open(from, "amd64")
	if err != nil {
		b.Fatal(err)
	}
	vmlinuz, err := from64.Part(base.Vmlinuz)
	if err != nil {
		b.Fatal(err)
	}
	root := tree.New()
	if err := errors.Join(root.MkdirAll("dev", 0o755),
		root.Add("dev/console", &tree.Inode{Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Major: 5, Minor: 1}),
		root.Add("init", &tree.Inode{Mode: 0o755, Content: extent.Bytes(program)})); err != nil {
		b.Fatal(err)
	}
	archive, err := cpio.Build(root)
	if err != nil {
		b.Fatal(err)
	}
	return save(b, "vmlinuz", contents(b, vmlinuz.Content)), save(b, "initrd", contents(b, archive))
}

// turnOn starts a machine, which ends with the benchmark.
func turnOn(b *testing.B, c vm.Config) (context.Context, *vm.Machine) {
	ctx, cancel := context.WithTimeout(b.Context(), 2*patience)
	m, err := vm.Start(ctx, c, nil)
	if err != nil {
		cancel()
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Stop(); cancel() })
	return ctx, m
}

// untilLine returns how long a machine takes to print the greeting.
func untilLine(b *testing.B, c vm.Config) time.Duration {
	begin := time.Now()
	ctx, m := turnOn(b, c)
	if _, err := m.Wait(ctx, regexp.MustCompile(greeting)); err != nil {
		b.Fatal(err)
	}
	took := time.Since(begin)
	m.Stop()
	return took
}

// untilContainer returns how long a machine takes to be ready, to answer through its
// API, and to run the container.
func untilContainer(b *testing.B, kiln, disk, contexts string, firmware vm.Firmware) (ready, api, container time.Duration) {
	port := freePort(b)
	admin := remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", port), contexts: contexts}
	begin := time.Now()
	ctx, m := turnOn(b, vm.Config{Image: disk, Firmware: firmware, Snapshot: true, Forward: map[int]int{port: 50000}})
	answered := make(chan time.Duration, 1)
	go func() {
		if shakesHands(ctx, admin.endpoint) && admin.command("version").Run() == nil {
			answered <- time.Since(begin)
		}
		close(answered)
	}()
	if _, err := m.Wait(ctx, readyLine); err != nil {
		b.Fatal(err)
	}
	ready = time.Since(begin)
	api, ok := <-answered
	if !ok {
		b.Fatalf("the API does not answer:\n%s", m.Console())
	}
	for {
		out, err := admin.command("logs", "sayer").CombinedOutput()
		if strings.Contains(string(out), greeting) {
			break
		}
		if ctx.Err() != nil {
			b.Fatalf("the container prints nothing: %v\n%s\n%s", err, out, m.Console())
		}
		time.Sleep(250 * time.Millisecond)
	}
	container = time.Since(begin)
	m.Stop()
	return ready, api, container
}

// shakesHands waits until there is a TLS server at the address. QEMU takes
// connections as soon as it runs.
func shakesHands(ctx context.Context, address string) bool {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		c, err := d.DialContext(try, "tcp", address)
		cancel()
		if err == nil {
			c.Close()
			return true
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false
}

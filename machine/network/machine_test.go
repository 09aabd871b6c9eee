//go:build linux

package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestMachine starts a machine with the base's kernel, for what the kernel here
// may not have: bonds, VLANs, a network card, clocks to set. QEMU is the DHCP
// server, and the kernel's own text the judge.
func TestMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	t.Parallel()
	oracle.Tool(t, "qemu-system-x86_64")
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kernel, err := b.Part(base.Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "vmlinuz"), kernel.Content)
	write(t, filepath.Join(dir, "initrd"), guest.Initramfs(t, files(t, b)))

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"), Memory: 256,
		Cmdline: "console=ttyS0 quiet mitigations=off panic=-1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	for _, want := range []string{
		"DHCP: eth0 10.0.2.15/24 mtu 1500; faults []",
		"Spec: bond0.5 10.5.0.1/24 mtu 9000; lan0 10.0.2.15/24 mtu 1500; faults []",
		"bond0: Bonding Mode: IEEE 802.3ad Dynamic link aggregation; Transmit Hash Policy: layer3+4 (1); MII Polling Interval (ms): 50; Up Delay (ms): 100; LACP rate: fast; " +
			"Min links: 1; Aggregator selection policy (ad_select): bandwidth; Slave Interface: dummy0; Slave Interface: dummy1",
		"bond1: Bonding Mode: fault-tolerance (active-backup); Primary Slave: dummy2 (primary_reselect always); MII Polling Interval (ms): 100; Up Delay (ms): 0; Slave Interface: dummy2",
		"config: bond0.5 | 5 | bond0; outer | 7 | bond0",
		"again:",
		"stepped: true",
		"slewing: true",
		"battery: 2031-02-03",
	} {
		name, _, _ := strings.Cut(want, ":")
		line, err := m.Wait(ctx, regexp.MustCompile("guest: ("+name+"|failed):"))
		if err != nil || strings.Contains(line, "guest: failed:") {
			t.Fatalf("%v\n%s", err, m.Console())
		}
		if got := strings.TrimSpace(line[strings.Index(line, "guest: ")+len("guest: "):]); got != want {
			t.Errorf("the guest says %q\n                want %q", got, want)
		}
	}
	if err := m.WaitOff(ctx); err != nil || t.Failed() {
		t.Errorf("%v\n%s", err, m.Console())
	}
}

func write(t *testing.T, file string, from extent.Source) {
	t.Helper()
	data, err := io.ReadAll(extent.Reader(from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// files returns modules of the base for the machine.
func files(t *testing.T, b *base.Base) map[string]tree.Inode {
	t.Helper()
	m := map[string]tree.Inode{}
	for i, data := range kernelModules(t, b, "virtio_net", "dummy", "bonding", "8021q") {
		m[fmt.Sprintf("%s/%02d.ko", moduleDir[1:], i)] = guest.File(data)
	}
	return m
}

// kernelModules returns modules of the base with what they need, in the order to
// load them in.
func kernelModules(t *testing.T, b *base.Base, names ...string) (list [][]byte) {
	t.Helper()
	part, err := b.Part(base.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	from, err := squashfs.Open(part.Content, part.Content.Size())
	if err != nil {
		t.Fatal(err)
	}
	dir := "usr/lib/modules/" + b.Config.Release
	read := func(name string) []byte {
		t.Helper()
		ino := from.Lookup(dir + "/" + name)
		if ino == nil {
			t.Fatalf("the base has no %s", name)
		}
		data, err := io.ReadAll(extent.Reader(ino.Content))
		if err == nil && strings.HasSuffix(name, ".xz") {
			var r io.Reader
			if r, err = xz.NewReader(bytes.NewReader(data)); err == nil {
				data, err = io.ReadAll(r)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	index := t.TempDir()
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep", "modules.builtin"} {
		if err := os.WriteFile(filepath.Join(index, name), read(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x, err := modules.ReadIndex(os.DirFS(index))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	insert := func(file string) {
		if !seen[file] {
			seen[file] = true
			list = append(list, read(file))
		}
	}
	for _, name := range names {
		m, ok := x.Lookup(name)
		if !ok {
			t.Fatalf("the base has no module %s", name)
		}
		for _, d := range slices.Backward(m.Deps) {
			insert(d)
		}
		insert(m.File)
	}
	return list
}

//go:build linux

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// patience is for one boot, on a machine that does other things as well.
const patience = 4 * time.Minute

// start starts a machine, which is gone when the test ends. How many run at a time
// is up to go test -parallel: a bound here made tests wait for each other for ever
// that start a second machine after their first.
func start(t *testing.T, c vm.Config) (context.Context, *vm.Machine) {
	t.Helper()
	if c.Restart { // a slot on trial has three starts
		return startWithin(t, 3*patience, c)
	}
	return startWithin(t, patience, c)
}

// startWithin starts a machine that has another time to do all it does.
func startWithin(t *testing.T, patience time.Duration, c vm.Config) (context.Context, *vm.Machine) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	oracle.Tool(t, map[string]string{"": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[c.Arch])
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	m, err := vm.Start(ctx, c, nil)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Stop()
		cancel()
		if t.Failed() {
			t.Logf("console:\n%s", m.Console())
		}
	})
	return ctx, m
}

// ready waits until the node is up.
func ready(t *testing.T, ctx context.Context, m *vm.Machine) milestone {
	t.Helper()
	line, err := m.Wait(ctx, readyLine)
	if err != nil {
		t.Fatal(err)
	}
	up, _, err := parseMilestone(line)
	if err != nil {
		t.Fatal(err)
	}
	return up
}

// shutdown presses the power button and waits until the machine is off.
func shutdown(t *testing.T, ctx context.Context, m *vm.Machine) {
	t.Helper()
	if err := m.Powerdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(ctx, shutdownLine); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitOff(ctx); err != nil {
		t.Fatal(err)
	}
	if failedLine.MatchString(m.Console()) {
		t.Errorf("the shutdown failed")
	}
}

// expect returns what the base and the extension say the node must be.
func expect(t *testing.T) (release, extension string) {
	t.Helper()
	var image struct {
		Entries []struct {
			Initramfs struct {
				Layers []struct{ Kind, Name, Version string }
			}
			Release string
		}
	}
	out := run(t, oracle.Artifact(t, "KILN_BIN"), "inspect", "--json", oracle.Artifact(t, "KILN_IMAGE"))
	if err := json.Unmarshal([]byte(out), &image); err != nil {
		t.Fatal(err)
	}
	for _, e := range image.Entries {
		if e.Release != "" {
			release = e.Release
		}
		for _, l := range e.Initramfs.Layers {
			if l.Name == "wireguard" {
				extension = l.Name + "@" + l.Version
			}
		}
	}
	if release == "" || extension == "" {
		t.Fatalf("the image has release %q, extension %q; want both\n%s", release, extension, out)
	}
	return release, extension
}

// run runs a program and returns what it prints, also if it fails.
func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var errout bytes.Buffer
	cmd.Stderr = &errout
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, errout.Bytes())
	}
	return string(out)
}

func TestBoot(t *testing.T) {
	images := map[int]string{512: oracle.Artifact(t, "KILN_IMAGE"), 4096: oracle.Artifact(t, "KILN_IMAGE_4K")}
	release, extension := expect(t)
	type machine struct {
		firmware vm.Firmware
		bus      vm.Bus
		sector   int
		disk     string // as the kernel names it
		full     bool   // others are much like it
	}
	for _, c := range []machine{
		{vm.BIOS, vm.VirtioBlk, 512, "vda", false},
		{vm.BIOS, vm.AHCI, 512, "sda", false},
		{vm.BIOS, vm.NVMe, 512, "nvme0n1", false},
		{vm.BIOS, vm.VirtioSCSI, 512, "sda", true},
		{vm.UEFI, vm.VirtioBlk, 512, "vda", false},
		{vm.UEFI, vm.AHCI, 512, "sda", true},
		{vm.UEFI, vm.NVMe, 512, "nvme0n1", true},
		{vm.UEFI, vm.VirtioSCSI, 512, "sda", false},
		{vm.UEFI, vm.VirtioBlk, 4096, "vda", true},
		{vm.UEFI, vm.NVMe, 4096, "nvme0n1", false},
	} {
		t.Run(fmt.Sprintf("%s/%s/%d", c.firmware, c.bus, c.sector), func(t *testing.T) {
			if c.full {
				full(t)
			}
			t.Parallel()
			ctx, m := start(t, vm.Config{Image: images[c.sector], Firmware: c.firmware, Bus: c.bus, SectorSize: c.sector, Snapshot: true})
			up := ready(t, ctx, m)
			state, ephemeral := partitionName(c.disk, 5), partitionName(c.disk, 6)
			if c.sector == 4096 { // has neither BIOS nor BOOT
				state, ephemeral = partitionName(c.disk, 3), partitionName(c.disk, 4)
			}
			for key, want := range map[string]string{
				"release": release, "slot": "A", "firmware": string(c.firmware), "disk": c.disk,
				"state": state, "ephemeral": ephemeral, "extensions": extension, "failed": "-",
			} {
				if got := up.fields[key]; got != want {
					t.Errorf("ready with %s=%s, want %s", key, got, want)
				}
			}
			// Those that wireguard needs and the base has not are in the extension.
			if !slices.Contains(list(up.fields["modules"]), "wireguard") {
				t.Errorf("ready with modules=%s, want wireguard to be one of them", up.fields["modules"])
			}
			shutdown(t, ctx, m)
			got := stages(milestones(t, m.Console()))
			want := []string{"devices", "modules", "disk", "state", "ephemeral", "grow", "good", "shutdown"}
			var seen []string
			for _, s := range got {
				if slices.Contains(want, s) {
					seen = append(seen, s)
				}
			}
			if !slices.Equal(seen, want) {
				t.Errorf("stages are %v, want %v in that order", got, want)
			}
		})
	}
}

// partitionName returns the kernel's name of a partition.
func partitionName(disk string, n int) string {
	if strings.HasPrefix(disk, "nvme") {
		return fmt.Sprintf("%sp%d", disk, n)
	}
	return fmt.Sprintf("%s%d", disk, n)
}

// A disk that was booted and shut down is clean, and boots again.
func TestBootTwice(t *testing.T) {
	image := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	for _, f := range []vm.Firmware{vm.UEFI, vm.BIOS} {
		ctx, m := start(t, vm.Config{Image: image, Firmware: f, Bus: vm.AHCI})
		ready(t, ctx, m)
		shutdown(t, ctx, m)
		m.Stop()
		table := readTable(t, image, 512)
		for _, label := range []string{"STATE", "EPHEMERAL"} {
			part := carve(t, image, table.find(t, label))
			run(t, oracle.Tool(t, "e2fsck"), "-fn", part)
			if h := run(t, oracle.Tool(t, "dumpe2fs"), "-h", part); strings.Contains(h, "needs_recovery") {
				t.Errorf("%s was not unmounted:\n%s", label, h)
			}
		}
	}
}

// A layer that was damaged on the disk is found before anything is started from
// it, and named.
func TestBootDamagedLayer(t *testing.T) {
	image := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	efi := readTable(t, image, 512).find(t, "EFI")
	at := efi.start + findLayer(t, image, efi)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at+1<<20); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at+1<<20); err != nil {
		t.Fatal(err)
	}
	ctx, m := start(t, vm.Config{Image: image, Snapshot: true})
	line, err := m.Wait(ctx, failedLine, readyLine)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := parseMilestone(line)
	if err != nil {
		t.Fatal(err)
	}
	if got.word != "failed" || got.fields["stage"] != "layers" || !strings.Contains(got.fields["error"], "00-rootfs.sqsh") {
		t.Errorf("%s, want it to fail at the layer 00-rootfs.sqsh", line)
	}
}

// findLayer returns the offset in the partition of the squashfs image of the root
// file system, which is the first and much the largest.
func findLayer(t *testing.T, image string, p tablePartition) int64 {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, p.size)
	if _, err := io.ReadFull(io.NewSectionReader(f, p.start, p.size), data); err != nil {
		t.Fatal(err)
	}
	name := bytes.Index(data, []byte("00-rootfs.sqsh\x00"))
	if name < 0 {
		t.Fatal("no 00-rootfs.sqsh in the EFI partition")
	}
	magic := bytes.Index(data[name:], []byte("hsqs"))
	if magic < 0 {
		t.Fatal("no squashfs behind 00-rootfs.sqsh")
	}
	return int64(name + magic)
}

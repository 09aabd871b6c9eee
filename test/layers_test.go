//go:build linux

package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// withLayersOnBoot composes a disk whose layers are on BOOT.
func withLayersOnBoot(t *testing.T, set ...string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "metal.raw")
	flags := []string{"build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"),
		"--set", "disk.layers=boot", "--output", disk}
	for _, s := range set {
		flags = append(flags, "--set", s)
	}
	run(t, oracle.Artifact(t, "KILN_BIN"), flags...)
	return disk
}

// upgradeLayers puts a system with its layers in RAM or on BOOT on trial.
func upgradeLayers(t *testing.T, disk, where string) string {
	t.Helper()
	return run(t, oracle.Artifact(t, "KILN_BIN"), "upgrade", "--disk", disk, "--base", oracle.Artifact(t, "KILN_BASE"),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--set", "disk.layers="+where)
}

// ukiSize is the size of the unified kernel image of slot A.
func ukiSize(t *testing.T, disk string) (size int64) {
	t.Helper()
	var image struct {
		Entries []struct {
			Loader, Slot string
			Sections     []struct{ Size int64 }
		}
	}
	if err := json.Unmarshal([]byte(run(t, oracle.Artifact(t, "KILN_BIN"), "inspect", "--json", disk)), &image); err != nil {
		t.Fatal(err)
	}
	for _, e := range image.Entries {
		if e.Loader == "systemd-boot" && e.Slot == "A" {
			for _, s := range e.Sections {
				size += s.Size
			}
		}
	}
	return size
}

// Disks with layers on BOOT boot from every kind of disk, with memory that is too
// little for layers in RAM: those need 120 MiB with a BIOS.
func TestLayersOnBoot(t *testing.T) {
	t.Parallel()
	dual := withLayersOnBoot(t)
	with, without := ukiSize(t, oracle.Artifact(t, "KILN_IMAGE")), ukiSize(t, dual)
	if without == 0 || without > with*2/3 {
		t.Errorf("the UKI has %d bytes, %d with the layers; want two thirds at most", without, with)
	}
	sound(t, dual)
	// To layers in RAM, if the UKI has room.
	if out := upgradeLayers(t, withLayersOnBoot(t, "disk.partitions.efi=96MiB"), "ram"); !strings.Contains(out, "slot B is tried at the next start") {
		t.Errorf("to layers in RAM: %s", out)
	}
	uefi := withLayersOnBoot(t, "disk.bootLoader=uefi")
	for _, c := range []struct {
		name, disk, state string
		config            vm.Config
	}{
		{"bios/ahci", dual, "sda5", vm.Config{Firmware: vm.BIOS, Bus: vm.AHCI, Memory: 128}},
		{"bios/nvme", dual, "nvme0n1p5", vm.Config{Firmware: vm.BIOS, Bus: vm.NVMe, Memory: 128}},
		{"uefi only/virtio", uefi, "vda4", vm.Config{Firmware: vm.UEFI, Bus: vm.VirtioBlk, Memory: 192}},
	} {
		run(t, oracle.Artifact(t, "KILN_BIN"), "verify", c.disk)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.config.Image, c.config.Snapshot = c.disk, true
			ctx, m := start(t, c.config)
			up := ready(t, ctx, m)
			if up.fields["slot"] != "A" || up.fields["state"] != c.state || !slices.Contains(list(up.fields["modules"]), "wireguard") {
				t.Errorf("ready with slot=%s state=%s modules=%s, want A, %s and wireguard", up.fields["slot"], up.fields["state"], up.fields["modules"], c.state)
			}
			if _, err := m.Wait(ctx, goodLine); err != nil {
				t.Error(err)
			}
			shutdown(t, ctx, m)
			wantFromBoot(t, m, "A")
			if !strings.Contains(m.Console(), `watchdog="Software Watchdog"`) {
				t.Error("nothing watches the start")
			}
		})
	}
}

// wantFromBoot wants the node to have found its layers in a slot on BOOT.
func wantFromBoot(t *testing.T, m *vm.Machine, slot string) {
	t.Helper()
	line := regexp.MustCompile(`kiln: stage=layers t=\S+ count=3 bytes=\d+ from=boot slot=` + slot + " ")
	if !line.MatchString(m.Console()) {
		t.Errorf("the console has no %q", line)
	}
}

// From layers in RAM to such on BOOT, to damaged ones, which are given up, and back
// to RAM.
func TestLayersUpgrade(t *testing.T) {
	t.Parallel()
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	upgradeLayers(t, disk, "boot")
	comesUp(t, disk, vm.BIOS, "B")
	sound(t, disk)

	upgradeLayers(t, disk, "boot")
	boot := readTable(t, disk, 512).find(t, "BOOT")
	blocks := strings.Fields(run(t, oracle.Tool(t, "debugfs"), "-R", "blocks A/layers", carve(t, disk, boot)))
	first, err := strconv.ParseInt(blocks[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	flipBit(t, disk, boot.start+4096*first+40) // of the superblock of the root file system
	out, err := exec.Command(oracle.Artifact(t, "KILN_BIN"), "verify", disk).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "BOOT:/A/layers: layers/00-rootfs.sqsh (rootfs rootfs) at 0: layer is damaged: data block 0 (bytes 0 to 4095) is damaged") {
		t.Errorf("kiln verify: %v\n%s", err, out)
	}
	ctx, m := start(t, vm.Config{Image: disk, Firmware: vm.BIOS, Bus: vm.AHCI, Restart: true})
	if up := ready(t, ctx, m); up.fields["slot"] != "B" {
		t.Errorf("ready with slot=%s, want B", up.fields["slot"])
	}
	if n := strings.Count(m.Console(), "data block 0 is corrupted"); n != 3 {
		t.Errorf("%d tries of slot A, want 3", n)
	}
	if _, err := m.Wait(ctx, goodLine); err != nil {
		t.Error(err)
	}
	shutdown(t, ctx, m)
	m.Stop()
	if s := slotOf(t, disk, vm.BIOS); s.Slot != "B" || s.Trial != "" {
		t.Errorf("%+v, want slot B", s)
	}

	upgradeLayers(t, disk, "ram")
	run(t, oracle.Artifact(t, "KILN_BIN"), "verify", disk)
	sound(t, disk)
}

// A disk without BOOT says so, before anything is written.
func TestLayersNoBOOT(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "metal.raw")
	flags := []string{"--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--set", "disk.bootLoader=uefi"}
	run(t, oracle.Artifact(t, "KILN_BIN"), append([]string{"build", "metal", "--output", disk}, flags...)...)
	before := fileSum(t, disk)
	out, err := exec.Command(oracle.Artifact(t, "KILN_BIN"), append([]string{"upgrade", "--disk", disk, "--set", "disk.layers=boot"}, flags...)...).CombinedOutput()
	const want = "slot B: the disk has no partition BOOT for the layers; compose the system with disk.layers: ram, or install anew; the disk boots slot A"
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s\nwant %s", err, out, want)
	}
	if fileSum(t, disk) != before {
		t.Error("the disk was written to")
	}
}

func fileSum(t *testing.T, file string) string {
	t.Helper()
	sum, _, _ := strings.Cut(run(t, oracle.Tool(t, "sha256sum"), file), " ")
	return sum
}

// flipBit flips a bit of a file.
func flipBit(t *testing.T, file string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

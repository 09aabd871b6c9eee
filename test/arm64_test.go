//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/profiles"
)

// arm64Bench is a bench with a base for arm64.
func arm64Bench(t *testing.T) *bench {
	t.Helper()
	return &bench{
		kiln: oracle.Artifact(t, "KILN_BIN"), base: oracle.Artifact(t, "KILN_BASE_ARM64"),
		extension: oracle.Artifact(t, "KILN_EXTENSION_ARM64"), dir: t.TempDir(),
	}
}

// arm64 composes a profile for arm64 and returns the file.
func arm64(t *testing.T, profile, file string) string {
	t.Helper()
	b := arm64Bench(t)
	file = filepath.Join(b.dir, file)
	b.succeeds(t, "build", profile, "--base", b.base, "--extension", b.extension, "--output", file)
	return file
}

// comesUpARM64 starts a machine and wants it to be ready, with these fields among
// others, and the module loaded.
func comesUpARM64(t *testing.T, c vm.Config, want map[string]string) {
	t.Helper()
	c.Arch = "arm64"
	ctx, m := start(t, c)
	up := ready(t, ctx, m)
	for key, value := range want {
		if got := up.fields[key]; got != value {
			t.Errorf("ready with %s=%s, want %s", key, got, value)
		}
	}
	loaded(t, up, "wireguard")
	if c.Image != "" && want["slot"] != "" {
		if _, err := m.Wait(ctx, goodLine); err != nil {
			t.Error(err)
		}
	}
	shutdown(t, ctx, m)
}

// On the machines of arm64 what is composed for them boots: disks on every bus, and
// all that boots without one.
func TestARM64Boot(t *testing.T) {
	for _, c := range []struct {
		profile string
		bus     vm.Bus
		sector  int
		disk    string // as the kernel names it
	}{
		{"metal", vm.VirtioBlk, 512, "vda"}, {"metal", vm.NVMe, 512, "nvme0n1"}, {"kvm", vm.VirtioSCSI, 512, "sda"}, {"metal-4k", vm.NVMe, 4096, "nvme0n1"},
	} {
		t.Run(fmt.Sprintf("%s/%s", c.profile, c.bus), func(t *testing.T) {
			if c.bus != vm.NVMe || c.sector != 512 { // one is for every day
				full(t)
			}
			t.Parallel()
			config := vm.Config{Image: arm64(t, c.profile, "image"), Bus: c.bus, SectorSize: c.sector}
			if c.profile == "kvm" {
				config.Format = "qcow2"
			}
			comesUpARM64(t, config, map[string]string{"slot": "A", "firmware": "uefi", "disk": c.disk,
				"state": partitionName(c.disk, 3), "ephemeral": partitionName(c.disk, 4)}) // it has neither BIOS nor BOOT
		})
	}
	none := map[string]string{"firmware": "uefi", "disk": "none", "state": "tmpfs", "ephemeral": "tmpfs"}
	for _, bus := range []vm.Bus{vm.CDROM, vm.USB} {
		t.Run("iso/"+string(bus), func(t *testing.T) {
			full(t)
			t.Parallel()
			comesUpARM64(t, vm.Config{Image: arm64(t, "iso", "metal.iso"), Bus: bus}, none)
		})
	}
	t.Run("uki", func(t *testing.T) {
		full(t)
		t.Parallel()
		comesUpARM64(t, vm.Config{Kernel: arm64(t, "uki", "metal.efi")}, none)
	})
	t.Run("pxe", func(t *testing.T) {
		full(t)
		t.Parallel()
		dir := arm64(t, "pxe", "pxe")
		comesUpARM64(t, vm.Config{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initramfs"),
			Cmdline: strings.TrimSpace(string(read(t, filepath.Join(dir, "cmdline"))))}, none)
	})
}

// What is new is tried, and stays or goes.
func TestARM64Upgrade(t *testing.T) {
	full(t)
	for _, tc := range []struct{ arg, slot string }{{"quiet", "B"}, {"rdinit=/missing", "A"}} {
		t.Run("slot "+tc.slot, func(t *testing.T) {
			t.Parallel()
			disk := arm64(t, "metal", "metal.raw")
			run(t, oracle.Artifact(t, "KILN_BIN"), "upgrade", "--disk", disk, "--base", oracle.Artifact(t, "KILN_BASE_ARM64"), "--cache", t.TempDir(),
				"--extension", oracle.Artifact(t, "KILN_EXTENSION_ARM64"), "--set", "kernel.remove=[panic]", "--kernel-arg", "panic=1", "--kernel-arg", tc.arg)
			comesUpARM64(t, vm.Config{Image: disk, Restart: true}, map[string]string{"slot": tc.slot})
			if s := slotOf(t, disk, vm.UEFI); s.Slot != tc.slot || s.Trial != "" {
				t.Errorf("%+v, want slot %s", s, tc.slot)
			}
			if tc.slot == "B" {
				run(t, oracle.Artifact(t, "KILN_BIN"), "rollback", "--disk", disk)
				comesUpARM64(t, vm.Config{Image: disk}, map[string]string{"slot": "A"})
			}
		})
	}
}

// full skips a test that only 'make test-full' runs.
func full(t *testing.T) {
	t.Helper()
	if os.Getenv("KILN_TEST_FULL") == "" {
		t.Skip("SKIPPED: KILN_TEST_FULL is not set; 'make test-full' sets it")
	}
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
}

// Every profile makes an image for the base's architecture, which nobody has named,
// or says that its platform has no such machines. Disks have nothing for a BIOS.
func TestARM64Profiles(t *testing.T) {
	b := arm64Bench(t)
	for _, name := range profiles.Names() {
		t.Run(name, func(t *testing.T) {
			p, err := profiles.Load(name)
			if err != nil {
				t.Fatal(err)
			}
			if p.ARM64.None {
				b.fails(t, usage, []string{"arch arm64: profile " + name + " is for a platform without arm64 machines"}, "build", name, "--base", b.base)
				return
			}
			if p.Output.Format == "installer" {
				b.fails(t, refused, []string{"for EM_X86_64, the image for arm64; give kiln for arm64 with --installer-program"}, "build", name, "--base", b.base)
				return
			}
			file := arm64(t, name, "image."+p.Output.Format)
			if !slices.Contains(imager.DiskFormats(), p.Output.Format) || slices.Contains([]string{"containerdisk", "vagrant"}, p.Output.Format) {
				return // 'kiln inspect' does not look into it
			}
			var disk struct {
				Partitions []struct{ Label string }
				Entries    []struct{ Arch, Loader string }
			}
			if err := json.Unmarshal([]byte(run(t, b.kiln, "inspect", "--json", file)), &disk); err != nil {
				t.Fatal(err)
			}
			var labels []string
			for _, p := range disk.Partitions {
				labels = append(labels, p.Label)
			}
			if want := []string{"EFI", "META", "STATE", "EPHEMERAL"}; !slices.Equal(labels, want) {
				t.Errorf("partitions %v, want %v", labels, want)
			}
			if e := disk.Entries; len(e) != 1 || e[0].Arch != "arm64" || e[0].Loader != "systemd-boot" {
				t.Errorf("boot entries %+v, want one of systemd-boot's for arm64", e)
			}
		})
	}
}

// What firmware for arm64 starts is where it looks for it, and made for it.
func TestARM64Programs(t *testing.T) {
	disk, iso := arm64(t, "metal", "metal.raw"), arm64(t, "iso", "metal.iso")
	efi := readTable(t, disk, 512).find(t, "EFI")
	for _, name := range []string{"EFI/BOOT/BOOTAA64.EFI", "EFI/Linux/kiln-1-A.efi"} {
		file := filepath.Join(t.TempDir(), "program.efi")
		run(t, oracle.Tool(t, "mcopy"), "-i", fmt.Sprintf("%s@@%d", disk, efi.start), "::/"+name, file)
		if out := run(t, oracle.Tool(t, "file"), "-b", file); !strings.Contains(out, "EFI application) Aarch64") {
			t.Errorf("%s: %s, want a program of UEFI for Aarch64", name, out)
		}
	}
	out := run(t, oracle.Tool(t, "xorriso"), "-indev", iso, "-report_el_torito", "plain")
	if !strings.Contains(out, "El Torito boot img :   1  UEFI  y   none") || strings.Contains(out, "BIOS") {
		t.Errorf("boot images of the ISO:\n%s\nwant one, for UEFI", out)
	}
}

// What is for the other architecture is refused, and a BIOS's loader.
func TestARM64Refused(t *testing.T) {
	b := arm64Bench(t)
	const pair = `nothing in it for amd64: it is for ["arm64"]; give --arch, or build the base of a kernel package for amd64`
	b.fails(t, refused, []string{pair}, b.build("--arch", "amd64")...)
	b.fails(t, usage, []string{"arm64 machines have no BIOS; set disk.bootLoader: uefi"}, b.build("--set", "disk.bootLoader=dual")...)
	amd64 := oracle.Artifact(t, "KILN_EXTENSION")
	b.fails(t, refused, []string{"for linux/amd64, want linux/arm64"}, "build", "metal", "--base", b.base, "--extension", amd64)
	b.fails(t, refused, []string{"for linux/amd64, want linux/arm64"}, "extension", "check", "--base", b.base, amd64)
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	b.fails(t, refused, []string{"slot B: EFI: the disk boots machines of another architecture: it has no EFI/BOOT/BOOTAA64.EFI"}, "upgrade", "--disk", disk, "--base", b.base)
	run(t, b.kiln, "extension", "check", "--base", b.base, "--profile", "metal", "--strict", b.extension)
}

//go:build linux

package test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

var installLine = regexp.MustCompile(`(^|\] )kiln: stage=install `)

// iso is an ISO image with a machine configuration and kernel arguments.
func (b *bench) iso(t *testing.T, config string, args ...string) string {
	t.Helper()
	iso := filepath.Join(t.TempDir(), "metal.iso")
	command := []string{"build", "iso", "--base", b.base, "--config", b.file(t, "config.yaml", []byte(config)), "--output", iso}
	if b.extension != "" {
		command = append(command, "--extension", b.extension)
	}
	for _, a := range args {
		command = append(command, "--kernel-arg", a)
	}
	b.succeeds(t, command...)
	return iso
}

// What is in an ISO image can be installed wherever it is mounted, also as another
// platform's; nothing is written into it, and nothing compressed anew.
func TestISODirectory(t *testing.T) {
	config := machineNamed("from-a-directory")
	b := newBench(t)
	iso := b.iso(t, config, "kiln.install.disk=/dev/sda", "given=1")
	dir := filepath.Join(t.TempDir(), "kiln")
	run(t, oracle.Tool(t, "xorriso"), "-no_rc", "-osirrox", "on", "-indev", iso, "-extract", "/kiln", dir)
	before := run(t, oracle.Tool(t, "find"), dir, "-type", "f", "-printf", "%p %s %T@\n")
	disk := sparse(t, 512<<20)
	b.succeeds(t, "install", "--source", dir, "--disk", disk, "--platform", "kvm")
	holdsConfig(t, disk, 512, config)
	sound(t, disk)
	if out := run(t, b.kiln, "inspect", disk); !strings.Contains(out, "given=1") || !strings.Contains(out, "kiln.platform=nocloud") || strings.Contains(out, "kiln.install") {
		t.Errorf("want given=1, the platform of kvm and no kiln.install in\n%s", out)
	}
	if after := run(t, oracle.Tool(t, "find"), dir, "-type", "f", "-printf", "%p %s %T@\n"); after != before {
		t.Errorf("the source was\n%sand is\n%s", before, after)
	}
}

// An ISO image whose kernel arguments say so installs onto a disk, whatever it was
// started as, and the disk boots from either firmware.
func TestISOInstall(t *testing.T) {
	config := machineNamed("from-an-iso")
	b := newBench(t)
	// Debian's cloud kernel has no driver for USB.
	usb := &bench{kiln: b.kiln, base: oracle.Artifact(t, "KILN_BASE_GENERIC"), dir: t.TempDir()}
	for _, tt := range []struct {
		name string
		from *bench
		args []string
		vm   vm.Config
		want map[string]string
		boot vm.Firmware
	}{
		{"bios/cdrom", b, []string{"kiln.install.disk=\"size >= 2GB && transport == `virtio` && !removable\""},
			vm.Config{Firmware: vm.BIOS, Bus: vm.CDROM}, map[string]string{"disk": "/dev/vda", "from": "sr0", "then": "poweroff"}, vm.UEFI},
		// QEMU ends when this machine restarts.
		{"uefi/usb", usb, []string{"kiln.install.disk=/dev/vda", "kiln.install.force", "kiln.install.then=reboot", "kiln.install.platform=kvm"},
			vm.Config{Firmware: vm.UEFI, Bus: vm.USB}, map[string]string{"disk": "/dev/vda", "from": "sda", "then": "reboot"}, vm.BIOS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			disk := sparse(t, 3<<30)
			if slices.Contains(tt.args, "kiln.install.force") {
				run(t, oracle.Tool(t, "mke2fs"), "-q", "-t", "ext4", disk)
			}
			tt.vm.Image, tt.vm.Disks = tt.from.iso(t, config, tt.args...), []string{disk}
			before := digest(t, tt.vm.Image)
			ctx, m := start(t, tt.vm)
			line, err := m.Wait(ctx, installLine, failedLine)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := parseMilestone(line)
			if err != nil || got.word != "" {
				t.Fatalf("%s, %v", line, err)
			}
			for key, want := range tt.want {
				if got.fields[key] != want {
					t.Errorf("installed with %s=%s, want %s", key, got.fields[key], want)
				}
			}
			if err := m.WaitOff(ctx); err != nil {
				t.Fatal(err)
			}
			m.Stop()
			if digest(t, tt.vm.Image) != before {
				t.Error("the medium was written to")
			}
			holdsConfig(t, disk, 512, config)
			sound(t, disk)
			boots(t, disk, 512, tt.boot)
		})
	}
	// Without force a disk that holds anything stays as it is, and the machine does
	// not start over and over.
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		disk := sparse(t, 512<<20)
		run(t, oracle.Tool(t, "mke2fs"), "-q", "-t", "ext4", "-L", "precious", disk)
		before := digest(t, disk)
		ctx, m := start(t, vm.Config{Image: b.iso(t, config, "kiln.install.disk=/dev/vda"), Bus: vm.CDROM, Disks: []string{disk}})
		line, err := m.Wait(ctx, installLine, failedLine)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := parseMilestone(line)
		if err != nil || got.word != "failed" || got.fields["stage"] != "install" {
			t.Fatalf("%s, %v", line, err)
		}
		for _, want := range []string{"/dev/vda: not empty: it holds ext4", `"precious"`, "kiln.install.force"} {
			if !strings.Contains(got.fields["error"], want) {
				t.Errorf("error %q, want %q in it", got.fields["error"], want)
			}
		}
		if err := m.Powerdown(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitOff(ctx); err != nil {
			t.Fatal(err)
		}
		if digest(t, disk) != before {
			t.Error("the disk is not what it was")
		}
	})
}

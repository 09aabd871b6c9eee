//go:build linux

package test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// One ISO image boots as a CD and as a USB stick, from BIOS and from UEFI.
func TestISO(t *testing.T) {
	iso := filepath.Join(t.TempDir(), "metal.iso")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--output", iso)
	t.Run("xorriso", func(t *testing.T) {
		xorriso := oracle.Tool(t, "xorriso")
		out := run(t, xorriso, "-indev", iso, "-report_el_torito", "plain", "-report_system_area", "plain")
		for _, want := range []string{
			"El Torito boot img :   1  BIOS  y   none", "El Torito boot img :   2  UEFI  y   none",
			"System area summary: MBR protective-msdos-label", " GPT\n", "GPT partname local :   2  EFI\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		list := run(t, xorriso, "-indev", iso, "-find", "/", "-type", "f")
		for _, want := range []string{"'/EFI/BOOT/BOOTX64.EFI'", "'/boot/grub/grub.cfg'", "'/boot/initramfs'", "'/boot/vmlinuz'"} {
			if !strings.Contains(list, want) {
				t.Errorf("no %s in\n%s", want, list)
			}
		}
	})
	for _, firmware := range []vm.Firmware{vm.BIOS, vm.UEFI} {
		for _, bus := range []vm.Bus{vm.CDROM, vm.USB} {
			t.Run(string(firmware)+"/"+string(bus), func(t *testing.T) {
				if testing.Short() {
					t.Skip("SKIPPED: boots machines")
				}
				t.Parallel()
				ctx, m := start(t, vm.Config{Image: iso, Firmware: firmware, Bus: bus, Snapshot: bus == vm.USB})
				up := ready(t, ctx, m)
				for key, want := range map[string]string{"firmware": string(firmware), "state": "tmpfs", "ephemeral": "tmpfs"} {
					if got := up.fields[key]; got != want {
						t.Errorf("ready with %s=%s, want %s", key, got, want)
					}
				}
				loaded(t, up, "wireguard")
			})
		}
	}
}

//go:build linux

package test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
	t.Run("once", func(t *testing.T) {
		file := xorrisoFile(t, iso, "/boot/initramfs")
		fi, err := os.Stat(iso)
		if err != nil {
			t.Fatal(err)
		}
		// UEFI's copy of kernel and initramfs is BIOS's.
		if got, most := fi.Sys().(*syscall.Stat_t).Blocks*512, file*5/2; got > most {
			t.Errorf("%d bytes for an initramfs of %d, want at most %d", got, file, most)
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

// xorrisoFile returns the size of a file in an ISO image.
func xorrisoFile(t *testing.T, iso, name string) int64 {
	t.Helper()
	f := strings.Fields(run(t, oracle.Tool(t, "xorriso"), "-indev", iso, "-lsl", name))
	for i, word := range f {
		if strings.HasPrefix(word, "-r") && i+4 < len(f) {
			n, err := strconv.ParseInt(f[i+4], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("xorriso lists %q", f)
	return 0
}

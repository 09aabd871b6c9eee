//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// upgrade makes a copy of the image whose slot B has a system with further kernel
// arguments, on trial.
func upgrade(t *testing.T, args ...string) string {
	t.Helper()
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	flags := []string{"upgrade", "--disk", disk, "--base", oracle.Artifact(t, "KILN_BASE"), "--cache", t.TempDir(),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--set", "kernel.remove=[panic]", "--kernel-arg", "panic=1"}
	for _, a := range args {
		flags = append(flags, "--kernel-arg", a)
	}
	if out := run(t, oracle.Artifact(t, "KILN_BIN"), flags...); out != disk+": slot B is tried at the next start\n" {
		t.Fatalf("kiln upgrade: %s", out)
	}
	return disk
}

// slotOf is what kiln says that a disk boots.
func slotOf(t *testing.T, disk string, firmware vm.Firmware) (state struct {
	Slot, Trial, Failed string
	Tries               int
}) {
	t.Helper()
	out := run(t, oracle.Artifact(t, "KILN_BIN"), "slots", "--json", disk)
	states := map[string]json.RawMessage{}
	err := json.Unmarshal([]byte(out), &states)
	if err == nil {
		err = json.Unmarshal(states[string(firmware)], &state)
	}
	if err != nil {
		t.Fatalf("kiln slots: %v\n%s", err, out)
	}
	return state
}

// sound lets others judge the file systems that boot loaders read.
func sound(t *testing.T, disk string) {
	t.Helper()
	table := readTable(t, disk, 512)
	run(t, oracle.Tool(t, "e2fsck"), "-fn", carve(t, disk, table.find(t, "BOOT")))
	out := run(t, oracle.Tool(t, "fsck.fat"), "-n", carve(t, disk, table.find(t, "EFI")))
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 { // its name, and a count
		t.Errorf("fsck.fat: %s", out)
	}
}

// goodLine says that the slot is confirmed.
var goodLine = regexp.MustCompile(`(^|\] )kiln: stage=good `)

var firmwares = []vm.Firmware{vm.BIOS, vm.UEFI}

// comesUp starts the disk, wants the slot, and turns the machine off.
func comesUp(t *testing.T, disk string, f vm.Firmware, slot string) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Run("slot "+slot, func(t *testing.T) {
		ctx, m := start(t, vm.Config{Image: disk, Firmware: f, Bus: vm.AHCI})
		if up := ready(t, ctx, m); up.fields["slot"] != slot {
			t.Errorf("ready with slot=%s, want %s", up.fields["slot"], slot)
		}
		if _, err := m.Wait(ctx, goodLine); err != nil {
			t.Error(err)
		}
		shutdown(t, ctx, m)
	})
}

// A system that comes up stays.
func TestUpgrade(t *testing.T) {
	for _, f := range firmwares {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			disk := upgrade(t)
			sound(t, disk)
			for range 2 {
				comesUp(t, disk, f, "B")
				for _, loader := range firmwares { // one confirmation for both
					if s := slotOf(t, disk, loader); s.Slot != "B" || s.Trial != "" || s.Failed != "" {
						t.Errorf("%s: %+v, want slot B", loader, s)
					}
				}
				sound(t, disk)
			}
			if out := run(t, oracle.Artifact(t, "KILN_BIN"), "rollback", "--disk", disk); out != disk+": boots slot A\n" {
				t.Errorf("kiln rollback: %s", out)
			}
			comesUp(t, disk, f, "A")
		})
	}
}

// fallsBack boots a disk whose slot B does not come up, until slot A does, and
// returns what the machine printed.
func fallsBack(t *testing.T, disk string, f vm.Firmware) (console string) {
	t.Helper()
	ctx, m := start(t, vm.Config{Image: disk, Firmware: f, Bus: vm.AHCI, Restart: true})
	if up := ready(t, ctx, m); up.fields["slot"] != "A" {
		t.Errorf("ready with slot=%s, want A", up.fields["slot"])
	}
	if _, err := m.Wait(ctx, goodLine); err != nil {
		t.Error(err)
	}
	if s := slotOf(t, disk, f); s.Slot != "A" || s.Trial != "" {
		t.Errorf("%+v, want slot A", s)
	}
	return m.Console()
}

// A system that panics is tried three times, then the old one is back: unattended.
func TestRollbackOfPanic(t *testing.T) {
	for _, f := range firmwares {
		t.Run(string(f), func(t *testing.T) {
			if f == vm.BIOS { // where TestRollbackOfHang goes the same way
				full(t)
			}
			t.Parallel()
			disk := upgrade(t, "rdinit=/missing")
			ctx, m := start(t, vm.Config{Image: disk, Firmware: f, Bus: vm.AHCI, Restart: true})
			if up := ready(t, ctx, m); up.fields["slot"] != "A" {
				t.Errorf("ready with slot=%s, want A", up.fields["slot"])
			}
			if n := strings.Count(m.Console(), "Kernel panic"); n != 3 {
				t.Errorf("%d panics, want 3", n)
			}
			shutdown(t, ctx, m)
			m.Stop()
			if s := slotOf(t, disk, f); s.Slot != "A" || s.Trial != "" {
				t.Errorf("%+v, want slot A", s)
			}
			sound(t, disk)
		})
	}
}

// A system that hangs is reset by the watchdog, three times, then the old one is
// back: unattended.
func TestRollbackOfHang(t *testing.T) {
	for _, f := range firmwares {
		t.Run(string(f), func(t *testing.T) {
			if f == vm.UEFI { // where TestRollbackOfPanic goes the same way
				full(t)
			}
			t.Parallel()
			disk := upgrade(t, "kiln.hang=devices", "kiln.watchdog=15")
			if console := fallsBack(t, disk, f); strings.Count(console, "kiln.hang=devices: the start stops here") != 3 || strings.Count(console, "softdog: Initiating system reboot") != 3 {
				t.Error("slot B did not hang, or was not reset, three times")
			}
		})
	}
}

// What a boot loader finds to be no kernel, and no image, it does not start. (The
// stub in an image whose kernel is garbage takes OVMF down with it: that needs a
// watchdog that runs before the system does.)
func TestRollbackOfGarbage(t *testing.T) {
	t.Run("bios", func(t *testing.T) {
		t.Parallel()
		disk := upgrade(t)
		boot := readTable(t, disk, 512).find(t, "BOOT")
		blocks := strings.Fields(run(t, oracle.Tool(t, "debugfs"), "-R", "blocks B/vmlinuz", carve(t, disk, boot)))
		first, err := strconv.ParseInt(blocks[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, disk, boot.start+4096*first, 1<<20)
		fallsBack(t, disk, vm.BIOS)
	})
	t.Run("uefi", func(t *testing.T) {
		t.Parallel()
		disk := upgrade(t)
		image := fmt.Sprintf("%s@@%d", disk, readTable(t, disk, 512).find(t, "EFI").start)
		file := filepath.Join(t.TempDir(), "uki.efi")
		const name = "::/EFI/Linux/kiln-2-B+3.efi"
		run(t, oracle.Tool(t, "mcopy"), "-i", image, name, file)
		overwrite(t, file, 0, 1<<20)
		run(t, oracle.Tool(t, "mcopy"), "-D", "o", "-i", image, file, name)
		fallsBack(t, disk, vm.UEFI)
	})
}

// overwrite fills a part of a file with garbage.
func overwrite(t *testing.T, file string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("garbage\n", n/8)), off); err != nil {
		t.Fatal(err)
	}
}

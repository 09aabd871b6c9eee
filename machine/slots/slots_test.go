package slots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/internal/powercut"
)

// try does what a boot loader does with a trial: it counts a try.
func try(t testing.TB, d *powercut.Disk) {
	t.Helper()
	disk := open(t, d)
	if b := disk.bios; b != nil {
		env, err := b.env()
		if err != nil {
			t.Fatal(err)
		}
		if s := env.State(); s.Tries > 1 {
			if env, err = env.Try(s.Trial, s.Tries-1); err != nil {
				t.Fatal(err)
			}
		} else {
			env = env.With("failed", s.Trial).With("trial", "").With("tries", "")
		}
		data, err := env.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.edit.Overwrite(envFile, data); err != nil {
			t.Fatal(err)
		}
	}
	if u := disk.uefi; u != nil {
		list, err := u.images()
		if err != nil {
			t.Fatal(err)
		}
		if n := list[0]; n.Counted {
			n.Left, n.Done = n.Left-1, n.Done+1
			if err := u.edit.Rename(linuxDir+"/"+n.file, linuxDir+"/"+n.String()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func wantState(t testing.TB, d *powercut.Disk, want State) {
	t.Helper()
	got, err := open(t, d).State()
	if err != nil || got != want {
		t.Errorf("state is %+v, %v; want %+v", got, err, want)
	}
}

func wantBoots(t testing.TB, d *powercut.Disk, n int) {
	t.Helper()
	bios, uefi, err := boots(d.Bytes())
	if err != nil || bios != 0 && bios != n || uefi != 0 && uefi != n || bios+uefi == 0 {
		t.Errorf("GRUB boots system %d, systemd-boot %d, %v; want %d", bios, uefi, err, n)
	}
}

var disks = []string{"bios", "uefi", "uefi and layers", "bios and uefi"}

func TestUpgrade(t *testing.T) {
	for _, firmwares := range disks {
		d := powercut.New(installed(t, firmwares))
		wantState(t, d, State{Slot: "A"})
		wantBoots(t, d, 1)
		for n, slot := range []string{"B", "A", "B", "A", "B"} {
			was := grub.Other(slot)
			got, err := upgradeTo(t, d, byte(n+2))
			if err != nil || got != slot {
				t.Fatalf("%s: upgraded slot %s, %v; want %s", firmwares, got, err, slot)
			}
			wantState(t, d, State{Slot: was, Trial: slot, Tries: 3})
			wantBoots(t, d, n+2)
			try(t, d)
			wantState(t, d, State{Slot: was, Trial: slot, Tries: 2})
			for range 2 { // the second time there is nothing to do
				if err := open(t, d).Confirm(slot); err != nil {
					t.Fatalf("%s: %v", firmwares, err)
				}
			}
			before := d.Operations()
			if err := open(t, d).Confirm(slot); err != nil || d.Operations() != before {
				t.Errorf("%s: confirming what is confirmed: %v, %d writes", firmwares, err, d.Operations()-before)
			}
			wantState(t, d, State{Slot: slot})
			wantBoots(t, d, n+2)
		}
	}
}

// A system that never comes up is tried three times.
func TestFallBack(t *testing.T) {
	for _, firmwares := range disks {
		d := powercut.New(installed(t, firmwares))
		if _, err := upgradeTo(t, d, 2); err != nil {
			t.Fatal(err)
		}
		for range Tries {
			wantBoots(t, d, 2)
			try(t, d)
		}
		wantState(t, d, State{Slot: "A", Failed: "B"})
		wantBoots(t, d, 1)
		// The running system confirms itself, and may be upgraded again.
		if err := open(t, d).Confirm("A"); err != nil {
			t.Fatal(err)
		}
		wantBoots(t, d, 1)
		if slot, err := upgradeTo(t, d, 3); slot != "B" || err != nil {
			t.Fatalf("upgraded slot %s, %v", slot, err)
		}
		wantBoots(t, d, 3)
		wantState(t, d, State{Slot: "A", Trial: "B", Tries: 3})
	}
}

func TestRollback(t *testing.T) {
	for _, firmwares := range disks {
		d := powercut.New(installed(t, firmwares))
		if _, err := open(t, d).Rollback(); !errors.Is(err, ErrNoSystem) || !strings.Contains(err.Error(), "slot B: the slot has no system") {
			t.Errorf("%s: with one system: %v", firmwares, err)
		}
		wantBoots(t, d, 1)
		if _, err := upgradeTo(t, d, 2); err != nil {
			t.Fatal(err)
		}
		// From a trial, to what was there.
		if slot, err := open(t, d).Rollback(); slot != "A" || err != nil {
			t.Fatalf("%s: rolled back to %s, %v", firmwares, slot, err)
		}
		wantBoots(t, d, 1)
		if _, err := upgradeTo(t, d, 3); err != nil {
			t.Fatal(err)
		}
		if err := open(t, d).Confirm("B"); err != nil {
			t.Fatal(err)
		}
		// To and fro.
		for _, want := range []struct {
			slot string
			n    int
		}{{"A", 1}, {"B", 3}, {"A", 1}} {
			if slot, err := open(t, d).Rollback(); slot != want.slot || err != nil {
				t.Fatalf("%s: rolled back to %s, %v; want %s", firmwares, slot, err, want.slot)
			}
			wantBoots(t, d, want.n)
			wantState(t, d, State{Slot: want.slot})
		}
	}
}

// Whenever the power fails, the disk boots the old system or the new one, and can
// be upgraded again.
func TestCut(t *testing.T) {
	for _, firmwares := range []string{"bios and uefi", "uefi and layers"} {
		t.Run(firmwares, func(t *testing.T) { cuts(t, firmwares) })
	}
}

func cuts(t *testing.T, firmwares string) {
	for _, what := range []struct {
		name string
		do   func(*powercut.Disk) error
		old  int
		new  int
	}{
		{"upgrade", func(d *powercut.Disk) error { _, err := upgradeTo(t, d, 4); return err }, 3, 4},
		{"confirm", func(d *powercut.Disk) error {
			if _, err := upgradeTo(t, d, 3); err != nil {
				return err
			}
			return open(t, d).Confirm("A")
		}, 3, 3},
		{"rollback", func(d *powercut.Disk) error { _, err := open(t, d).Rollback(); return err }, 3, 2},
	} {
		d := powercut.New(installed(t, firmwares))
		for n := byte(2); n < 4; n++ { // both slots are in use
			slot, err := upgradeTo(t, d, n)
			if err == nil {
				err = open(t, d).Confirm(slot)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		d = powercut.New(d.Bytes())
		if err := what.do(d); err != nil {
			t.Fatalf("%s: %v", what.name, err)
		}
		found := map[int]int{}
		again := 0
		n, err := d.Cuts(1, 3, func(c powercut.Cut) error {
			bios, uefi, err := boots(c.Content)
			if err != nil {
				return err
			}
			for _, n := range []int{bios, uefi} {
				if n == 0 && firmwares == "uefi and layers" {
					continue // it has no GRUB
				}
				if n != what.old && n != what.new && what.name != "confirm" {
					return fmt.Errorf("boots system %d", n)
				}
				found[n]++
			}
			if again++; again%7 != 0 {
				return nil
			}
			next := powercut.New(bytes.Clone(c.Content))
			if _, err := upgradeTo(t, next, 5); err != nil && !errors.Is(err, ErrDisagree) {
				return fmt.Errorf("upgraded again: %w", err)
			} else if err == nil {
				wantBoots(t, next, 5)
			}
			return nil
		})
		t.Logf("%s: %d operations, %d states, systems booted: %v", what.name, d.Operations(), n, found)
		if err != nil {
			t.Errorf("%s: %v", what.name, err)
		}
	}
}

// Each write and flush of an upgrade fails once; the old system is as it was.
func TestFault(t *testing.T) {
	for _, firmwares := range []string{"bios and uefi", "uefi and layers"} {
		t.Run(firmwares, func(t *testing.T) {
			faults(t, installed(t, firmwares), map[bool]int{true: 2, false: 1}[strings.Contains(firmwares, "bios")])
		})
	}
}

func faults(t *testing.T, before []byte, loaders int) {
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
		n := 0
		for ; ; n++ {
			d := powercut.New(bytes.Clone(before))
			var count atomic.Int64
			d.Fail = func(int) error {
				if count.Add(1) == int64(n+1) {
					return fault
				}
				return nil
			}
			_, err := upgradeTo(t, d, 2)
			if err == nil {
				break
			}
			switching := strings.HasSuffix(err.Error(), "; the disk boots slot A, perhaps after trying slot B")
			if !errors.Is(err, fault) || !strings.HasPrefix(err.Error(), "slot B: ") || !switching && !strings.HasSuffix(err.Error(), "; the disk boots slot A") {
				t.Fatalf("operation %d: %v", n, err)
			}
			bios, uefi, err := boots(d.Bytes())
			if err != nil || !switching && bios+uefi != loaders {
				t.Fatalf("operation %d: boots %d and %d, %v", n, bios, uefi, err)
			}
		}
		if n < 20 {
			t.Errorf("%d operations are too few", n)
		}
	}
}

func TestUpgradeRefused(t *testing.T) {
	d := powercut.New(installed(t, "bios and uefi"))
	large := func(slot string) (*System, error) {
		s := system(2, slot)
		s.Initramfs = extent.New(10 * mib)
		return s, nil
	}
	_, err := open(t, d).Upgrade(t.Context(), large, nil)
	var space *ext4.SpaceError
	if !errors.As(err, &space) || !strings.Contains(err.Error(), "slot B: BOOT: ") {
		t.Errorf("initramfs: %v", err)
	}
	large = func(slot string) (*System, error) {
		s := system(2, slot)
		s.UKI = extent.New(100 * mib)
		return s, nil
	}
	_, err = open(t, d).Upgrade(t.Context(), large, nil)
	var fatSpace *fat.SpaceError
	if !errors.As(err, &fatSpace) || !strings.Contains(err.Error(), "slot B: EFI: ") {
		t.Errorf("UKI: %v", err)
	}
	large = func(slot string) (*System, error) {
		s := system(2, slot)
		s.Layers = extent.New(10 * mib)
		return s, nil
	}
	_, err = open(t, d).Upgrade(t.Context(), large, nil)
	if !errors.As(err, &space) || !strings.Contains(err.Error(), "slot B: BOOT: ") {
		t.Errorf("layers: %v", err)
	}
	if d.Operations() > 0 {
		t.Errorf("%d writes", d.Operations())
	}
	other := func(slot string) (*System, error) {
		s := system(2, slot)
		s.Loader = "EFI/BOOT/BOOTAA64.EFI"
		return s, nil
	}
	_, err = open(t, d).Upgrade(t.Context(), other, nil)
	if !errors.Is(err, ErrLoader) || d.Operations() > 0 || !strings.Contains(err.Error(), "it has no EFI/BOOT/BOOTAA64.EFI; compose the system for the disk's architecture; the disk boots slot A") {
		t.Errorf("loader: %v, %d writes", err, d.Operations())
	}
	d = powercut.New(installed(t, "uefi"))
	_, err = open(t, d).Upgrade(t.Context(), func(slot string) (*System, error) { return system(2, slot), nil }, nil)
	if !errors.Is(err, ErrNoBOOT) || d.Operations() > 0 || !strings.Contains(err.Error(), "compose the system with disk.layers: ram, or install anew; the disk boots slot A") {
		t.Errorf("layers without BOOT: %v, %d writes", err, d.Operations())
	}
}

// A bit that flips between writing and reading back is found before the switch.
func TestVerify(t *testing.T) {
	d := powercut.New(installed(t, "bios and uefi"))
	disk, err := Open(flipped{d}, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	_, err = disk.Upgrade(t.Context(), func(slot string) (*System, error) { return system(2, slot), nil }, nil)
	if !errors.Is(err, ErrVerify) {
		t.Errorf("%v, want %v", err, ErrVerify)
	}
	wantBoots(t, d, 1)
}

type flipped struct{ *powercut.Disk }

func (f flipped) WriteAt(p []byte, off int64) (int, error) {
	if len(p) > 64<<10 {
		p = bytes.Clone(p)
		p[60<<10] ^= 4
	}
	return f.Disk.WriteAt(p, off)
}

func TestUpgradeStops(t *testing.T) {
	d := powercut.New(installed(t, "bios and uefi"))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := open(t, d).Upgrade(ctx, func(slot string) (*System, error) { return system(2, slot), nil }, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	wantBoots(t, d, 1)
}

func TestOpenErrors(t *testing.T) {
	d := powercut.New(make([]byte, mib))
	if _, err := Open(d, d.Size()); !errors.Is(err, ErrNoSlots) {
		t.Errorf("empty disk: %v", err)
	}
	d = powercut.New(installed(t, "bios"))
	if err := open(t, d).Confirm("C"); !errors.Is(err, ErrSlot) {
		t.Errorf("slot C: %v", err)
	}
}

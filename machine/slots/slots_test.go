package slots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/internal/powercut"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const mib = 1 << 20

// contents of systems, which take a while to make.
var contents sync.Map

// system is one that is told from others by its number.
func system(n byte, slot string) *System {
	random := func(part byte, size int) extent.Source {
		b, ok := contents.Load([2]byte{n, part})
		if !ok {
			made := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{n, part}).Read(made)
			b, _ = contents.LoadOrStore([2]byte{n, part}, made)
		}
		return extent.Bytes(b.([]byte))
	}
	config, err := grub.EncodeSlot(grub.Entry{Title: fmt.Sprint("system ", n), Linux: "/" + slot + "/vmlinuz", Initrd: "/" + slot + "/initramfs", Args: "n=" + fmt.Sprint(n)})
	if err != nil {
		panic(err)
	}
	return &System{Kernel: random(1, 200_001), Initramfs: random(2, 400_003), Config: config, UKI: random(3, 610_000+int(n)), Time: 1e9}
}

// installed is a disk with system 1 in slot A.
func installed(t testing.TB, firmwares string) []byte {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	add := func(tr *tree.Tree, name string, content tree.Content) {
		t.Helper()
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			fail(tr.MkdirAll(name[:i], 0o755))
		}
		fail(tr.Add(name, &tree.Inode{Mode: 0o644, Content: content}))
	}
	s := system(1, "A")
	efi := tree.New()
	add(efi, "EFI/BOOT/BOOTX64.EFI", extent.Bytes([]byte("loader")))
	add(efi, "EFI/Linux/"+Name{Generation: 1, Slot: "A"}.String(), s.UKI)
	efiOptions := fat.Options{SectorSize: 512, Label: "EFI"}
	size, err := fat.MinSize(efi, efiOptions)
	fail(err)
	efiOptions.Size = extent.Align(size, mib)
	efiFS, err := fat.Build(efi, efiOptions)
	fail(err)

	boot := tree.New()
	env, err := grub.Env{{Name: "slot", Value: "A"}}.Encode()
	fail(err)
	add(boot, "grub/grub.cfg", extent.Bytes(grub.SlotsConfig(true)))
	add(boot, "grub/grubenv", extent.Bytes(env))
	add(boot, "A/vmlinuz", s.Kernel)
	add(boot, "A/initramfs", s.Initramfs)
	add(boot, "A/slot.cfg", extent.Bytes(s.Config))
	for _, name := range []string{"B/vmlinuz", "B/initramfs", "B/slot.cfg"} {
		add(boot, name, nil)
	}
	bootOptions := ext4.Options{Label: "BOOT", Preallocate: map[string]int64{
		"A/initramfs": 600_000, "B/initramfs": 800_000, "A/slot.cfg": grub.MaxSlotConfig, "B/slot.cfg": grub.MaxSlotConfig,
	}}
	size, err = ext4.MinSize(boot, bootOptions)
	fail(err)
	bootOptions.Size = extent.Align(size, mib)
	bootFS, err := ext4.Build(boot, bootOptions)
	fail(err)

	table := &gpt.Table{DiskID: gpt.GUID{7}, SectorSize: 512}
	at := int64(mib)
	type part struct {
		at  int64
		src extent.Source
	}
	var parts []part
	put := func(name string, kind gpt.GUID, src extent.Source) {
		table.Partitions = append(table.Partitions, gpt.Partition{Type: kind, ID: gpt.GUID{8, byte(len(parts))}, Name: name, Start: at, Size: src.Size()})
		parts = append(parts, part{at, src})
		at += src.Size()
	}
	if strings.Contains(firmwares, "uefi") {
		put("EFI", gpt.EFISystem, efiFS)
	}
	if strings.Contains(firmwares, "bios") {
		put("BOOT", gpt.LinuxFilesystem, bootFS)
	}
	table.Size = at + mib
	disk, err := table.Map()
	fail(err)
	for _, p := range parts {
		fail(disk.Put(p.at, p.src))
	}
	b := make([]byte, disk.Size())
	_, err = disk.ReadAt(b, 0)
	fail(err)
	return b
}

// device is a disk, for Open.
func open(t testing.TB, d *powercut.Disk) *Disk {
	t.Helper()
	disk, err := Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func upgradeTo(t testing.TB, d *powercut.Disk, n byte) (string, error) {
	t.Helper()
	return open(t, d).Upgrade(t.Context(), func(slot string) (*System, error) { return system(n, slot), nil }, nil)
}

// boots returns the number of the system that each boot loader would start next;
// 0 where there is no such boot loader. What it starts must be whole.
func boots(content []byte) (bios, uefi int, err error) {
	r := bytes.NewReader(content)
	table, err := gpt.Read(r, r.Size())
	if err != nil {
		return 0, 0, err
	}
	for _, p := range table.Partitions {
		part := io.NewSectionReader(r, p.Start, p.Size)
		if p.Name == "BOOT" {
			if bios, err = bootsBIOS(part); err != nil {
				return 0, 0, fmt.Errorf("BOOT: %w", err)
			}
		} else if uefi, err = bootsUEFI(part); err != nil {
			return 0, 0, fmt.Errorf("EFI: %w", err)
		}
	}
	return bios, uefi, nil
}

func bootsBIOS(part *io.SectionReader) (int, error) {
	f, err := ext4.Open(part, part.Size())
	if err != nil {
		return 0, err
	}
	read := func(name string) []byte {
		ino := f.Tree.Lookup(name)
		if ino.Size() == 0 {
			return nil
		}
		b := make([]byte, ino.Size())
		_, err = ino.Content.ReadAt(b, 0)
		return b
	}
	env, _ := grub.ParseEnv(read("grub/grubenv"))
	s := env.State()
	for _, slot := range []string{s.Trial, s.Slot, grub.Other(s.Slot)} {
		if slot == "" || len(read(slot+"/slot.cfg")) == 0 {
			continue
		}
		for n := byte(1); n < 9; n++ {
			w := system(n, slot)
			if bytes.Equal(read(slot+"/slot.cfg"), w.Config) {
				if !equal(read(slot+"/vmlinuz"), w.Kernel) || !equal(read(slot+"/initramfs"), w.Initramfs) {
					return 0, fmt.Errorf("slot %s has the configuration of system %d and not the system", slot, n)
				}
				return int(n), err
			}
		}
		return 0, fmt.Errorf("slot %s has a configuration that nobody wrote", slot)
	}
	return 0, errors.New("no slot has a configuration")
}

func bootsUEFI(part *io.SectionReader) (int, error) {
	u := &uefi{part: &section{Device: readOnly{part}, size: part.Size()}}
	list, err := u.images()
	if err != nil {
		return 0, err
	}
	if len(list) == 0 || !list[0].Usable() {
		return 0, fmt.Errorf("nothing to start among %v", list)
	}
	f, err := fat.Open(part, part.Size())
	if err != nil {
		return 0, err
	}
	content := f.Tree.Lookup("EFI/Linux/" + list[0].file).Content
	b := make([]byte, content.Size())
	if _, err := content.ReadAt(b, 0); err != nil {
		return 0, err
	}
	for n := byte(1); n < 9; n++ {
		if equal(b, system(n, "A").UKI) {
			return int(n), nil
		}
	}
	return 0, fmt.Errorf("%s is no whole system", list[0].file)
}

func equal(b []byte, src extent.Source) bool {
	want := make([]byte, src.Size())
	_, err := src.ReadAt(want, 0)
	return err == nil && bytes.Equal(b, want)
}

type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, syscall.EROFS }
func (readOnly) Sync() error                        { return nil }

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

var disks = []string{"bios", "uefi", "bios and uefi"}

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
		d := powercut.New(installed(t, "bios and uefi"))
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
	before := installed(t, "bios and uefi")
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
			if err != nil || !switching && bios+uefi != 2 {
				t.Fatalf("operation %d: boots %d and %d, %v", n, bios, uefi, err)
			}
		}
		if n < 20 {
			t.Errorf("%d operations are too few", n)
		}
	}
}

func TestNoRoom(t *testing.T) {
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
	if d.Operations() > 0 {
		t.Errorf("%d writes", d.Operations())
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

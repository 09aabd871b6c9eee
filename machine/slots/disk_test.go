package slots

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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

// system is one that is told from others by its number. Systems 1, 5 and 9 have
// their layers in the initramfs, the others on BOOT.
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
	s := &System{Kernel: random(1, 200_001), Initramfs: random(2, 400_003), Config: config, UKI: random(3, 610_000+int(n)), Loader: "efi/boot/bootx64.efi", Time: 1e9}
	if n%4 != 1 {
		s.Layers = random(4, 150_001+4096*int(n))
	}
	return s
}

// installed is a disk with system 1 in slot A. The firmwares are words: bios, uefi,
// and layers for a partition BOOT without GRUB.
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
	bootOptions := ext4.Options{Label: "BOOT", Preallocate: map[string]int64{
		"A/layers": 50 * 4096, "B/layers": 50 * 4096, "A/slot.cfg": grub.MaxSlotConfig, "B/slot.cfg": grub.MaxSlotConfig,
	}}
	if strings.Contains(firmwares, "bios") {
		add(boot, "grub/grub.cfg", extent.Bytes(grub.SlotsConfig(true)))
		add(boot, "grub/grubenv", extent.Bytes(env))
		add(boot, "A/vmlinuz", s.Kernel)
		add(boot, "A/initramfs", s.Initramfs)
		add(boot, "B/vmlinuz", nil)
		add(boot, "B/initramfs", nil)
		bootOptions.Preallocate["B/layers"] = 200 * 4096
	}
	add(boot, "A/slot.cfg", extent.Bytes(s.Config))
	for _, name := range []string{"A/layers", "B/layers", "B/slot.cfg"} {
		add(boot, name, nil)
	}
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
	if firmwares != "uefi" {
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
	disk := open(t, d)
	return disk.Upgrade(t.Context(), func(slot string) (*System, error) {
		s := system(n, slot)
		if disk.boot == nil {
			s.Layers = nil
		}
		return s, nil
	}, nil)
}

// boots returns the number of the system that each boot loader would start next;
// 0 where there is no such boot loader. What it starts must be whole.
func boots(content []byte) (bios, uefi int, err error) {
	r := bytes.NewReader(content)
	table, err := gpt.Read(r, r.Size())
	if err != nil {
		return 0, 0, err
	}
	var boot *ext4.FileSystem
	for _, p := range slices.Backward(table.Partitions) { // what is on EFI needs what is on BOOT
		part := io.NewSectionReader(r, p.Start, p.Size)
		if p.Name == "EFI" {
			if uefi, err = bootsUEFI(part, boot); err != nil {
				return 0, 0, fmt.Errorf("EFI: %w", err)
			}
			continue
		}
		if boot, err = ext4.Open(part, part.Size()); err == nil && boot.Tree.Lookup(envFile) != nil {
			bios, err = bootsBIOS(boot)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("BOOT: %w", err)
		}
	}
	return bios, uefi, nil
}

func bootsBIOS(f *ext4.FileSystem) (int, error) {
	var err error
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
				if !equal(read(slot+"/vmlinuz"), w.Kernel) || !equal(read(slot+"/initramfs"), w.Initramfs) || !hasLayers(f, slot, w) {
					return 0, fmt.Errorf("slot %s has the configuration of system %d and not the system", slot, n)
				}
				return int(n), err
			}
		}
		return 0, fmt.Errorf("slot %s has a configuration that nobody wrote", slot)
	}
	return 0, errors.New("no slot has a configuration")
}

// hasLayers says whether BOOT has the layers of a system that wants them there.
func hasLayers(boot *ext4.FileSystem, slot string, w *System) bool {
	ino := boot.Tree.Lookup(slot + "/layers")
	if w.Layers == nil || ino.Size() == 0 {
		return w.Layers == nil && ino.Size() == 0
	}
	b := make([]byte, ino.Size())
	_, err := ino.Content.ReadAt(b, 0)
	return err == nil && equal(b, w.Layers)
}

func bootsUEFI(part *io.SectionReader, boot *ext4.FileSystem) (int, error) {
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
		if w := system(n, "A"); equal(b, w.UKI) {
			if boot != nil && !hasLayers(boot, list[0].Slot, w) {
				return 0, fmt.Errorf("%s is system %d, whose layers are not there", list[0].file, n)
			}
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

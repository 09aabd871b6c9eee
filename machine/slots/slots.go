// Package slots changes which system an installed disk boots.
//
// Each disk has two slots, A and B, that hold a complete set of boot assets each.
// One of them is confirmed: the system in there has been up before. An upgrade
// writes the other slot, which is then on trial: boot loaders start it a few
// times, and fall back to the confirmed slot unless it is confirmed by then.
//
// There are two boot loaders, and each knows for itself which slot is on trial:
//
//   - GRUB, for BIOS, reads BOOT: the directories A and B with kernel, initramfs
//     and configuration, and grub/grubenv, where it counts (see package grub).
//   - systemd-boot, for UEFI, reads EFI: EFI/Linux has one unified kernel image
//     for each slot and counts in their names (see Name).
//
// The layers of the root file system are in the initramfs or, if the disk has the
// partition BOOT, in the file of package layers beside the kernel: then that is
// there on a disk without GRUB, too.
//
// What switches between slots is one sector for each of them. Everything is
// written by offset; nothing has to be mounted, and nothing must be.
package slots

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
)

// Device is a disk. Sync returns when all that was written before is on the
// medium; until then it may get there in any order or not at all. Sectors of 512
// bytes get there whole.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Errors returned, wrapped, by this package.
var (
	ErrNoSlots  = errors.New("no disk with two slots")
	ErrDisagree = errors.New("the boot loaders disagree")
	ErrNoSystem = errors.New("the slot has no system")
	ErrSlot     = errors.New("not a slot")
	ErrLoader   = errors.New("the disk boots machines of another architecture")
	ErrNoBOOT   = errors.New("the disk has no partition BOOT for the layers; compose the system with disk.layers: ram, or install anew")
)

// Disk is an installed disk.
type Disk struct {
	ID    gpt.GUID
	Table *gpt.Table // as it was when the disk was opened

	boot *boot // nil if there is no partition BOOT
	bios *bios // nil if the disk does not boot from a BIOS
	uefi *uefi // nil if it does not boot from UEFI
}

const (
	linuxDir = "EFI/Linux" // of the EFI system partition
	envFile  = "grub/grubenv"
	kernel   = "vmlinuz"
	initrd   = "initramfs"
)

// State says what the disk boots.
type State struct {
	Slot   string `json:"slot"`             // confirmed
	Trial  string `json:"trial,omitempty"`  // tried first, as long as there are tries
	Tries  int    `json:"tries,omitempty"`  // left
	Failed string `json:"failed,omitempty"` // given up
}

// String says it in words.
func (s State) String() string {
	switch {
	case s.Trial != "":
		return fmt.Sprintf("slot %s, after %d tries of slot %s", s.Slot, s.Tries, s.Trial)
	case s.Failed != "":
		return fmt.Sprintf("slot %s; slot %s failed", s.Slot, s.Failed)
	}
	return "slot " + s.Slot
}

// Open finds the slots of the disk in the first size bytes of dev. Nothing is
// written.
func Open(dev Device, size int64) (*Disk, error) {
	table, err := gpt.Read(dev, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSlots, err)
	}
	d := &Disk{ID: table.DiskID, Table: table}
	for _, p := range table.Partitions {
		part := &section{dev, p.Start, p.Size}
		switch {
		case p.Name == "BOOT" && p.Type == gpt.LinuxFilesystem:
			d.boot, d.bios, err = openBOOT(part)
		case p.Name == "EFI" && p.Type == gpt.EFISystem:
			d.uefi, err = openUEFI(part)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if d.bios == nil && d.uefi == nil {
		return nil, fmt.Errorf("%w: neither a partition EFI nor BOOT that boots", ErrNoSlots)
	}
	return d, nil
}

// section is a partition.
type section struct {
	Device
	start, size int64
}

var errBounds = errors.New("beyond the end of the partition")

func (s *section) check(n int, off int64) error {
	if off < 0 || off > s.size || int64(n) > s.size-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", errBounds, n, off, s.size)
	}
	return nil
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if err := s.check(len(p), off); err != nil {
		return 0, err
	}
	return s.Device.ReadAt(p, s.start+off)
}

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if err := s.check(len(p), off); err != nil {
		return 0, err
	}
	return s.Device.WriteAt(p, s.start+off)
}

// boot is the partition BOOT.
type boot struct {
	edit *ext4.Editor
}

// bios is what GRUB reads of it.
type bios struct {
	*boot
}

// openBOOT returns no bios for a partition that has only layers.
func openBOOT(part *section) (*boot, *bios, error) {
	e, err := ext4.Edit(part, part.size)
	if err != nil {
		return nil, nil, err
	}
	b := &boot{e}
	if _, err := e.Content(envFile); errors.Is(err, fs.ErrNotExist) {
		return b, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	return b, &bios{b}, nil
}

func (b *bios) env() (grub.Env, error) {
	c, err := b.edit.Content(envFile)
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(c.Size(), grub.EnvSize+1))
	if _, err := c.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, err
	}
	env, err := grub.ParseEnv(data)
	if errors.Is(err, grub.ErrEnv) {
		return nil, nil // GRUB goes by its defaults, and so do we
	}
	return env, err
}

// store writes the environment, if it is another one.
func (b *bios) store(was, is grub.Env) error {
	data, err := is.Encode()
	if err != nil {
		return err
	}
	if old, err := was.Encode(); err == nil && was != nil && slices.Equal(old, data) {
		return nil
	}
	return b.edit.Overwrite(envFile, data)
}

func (b *bios) state() (State, error) {
	env, err := b.env()
	if err != nil {
		return State{}, err
	}
	s := env.State()
	return State{Slot: s.Slot, Trial: s.Trial, Tries: s.Tries, Failed: s.Failed}, nil
}

// whole says whether a slot has a system.
func (b *bios) whole(slot string) bool {
	c, err := b.edit.Content(slot + "/" + grub.SlotConfigName)
	return err == nil && c.Size() > 0
}

// uefi is what systemd-boot reads.
type uefi struct {
	part *section
	edit *fat.Editor
}

func openUEFI(part *section) (*uefi, error) {
	e, err := fat.Edit(part, part.size)
	if err != nil {
		return nil, err
	}
	return &uefi{part, e}, nil
}

// image is a unified kernel image.
type image struct {
	Name
	file string // as it is spelled
}

// images lists those of slots, as systemd-boot sorts them: the first is booted.
func (u *uefi) images() ([]image, error) {
	names, err := u.names()
	if err != nil {
		return nil, err
	}
	var list []image
	for _, file := range names {
		if n, err := ParseName(file); err == nil && strings.EqualFold(file[max(0, len(file)-len(nameSuffix)):], nameSuffix) {
			list = append(list, image{n, file})
		}
	}
	slices.SortFunc(list, func(a, b image) int {
		switch {
		case a.Usable() != b.Usable():
			if a.Usable() {
				return -1
			}
			return 1
		case a.Generation != b.Generation:
			return b.Generation - a.Generation
		}
		return strings.Compare(b.Slot, a.Slot)
	})
	return list, nil
}

// names lists the directory with the images.
func (u *uefi) names() ([]string, error) {
	f, err := fat.Open(u.part, u.part.size)
	if err != nil {
		return nil, err
	}
	for name := range f.Tree.All() {
		if strings.EqualFold(name, linuxDir) {
			return f.Tree.Children(name), nil
		}
	}
	return nil, fmt.Errorf("%s: %w", linuxDir, fs.ErrNotExist)
}

// has says whether there is a file or directory of that path.
func (u *uefi) has(path string) (bool, error) {
	f, err := fat.Open(u.part, u.part.size)
	if err != nil {
		return false, err
	}
	for name := range f.Tree.All() {
		if strings.EqualFold(name, path) {
			return true, nil
		}
	}
	return false, nil
}

func (u *uefi) state() (State, error) {
	list, err := u.images()
	if err != nil {
		return State{}, err
	}
	var s State
	for _, n := range list {
		switch {
		case !n.Counted && s.Slot == "":
			s.Slot = n.Slot
		case n.Counted && n.Left > 0 && s.Slot == "" && s.Trial == "":
			s.Trial, s.Tries = n.Slot, n.Left
		case n.Counted && n.Left == 0 && s.Failed == "":
			s.Failed = n.Slot
		}
	}
	if s.Slot == "" { // as on a disk that never came up
		s.Slot, s.Trial, s.Tries = s.Trial, "", 0
	}
	if s.Slot == "" {
		return State{}, fmt.Errorf("%w: %s has no image that can be started", ErrNoSlots, linuxDir)
	}
	return s, nil
}

// States returns what each boot loader boots; nil where there is none.
func (d *Disk) States() (bios, uefi *State, err error) {
	if d.bios != nil {
		s, err := d.bios.state()
		if err != nil {
			return nil, nil, fmt.Errorf("BOOT: %w", err)
		}
		bios = &s
	}
	if d.uefi != nil {
		s, err := d.uefi.state()
		if err != nil {
			return nil, nil, fmt.Errorf("EFI: %w", err)
		}
		uefi = &s
	}
	return bios, uefi, nil
}

// State returns what the disk boots, from whatever firmware. A slot that one boot
// loader has on trial and the other has confirmed is confirmed: the power failed
// in between. If each has another one confirmed, State fails with ErrDisagree.
func (d *Disk) State() (State, error) {
	b, u, err := d.States()
	switch {
	case err != nil:
		return State{}, err
	case u == nil:
		return *b, nil
	case b == nil:
		return *u, nil
	case b.Slot == u.Slot:
		s := *b
		if u.Trial != "" && (s.Trial == "" || u.Tries > s.Tries) {
			s.Trial, s.Tries = u.Trial, u.Tries
		}
		if s.Failed == "" {
			s.Failed = u.Failed
		}
		return s, nil
	case b.Slot == u.Trial:
		return State{Slot: b.Slot}, nil
	case u.Slot == b.Trial:
		return State{Slot: u.Slot}, nil
	}
	return State{}, fmt.Errorf("%w: GRUB boots slot %s, systemd-boot slot %s; boot the disk, or run 'kiln rollback --to SLOT'", ErrDisagree, b.Slot, u.Slot)
}

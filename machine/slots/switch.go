package slots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/machine/layers"
)

// System is what a slot holds.
type System struct {
	Kernel    extent.Source
	Initramfs extent.Source
	Layers    extent.Source // nil if they are in the initramfs
	Config    []byte        // of GRUB, see grub.EncodeSlot
	UKI       extent.Source
	Loader    string // that starts UKI, its path on EFI; may be ""
	Time      int64  // of the files, seconds since 1970
}

// newSuffix is that of an image that is being written; systemd-boot does not look
// at it.
const newSuffix = ".new"

// Upgrade writes a system into the slot that is not confirmed and puts it on
// trial. make is told the slot. Nothing is written if there is no room.
//
// Until the end the disk boots what it booted before, but for a slot that was on
// trial: that is the one that is overwritten, and given up first. The error of
// Upgrade changes nothing of that.
//
// Progress, which may be nil, is told of every n bytes that were written or read
// back; see Size.
func (d *Disk) Upgrade(ctx context.Context, make func(slot string) (*System, error), progress func(int64)) (slot string, err error) {
	state, err := d.State()
	if err != nil {
		return "", err
	}
	slot = grub.Other(state.Slot)
	s, err := make(slot)
	if err != nil {
		return "", err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	w := &upgrade{disk: d, system: s, keep: state.Slot, slot: slot, progress: progress}
	for _, step := range []func(context.Context) error{w.check, w.retire, w.write, w.verify} {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if err := step(ctx); err != nil {
			return "", fmt.Errorf("slot %s: %w; the disk boots slot %s", slot, err, state.Slot)
		}
	}
	if err := w.trial(); err != nil {
		return "", fmt.Errorf("slot %s: %w; the disk boots slot %s, perhaps after trying slot %s", slot, err, state.Slot, slot)
	}
	return slot, nil
}

// Size returns the number of bytes that Upgrade tells progress of.
func (d *Disk) Size(s *System) int64 {
	var n int64
	if d.bios != nil {
		n += s.Kernel.Size() + s.Initramfs.Size()
	}
	if d.boot != nil && s.Layers != nil {
		n += s.Layers.Size()
	}
	if d.uefi != nil {
		n += s.UKI.Size()
	}
	return 2 * n
}

type upgrade struct {
	disk       *Disk
	system     *System
	keep, slot string
	fresh      string // path of the new image on EFI
	name       Name   // it will have
	progress   func(int64)
}

// files are those on BOOT. The last one makes the others valid.
func (w *upgrade) files() []ext4.File {
	s := w.system
	var files []ext4.File
	if w.disk.bios != nil {
		files = append(files,
			ext4.File{Name: kernel, Content: w.watch(s.Kernel), ModTime: s.Time},
			ext4.File{Name: initrd, Content: w.watch(s.Initramfs), ModTime: s.Time})
	}
	l := ext4.File{Name: layers.File, ModTime: s.Time}
	if s.Layers != nil {
		l.Content = w.watch(s.Layers)
	}
	return append(files, l, ext4.File{Name: grub.SlotConfigName, Content: extent.Bytes(s.Config), ModTime: s.Time})
}

// watch tells progress of what is read.
func (w *upgrade) watch(src extent.Source) extent.Source { return &watched{src, w.progress} }

type watched struct {
	extent.Source
	progress func(int64)
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.Source.ReadAt(p, off)
	w.progress(int64(n))
	return n, err
}

// check looks for the loader, and for room.
func (w *upgrade) check(context.Context) error {
	if u := w.disk.uefi; u != nil && w.system.Loader != "" {
		ok, err := u.has(w.system.Loader)
		if err != nil {
			return fmt.Errorf("EFI: %w", err)
		}
		if !ok {
			return fmt.Errorf("EFI: %w: it has no %s; compose the system for the disk's architecture", ErrLoader, w.system.Loader)
		}
	}
	if w.disk.boot == nil && w.system.Layers != nil {
		return ErrNoBOOT
	}
	if b := w.disk.boot; b != nil {
		if err := b.edit.Check(w.slot, w.files()); err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
	}
	u := w.disk.uefi
	if u == nil {
		return nil
	}
	list, err := u.images()
	if err != nil {
		return fmt.Errorf("EFI: %w", err)
	}
	w.name = Name{Generation: 1, Slot: w.slot, Counted: true, Left: Tries}
	for _, n := range list {
		w.name.Generation = max(w.name.Generation, n.Generation+1)
	}
	w.fresh = path.Join(linuxDir, strings.TrimSuffix(Name{Generation: w.name.Generation, Slot: w.slot}.String(), ".efi")+newSuffix)
	free := u.edit.Free()
	goes, err := u.leftovers(w.slot)
	if err != nil {
		return fmt.Errorf("EFI: %w", err)
	}
	for _, g := range goes {
		free += g.size
	}
	if need := w.system.UKI.Size() + slack; free < need {
		return fmt.Errorf("EFI: %w", &fat.SpaceError{Need: need, Have: free})
	}
	return nil
}

// slack is for rounding to clusters, and for a directory that grows.
const slack = 128 << 10

// leftover is a file that an upgrade removes.
type leftover struct {
	file string
	size int64
}

// leftovers are the images of a slot, and what interrupted upgrades have left.
func (u *uefi) leftovers(slot string) ([]leftover, error) {
	f, err := fat.Open(u.part, u.part.size)
	if err != nil {
		return nil, err
	}
	var out []leftover
	for name, ino := range f.Tree.All() {
		dir, file := path.Split(name)
		if !strings.EqualFold(strings.TrimSuffix(dir, "/"), linuxDir) || !ino.Mode.IsRegular() {
			continue
		}
		plain, fresh := strings.CutSuffix(strings.ToLower(file), newSuffix)
		n, err := ParseName(plain)
		if err == nil && (fresh || n.Slot == slot) {
			out = append(out, leftover{name, ino.Size()})
		}
	}
	return out, nil
}

// retire makes sure that nothing boots the slot that will be written.
func (w *upgrade) retire(context.Context) error {
	if b := w.disk.bios; b != nil {
		env, err := b.env()
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
		kept, err := env.Confirm(w.keep)
		if err == nil {
			err = b.store(env, kept)
		}
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
	}
	u := w.disk.uefi
	if u == nil {
		return nil
	}
	if err := u.confirm(w.keep); err != nil {
		return fmt.Errorf("EFI: %w", err)
	}
	goes, err := u.leftovers(w.slot)
	if err != nil {
		return fmt.Errorf("EFI: %w", err)
	}
	for _, g := range goes {
		if err := u.edit.Remove(g.file); err != nil {
			return fmt.Errorf("EFI: %w", err)
		}
	}
	return nil
}

// write writes the system, without anything that makes a boot loader look at it.
func (w *upgrade) write(ctx context.Context) error {
	if b := w.disk.boot; b != nil {
		if err := b.edit.Rewrite(ctx, w.slot, w.files()); err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
	}
	if u := w.disk.uefi; u != nil {
		uki := w.watch(w.system.UKI)
		if err := u.edit.Create(ctx, w.fresh, extent.Reader(uki), uki.Size(), w.system.Time); err != nil {
			return fmt.Errorf("EFI: %w", err)
		}
	}
	return nil
}

// ErrVerify is wrapped by the error for a slot that does not hold what was
// written.
var ErrVerify = errors.New("the disk does not give back what was written")

// verify reads the system back.
func (w *upgrade) verify(ctx context.Context) error {
	if b := w.disk.boot; b != nil {
		for _, f := range w.files() {
			got, err := b.edit.Content(w.slot + "/" + f.Name)
			if err != nil {
				return fmt.Errorf("BOOT: %w", err)
			}
			want := f.Content
			switch o, ok := want.(*watched); {
			case ok:
				want = o.Source
			case want == nil:
				want = extent.Bytes(nil)
			}
			if err := w.compare(ctx, "BOOT: "+f.Name, got, want); err != nil {
				return err
			}
		}
	}
	u := w.disk.uefi
	if u == nil {
		return nil
	}
	f, err := fat.Open(u.part, u.part.size)
	if err != nil {
		return fmt.Errorf("EFI: %w", err)
	}
	for name, ino := range f.Tree.All() {
		if strings.EqualFold(name, w.fresh) {
			return w.compare(ctx, "EFI: "+name, ino.Content, w.system.UKI)
		}
	}
	return fmt.Errorf("%w: EFI has no %s", ErrVerify, w.fresh)
}

// compare reads both, and tells progress of the one that is on the disk.
func (w *upgrade) compare(ctx context.Context, what string, got, want extent.Source) error {
	var sums [2][]byte
	for i, src := range []extent.Source{w.watch(got), want} {
		h := sha256.New()
		r := extent.Reader(src)
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := io.CopyN(h, r, 4<<20)
			if err != nil && err != io.EOF {
				return err
			}
			if n == 0 || err == io.EOF {
				break
			}
		}
		sums[i] = h.Sum(nil)
	}
	if got.Size() != want.Size() || !bytes.Equal(sums[0], sums[1]) {
		return fmt.Errorf("%w: %s; replace the disk", ErrVerify, what)
	}
	return nil
}

// trial switches, with one sector for each boot loader.
func (w *upgrade) trial() error {
	if u := w.disk.uefi; u != nil {
		if err := u.edit.Rename(w.fresh, path.Join(linuxDir, w.name.String())); err != nil {
			return fmt.Errorf("EFI: %w", err)
		}
	}
	if b := w.disk.bios; b != nil {
		env, err := b.env()
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
		next, err := env.With("failed", "").Try(w.slot, Tries)
		if err == nil {
			err = b.store(env, next)
		}
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
	}
	return nil
}

// Confirm makes a slot the one that is booted from now on: the system in it is
// up. It writes nothing if that is so already.
func (d *Disk) Confirm(slot string) error {
	if slot != grub.SlotA && slot != grub.SlotB {
		return fmt.Errorf("%w: %q, want A or B", ErrSlot, slot)
	}
	if u := d.uefi; u != nil {
		if err := u.confirm(slot); err != nil {
			return fmt.Errorf("EFI: %w", err)
		}
	}
	if b := d.bios; b != nil {
		env, err := b.env()
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
		if s := env.State(); s.Slot == slot && s.Trial == "" {
			return nil
		}
		if !b.whole(slot) {
			return fmt.Errorf("BOOT: slot %s: %w", slot, ErrNoSystem)
		}
		next, err := env.Confirm(slot)
		if err == nil {
			err = b.store(env, next)
		}
		if err != nil {
			return fmt.Errorf("BOOT: %w", err)
		}
	}
	return nil
}

// confirm gives the slot's newest image the name of one that is not counted and
// that is before all others. What is before it now has no tries any more then, so
// that it takes one rename.
func (u *uefi) confirm(slot string) error {
	list, err := u.images()
	if err != nil {
		return err
	}
	var mine *image
	above := 0 // the highest generation of the other slot that would be booted
	for i := range list {
		switch n := &list[i]; {
		case n.Slot != slot:
			if n.Usable() {
				above = max(above, n.Generation)
			}
		case mine == nil || n.Generation > mine.Generation:
			mine = n
		}
	}
	if mine == nil {
		return fmt.Errorf("slot %s: %w", slot, ErrNoSystem)
	}
	name := Name{Generation: mine.Generation, Slot: slot}
	if above >= name.Generation {
		name.Generation = above + 1
	}
	if name == mine.Name {
		return nil
	}
	return u.edit.Rename(path.Join(linuxDir, mine.file), path.Join(linuxDir, name.String()))
}

// Rollback makes the disk boot the other slot: the one that was confirmed, if
// there is one on trial, otherwise the one before. It returns the slot.
func (d *Disk) Rollback() (string, error) {
	state, err := d.State()
	if err != nil {
		return "", err
	}
	slot := grub.Other(state.Slot)
	if state.Trial != "" {
		slot = state.Slot
	}
	return slot, d.Confirm(slot)
}

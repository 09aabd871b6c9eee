package imager

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/iso"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	// isoDir is where the kernel and GRUB's files are in an ISO image.
	isoDir = "boot/"
)

// isoArgs keep a node from looking for the disk it was started from, and tell it
// from which medium it can install.
func (i *Image) isoArgs() string {
	args := "kiln.disk=none kiln.medium=" + i.id.uuid("iso disk").String()
	if i.request.ImageCache != nil {
		args += " kiln.imagecache=medium"
	}
	return args
}

// isoMap lays out the image of a CD that boots from BIOS and UEFI, also when it is
// written to a USB stick. What boots is all in the initramfs; a node that was
// started from it has no disk of its own, and can install onto one.
func isoMap(ctx context.Context, i *Image) (*extent.Map, error) {
	r := i.request
	machine, err := arch.For(r.Profile.Arch)
	if err != nil {
		return nil, err
	}
	a, err := i.diskless()
	if err != nil {
		return nil, err
	}
	options := iso.Options{
		VolumeID: "KILN", Epoch: r.Epoch,
		DiskID: i.id.uuid("iso disk"), FilesID: i.id.uuid("iso files"), EFIID: i.id.uuid("iso EFI"),
	}
	files := map[string]tree.Content{}
	if r.Profile.Disk.BootLoader != profiles.BIOS {
		if options.EFI, err = i.isoEFI(machine, *a); err != nil {
			return nil, fmt.Errorf("EFI: %w", err)
		}
		loader, err := r.Base.Part(base.Loader)
		if err != nil {
			return nil, err
		}
		files[machine.Removable] = loader.Content
	}
	if r.Profile.Disk.BootLoader != profiles.UEFI {
		if options.BIOS, err = isoBIOS(r.Base); err != nil {
			return nil, err
		}
		line, err := cmdline(r, r.Profile.Kernel, i.isoArgs())
		if err != nil {
			return nil, err
		}
		config := grub.Config{Serial: true, Entries: []grub.Entry{{
			Title: fmt.Sprintf("kiln %s (Linux %s)", r.Version, r.Base.Config.Release),
			Linux: "/" + isoDir + "vmlinuz", Initrd: "/" + isoDir + "initramfs", Args: line,
		}}}
		text, err := config.Encode()
		if err != nil {
			return nil, fmt.Errorf("grub.cfg: %w", err)
		}
		files[isoDir+"grub/grub.cfg"] = bytes.NewReader(text)
		files[isoDir+"vmlinuz"], files[isoDir+"initramfs"] = a.kernel, a.initramfs
	}
	t, err := fileTree(files, r.Epoch)
	if err != nil {
		return nil, err
	}
	if err := i.addSource(ctx, t); err != nil {
		return nil, err
	}
	if r.ImageCache != nil && t.Lookup(medium.ImageCache) == nil { // it does not install
		images, err := imageCacheTree(r, medium.ImageCache)
		if err != nil {
			return nil, err
		}
		if err := merge(t, images); err != nil {
			return nil, err
		}
	}
	return iso.Build(t, options)
}

// addSource adds what 'kiln install' installs, and kiln itself, to the files of an
// ISO image. What is large lies in the boot assets already, and is not stored
// again: the kernel, init's archive and the layers.
func (i *Image) addSource(ctx context.Context, t *tree.Tree) error {
	r := i.request
	if err := checkTool(r.Tool, r.Profile.Arch); err != nil {
		if r.Strict || !errors.Is(err, ErrRefused) {
			return err
		}
		i.warned.Do(func() { r.Log.Warn("the ISO image boots, but does not install: " + err.Error()) })
		return nil
	}
	tool := tree.New()
	if err := tool.Add(medium.Tool, &tree.Inode{Mode: 0o755, ModTime: r.Epoch, Content: r.Tool}); err != nil {
		return err
	}
	program, _, err := extensions.Layer(ctx, r.Cache, tool)
	if err != nil {
		return err
	}
	files := map[string]tree.Content{medium.Program: program.Content}
	if e := i.index; e != nil {
		record, content := cacheFiles(sourceCache, e.Key)
		files[record], files[content] = extent.Bytes(e.Record()), e.Content
	}
	more, err := fileTree(files, r.Epoch)
	if err != nil {
		return err
	}
	pieces, err := i.source(ctx)
	if err != nil {
		return err
	}
	for _, piece := range append(pieces, more) {
		if err := merge(t, piece); err != nil {
			return err
		}
	}
	return nil
}

// merge adds what is in piece to t. They may share directories.
func merge(t, piece *tree.Tree) error {
	for name, ino := range piece.All() {
		if old := t.Lookup(name); old != nil && old.Mode.IsDir() && ino.Mode.IsDir() {
			continue
		}
		if err := t.Add(name, ino); err != nil {
			return err
		}
	}
	return nil
}

// isoEFI is the file system with systemd-boot and the UKI.
func (i *Image) isoEFI(machine arch.Arch, assets assets) (extent.Source, error) {
	var err error
	if assets.uki, err = assets.unified(i.request, i.isoArgs()); err != nil {
		return nil, err
	}
	t, err := efiTree(i.request, machine, &assets, slot)
	if err != nil {
		return nil, err
	}
	options := fat.Options{SectorSize: 512, Label: "EFI", VolumeID: i.id.volumeID("iso EFI"), Time: i.request.Epoch}
	if options.Size, err = fat.MinSize(t, options); err != nil {
		return nil, err
	}
	options.Size = extent.Align(options.Size, mib)
	return fat.Build(t, options)
}

func isoBIOS(b *base.Base) (*iso.BIOS, error) {
	program, err := bootPart(b, base.GrubCD)
	if errors.Is(err, base.ErrPart) {
		return nil, refuse("the base has no boot program for CDs; build it with --grub-cd, or set disk.bootLoader: uefi")
	}
	if err != nil {
		return nil, err
	}
	code, err := bootPart(b, base.GrubBoot)
	if err != nil {
		return nil, err
	}
	var out iso.BIOS
	if out.Image, err = grub.ElTorito(program, iso.BIOSSector); err != nil {
		return nil, err
	}
	out.BootCode, err = grub.BootSector(code, 4*iso.BIOSSector+4)
	return &out, err
}

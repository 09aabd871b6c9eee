package imager

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/verity"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// onBoot returns the same stack with its layers in one file on BOOT, each with a
// hash tree, and the initramfs with what it takes to get at them.
func (s *stack) onBoot(ctx context.Context, r Request, modules [][]depmod.Module) (*stack, error) {
	out := &stack{layers: s.layers, list: s.list}
	out.list.Layers = nil
	var parts []extent.Source
	var at int64
	for _, l := range s.layers {
		// Equal layers of different images have equal trees, and no other has.
		salt, err := hex.DecodeString(l.SHA256)
		if err != nil {
			return nil, err
		}
		hashes, err := verity.New(ctx, l.content, salt)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Path, err)
		}
		y := l.Layer
		y.Verity = &layers.Verity{Offset: at, Salt: l.SHA256, Root: hex.EncodeToString(hashes.Root[:])}
		out.list.Layers = append(out.list.Layers, y)
		parts = append(parts, l.content, hashes)
		_, at = y.Span()
	}
	file, err := extent.Concat(verity.BlockSize, parts...)
	if err != nil {
		return nil, err
	}
	out.file = file
	out.modules, err = bootModules(ctx, r, modules)
	return out, err
}

// verityModules are what mounts the layers. The implementations of the hash are
// quicker than the kernel's own.
var verityModules = []string{"squashfs", "overlay", "dm_mod", "dm_verity"}

const hashAlias = "crypto-sha256"

// watchdogModule is the watchdog of machines without one, which stage 1 starts.
const watchdogModule = "softdog"

// diskDrivers are the directories with drivers for disks, and for what they are
// connected to.
var diskDrivers = []string{"ata", "block", "hv", "message", "mmc", "nvme", "pci", "scsi", "usb/host", "usb/storage", "virtio", "xen"}

// bootModules is a modules directory for the initramfs of an image whose layers
// are on a disk: with what mounts them, all disk drivers of the base, and those
// of the extensions for the profile's devices.
func bootModules(ctx context.Context, r Request, modules [][]depmod.Module) (*tree.Tree, error) {
	facts, err := r.Base.Modules()
	if err != nil {
		return nil, err
	}
	all := slices.Clone(facts.Modules)
	for _, m := range modules {
		all = append(all, m...)
	}
	entries := make([]module.Entry, len(all))
	for i, m := range all {
		entries[i] = module.Entry(m)
	}
	set := module.NewSet(entries, facts.Builtin)
	names := slices.Clone(verityModules)
	for _, n := range names {
		if !set.Builtin(n) && len(set.Lookup(n)) == 0 {
			return nil, refuse("disk.layers: boot needs the kernel module %s, which the base does not have; add it to the recipe, or leave the layers in RAM", n)
		}
	}
	if len(set.Lookup(watchdogModule)) > 0 {
		names = append(names, watchdogModule)
	}
	for _, m := range set.Lookup(hashAlias) {
		names = append(names, module.Name(m.Path))
	}
	for _, m := range all {
		if isDiskDriver(m) {
			names = append(names, module.Name(m.Path))
		}
	}
	for _, d := range r.Profile.Devices {
		for _, m := range set.Lookup(d.Modalias) {
			if !strings.HasPrefix(m.Path, "kernel/drivers/net/") {
				names = append(names, module.Name(m.Path))
			}
		}
	}
	chosen, err := set.Select(names...)
	if err != nil {
		return nil, err
	}
	return modulesTree(ctx, r, all, facts, chosen)
}

// isDiskDriver says whether the kernel's own module is for devices that are disks
// or lead to them. Without an alias no device would ask for it.
func isDiskDriver(m depmod.Module) bool {
	rest, ok := strings.CutPrefix(m.Path, "kernel/drivers/")
	return ok && slices.ContainsFunc(diskDrivers, func(dir string) bool { return strings.HasPrefix(rest, dir+"/") }) &&
		slices.ContainsFunc(m.Info.Aliases, func(a string) bool {
			return strings.Contains(a, ":") && !strings.HasPrefix(a, "devname:")
		})
}

// modulesTree has the chosen modules, their index and their firmware, from the
// root file system or the extension they are in.
func modulesTree(ctx context.Context, r Request, all []depmod.Module, facts *base.Modules, chosen *module.Selection) (*tree.Tree, error) {
	root, err := r.Base.Part(base.RootFS)
	if err != nil {
		return nil, err
	}
	below, err := squashfs.Open(root.Content, root.Content.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", base.RootFS, err)
	}
	trees := []*tree.Tree{below}
	for _, e := range r.Extensions {
		trees = append(trees, e.RootFS)
	}
	files := map[string]tree.Content{}
	add := func(name string) bool {
		for _, t := range slices.Backward(trees) {
			if ino := t.Lookup(name); ino != nil && ino.Mode.IsRegular() {
				files[name] = ino.Content
				return true
			}
		}
		return false
	}
	dir := extensions.ModulesDir + "/" + r.Base.Config.Release
	var index []depmod.Module
	for _, m := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !slices.Contains(chosen.Paths, m.Path) {
			continue
		}
		if !add(path.Join(dir, m.Path)) {
			return nil, refuse("disk.layers: boot: module %s is in the base's list of modules, and not in its root file system; build the base anew", m.Path)
		}
		index = append(index, m)
	}
	for _, f := range chosen.Firmware {
		for _, suffix := range []string{"", ".xz", ".zst"} {
			add("usr/lib/firmware/" + f + suffix) // drivers name more than there is
		}
	}
	res, err := depmod.Index(depmod.Input{Modules: index, Order: facts.Order, Builtin: facts.Builtin, BuiltinModinfo: facts.BuiltinModinfo})
	if err != nil {
		return nil, err
	}
	// What machine/modules reads.
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep"} {
		files[dir+"/"+name] = bytes.NewReader(res.Files[name])
	}
	files[dir+"/modules.builtin"] = bytes.NewReader(facts.Builtin)
	return fileTree(files, r.Epoch)
}

// hasBOOT says whether the disk has the partition BOOT: for GRUB, or for layers.
func hasBOOT(p *profiles.Profile) bool {
	return p.Disk.BootLoader != profiles.UEFI || p.Disk.Layers == profiles.OnBoot
}

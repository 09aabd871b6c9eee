package imager

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	mib = 1 << 20

	// minEphemeral is the size of EPHEMERAL in an image as small as its
	// payload. It grows on the node.
	minEphemeral = 128 * mib
	blockSize    = 4096 // of ext4
	biosSize     = 1 * mib

	// ephemeralJournal is the size of EPHEMERAL's journal, which stays what it
	// is when the file system grows. It is a hole in the image.
	ephemeralJournal = 32 * mib
)

// partition is one partition before it has a place on the disk; the zero value
// is an entry of the table that is not used.
type partition struct {
	label   string
	kind    gpt.GUID
	size    int64                                    // bytes, a multiple of 1 MiB
	content func(start int64) (extent.Source, error) // may depend on the offset on the disk; nil is zeros
	attrs   uint64
}

// partitions lays out the partitions of the disk in order; their contents are
// made when their places are known.
func partitions(r Request, machine arch.Arch, id identity, a *assets) ([]partition, error) {
	if err := a.checkPermanent(); err != nil {
		return nil, err
	}
	efi := partition{} // GRUB looks for BOOT in the third
	if r.Profile.Disk.BootLoader != profiles.BIOS {
		var err error
		if efi, err = efiPartition(r, machine, id, a); err != nil {
			return nil, err
		}
	}
	parts := []partition{efi}
	if r.Profile.Disk.BootLoader != profiles.UEFI {
		core, err := bootPart(r.Base, base.GrubCore)
		if err != nil {
			return nil, err
		}
		parts = append(parts, biosPartition(r, core))
	}
	if hasBOOT(r.Profile) {
		boot, err := bootPartition(r, id, a)
		if err != nil {
			return nil, err
		}
		parts = append(parts, boot)
	}
	metadata, err := metaPartition(r.Profile)
	if err != nil {
		return nil, err
	}
	parts = append(parts, metadata)
	parts = append(parts, statePartition(r, id))
	images, err := imageCachePartition(r, id)
	if err != nil {
		return nil, err
	}
	if images.size > 0 {
		parts = append(parts, images)
	}
	ephemeral := partition{label: disk.Ephemeral, kind: gpt.LinuxFilesystem, size: cmp.Or(int64(r.Profile.Disk.Partitions.Ephemeral), minEphemeral)}
	if r.Profile.Disk.Partitions.Ephemeral == 0 {
		ephemeral.attrs = gpt.GrowFileSystem
	}
	parts = append(parts, ephemeral)
	if err := fitDisk(r.Profile, parts); err != nil {
		return nil, err
	}
	last := &parts[len(parts)-1]
	last.content = func(int64) (extent.Source, error) {
		options := ext4Options(r, id, last.label, last.size)
		if last.size >= minEphemeral {
			options.Journal = ephemeralJournal
		}
		return ext4.Build(tree.New(), options)
	}
	return parts, nil
}

// statePartition has the machine configuration, if there is one.
func statePartition(r Request, id identity) partition {
	size := int64(r.Profile.Disk.Partitions.State)
	return partition{label: disk.State, kind: gpt.LinuxFilesystem, size: size, content: func(int64) (extent.Source, error) {
		t, err := configTree(r)
		if err != nil {
			return nil, err
		}
		return ext4.Build(t, ext4Options(r, id, disk.State, size))
	}}
}

// metaPartition holds the profile's values, or nothing.
func metaPartition(p *profiles.Profile) (partition, error) {
	part := partition{label: meta.Label, kind: gpt.LinuxFilesystem, size: meta.Size}
	values, err := p.MetaValues()
	if err != nil || len(values) == 0 {
		return part, err
	}
	data, err := meta.Encode(values)
	part.content = func(int64) (extent.Source, error) { return extent.Bytes(data), nil }
	return part, err
}

// fitDisk gives EPHEMERAL, the last partition, what is left of a disk whose size
// is given, or has to be a multiple of something.
func fitDisk(p *profiles.Profile, parts []partition) error {
	need := diskSize(parts)
	size := int64(p.Disk.Size)
	if size == 0 {
		size = extent.Align(max(need, int64(p.Disk.Minimum)), int64(max(p.Disk.Multiple, profiles.MiB)))
	}
	if most := int64(p.Disk.Maximum); most > 0 && size > most {
		return refuse("the disk has %d MiB, %s takes at most %s; give smaller partitions or leave extensions out", size/mib, p.Platform, p.Disk.Maximum)
	}
	if need > size {
		var list string
		for _, part := range parts {
			if part.size == 0 {
				continue
			}
			list += fmt.Sprintf(" %s %d MiB,", part.label, part.size/mib)
		}
		return refuse("disk.size %s is too small: %d MiB are needed (%s partition tables 2 MiB); enlarge it or give smaller partitions",
			p.Disk.Size, need/mib, list[1:])
	}
	if p.Disk.Partitions.Ephemeral == 0 {
		parts[len(parts)-1].size += size - need
	}
	return nil
}

// diskSize is the size of a disk with these partitions: 1 MiB before the first
// and after the last for the two partition tables.
func diskSize(parts []partition) int64 {
	size := int64(2 * mib)
	for _, p := range parts {
		size += p.size
	}
	return size
}

func efiPartition(r Request, machine arch.Arch, id identity, a *assets) (partition, error) {
	options := func(size, start int64) fat.Options {
		return fat.Options{
			Size: size, SectorSize: int(r.Profile.Disk.SectorSize), Label: "EFI", VolumeID: id.volumeID("EFI"),
			Time: r.Epoch, HiddenSectors: uint32(start / r.Profile.Disk.SectorSize),
		}
	}
	full, err := efiTree(r, machine, a, "A", "B")
	if err != nil {
		return partition{}, err
	}
	least, err := fat.MinSize(full, options(0, 0))
	if err != nil {
		return partition{}, fmt.Errorf("EFI: %w", err)
	}
	size, err := sizeFor("efi", r.Profile.Disk.Partitions.EFI, least)
	if err != nil {
		return partition{}, err
	}
	t, err := efiTree(r, machine, a, slot)
	if err != nil {
		return partition{}, err
	}
	return partition{label: "EFI", kind: gpt.EFISystem, size: size, content: func(start int64) (extent.Source, error) {
		return fat.Build(t, options(size, start))
	}}, nil
}

// sizeFor is the size of a partition whose file system needs at least the given
// number of bytes for two slots: what the profile says, otherwise 20 % more.
func sizeFor(key string, want profiles.Size, least int64) (int64, error) {
	if want == 0 {
		return extent.Align(least+least/5, mib), nil
	}
	if int64(want) < least {
		return 0, refuse("disk.partitions.%s: %s is too small: two slots need %d MiB; enlarge it or leave it out",
			key, want, extent.Align(least, mib)/mib)
	}
	return int64(want), nil
}

func biosPartition(r Request, core []byte) partition {
	return partition{label: "BIOS", kind: gpt.BIOSBoot, size: biosSize, attrs: gpt.LegacyBIOSBootable, content: func(start int64) (extent.Source, error) {
		patched, err := grub.Core(core, uint64(start/r.Profile.Disk.SectorSize))
		if err != nil {
			return nil, err
		}
		return extent.Bytes(patched), nil
	}}
}

// bootPartition has the same room for both slots: for what the first one holds and
// 20 % more or, if the profile says how large BOOT is, for half of it.
func bootPartition(r Request, id identity, a *assets) (partition, error) {
	t, err := bootTree(r, id, a)
	if err != nil {
		return partition{}, err
	}
	var others, payload int64 // of the files before the layers
	if r.Profile.Disk.BootLoader != profiles.UEFI {
		others = extent.Align(a.kernel.Size(), blockSize) + extent.Align(a.initramfs.Size(), blockSize)
	}
	payload = others
	if a.file != nil {
		payload += extent.Align(a.file.Size(), blockSize)
	}
	options := func(room int64) ext4.Options {
		o := ext4Options(r, id, "BOOT", int64(r.Profile.Disk.Partitions.BOOT))
		o.Preallocate = map[string]int64{
			slot + "/" + layers.File:                     extent.Align(room-others, blockSize),
			grub.Other(slot) + "/" + layers.File:         extent.Align(room, blockSize),
			slot + "/" + grub.SlotConfigName:             grub.MaxSlotConfig,
			grub.Other(slot) + "/" + grub.SlotConfigName: grub.MaxSlotConfig,
		}
		return o
	}
	room := payload + payload/5
	least, err := ext4.MinSize(t, options(payload))
	if err != nil {
		return partition{}, fmt.Errorf("BOOT: %w", err)
	}
	size := int64(r.Profile.Disk.Partitions.BOOT)
	if size == 0 {
		full, err := ext4.MinSize(t, options(room))
		if err != nil {
			return partition{}, fmt.Errorf("BOOT: %w", err)
		}
		size = extent.Align(full, mib)
	} else {
		if _, err := sizeFor("boot", r.Profile.Disk.Partitions.BOOT, least); err != nil {
			return partition{}, err
		}
		if room, err = largestRoom(payload, payload+(size-least)/2, func(room int64) (int64, error) { return ext4.MinSize(t, options(room)) }, size); err != nil {
			return partition{}, fmt.Errorf("BOOT: %w", err)
		}
	}
	return partition{label: "BOOT", kind: gpt.LinuxFilesystem, size: size, content: func(int64) (extent.Source, error) {
		o := options(room)
		o.Size = size
		return ext4.Build(t, o)
	}}, nil
}

// largestRoom returns a room between least, which fits, and most for which need is
// not more than size: within a hundredth of the largest there is.
func largestRoom(least, most int64, need func(int64) (int64, error), size int64) (int64, error) {
	for most-least > max(least/100, mib) {
		middle := least + (most-least)/2
		n, err := need(middle)
		if err != nil {
			return 0, err
		}
		if n <= size {
			least = middle
		} else {
			most = middle
		}
	}
	return least, nil
}

func ext4Options(r Request, id identity, label string, size int64) ext4.Options {
	return ext4.Options{Size: size, Label: label, UUID: id.uuid("ext4 " + label), Time: r.Epoch}
}

// assemble gives every partition its place and puts the partition tables
// around them.
func assemble(r Request, id identity, parts []partition) (*extent.Map, *gpt.Table, error) {
	size := max(diskSize(parts), int64(r.Profile.Disk.Size), int64(r.Profile.Disk.Minimum))
	size = extent.Align(size, int64(max(r.Profile.Disk.Multiple, profiles.MiB)))
	table := &gpt.Table{DiskID: id.uuid("disk"), SectorSize: r.Profile.Disk.SectorSize, Size: size}
	whole := extent.New(size)
	start := int64(mib)
	for _, p := range parts {
		if p.size == 0 {
			table.Partitions = append(table.Partitions, gpt.Partition{})
			continue
		}
		table.Partitions = append(table.Partitions, gpt.Partition{
			Type: p.kind, ID: id.uuid("partition " + p.label), Name: p.label, Start: start, Size: p.size, Attributes: p.attrs,
		})
		if p.content != nil {
			content, err := p.content(start)
			if err == nil {
				err = putPartition(whole, start, p.size, content)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("partition %s: %w", p.label, err)
			}
		}
		if p.kind == gpt.BIOSBoot {
			code, err := bootPart(r.Base, base.GrubBoot)
			if err != nil {
				return nil, nil, err
			}
			if table.BootCode, err = grub.BootSector(code, uint64(start/r.Profile.Disk.SectorSize)); err != nil {
				return nil, nil, err
			}
		}
		start += p.size
	}
	tables, err := table.Map()
	if err != nil {
		return nil, nil, err
	}
	return whole, table, whole.Put(0, tables)
}

var errTooLarge = errors.New("content is larger than the partition")

func putPartition(whole *extent.Map, start, size int64, content extent.Source) error {
	if content.Size() > size {
		return fmt.Errorf("%w: %d bytes in %d", errTooLarge, content.Size(), size)
	}
	return whole.Put(start, content)
}

package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/efi"
)

// registerBoot makes the firmware of this machine boot the disk first. Without
// that it finds the disk by the removable path, sooner or later, so that nothing
// here is a failure.
func registerBoot(r *progress.Reporter, host blockdev.Host, dev *blockdev.Device, table *gpt.Table, architecture string) {
	partition, ok := efi.SystemPartition(table)
	if !ok || dev.Kind != blockdev.Disk || architecture != runtime.GOARCH {
		return
	}
	number, err := func() (uint16, error) {
		machine, err := arch.For(architecture)
		if err != nil {
			return 0, err
		}
		v, err := efi.Open()
		if err != nil {
			return 0, err
		}
		defer v.Close()
		return efi.Register(v, efi.Entry{Description: "kiln", Partition: partition, Path: machine.Removable, Present: partitionsOf(host, table)})
	}()
	switch {
	case errors.Is(err, efi.ErrNoVariables):
		r.Logger().Info("no boot entry was made: this machine was not booted by UEFI; the disk boots by the removable path")
	case err != nil:
		r.Logger().Warn(fmt.Sprintf("no boot entry was made: %v; the disk boots by the removable path", err))
	default:
		r.Logger().Info(fmt.Sprintf("boot entry Boot%04X is the first", number))
	}
}

// partitionsOf returns the GUIDs of the partitions of all disks and of a new
// table, or nil if some are not known.
func partitionsOf(host blockdev.Host, table *gpt.Table) []uuid.UUID {
	devices, err := host.List()
	if err != nil {
		return nil
	}
	var present []uuid.UUID
	for _, p := range table.Partitions {
		present = append(present, p.ID)
	}
	for _, d := range devices {
		switch d.Kind {
		case blockdev.Disk, blockdev.Loop, blockdev.RAID, blockdev.Mapper:
		default:
			continue
		}
		if d.Size == 0 {
			continue
		}
		if err := host.Inspect(d); err != nil || d.Contents.Damaged != "" {
			return nil
		}
		for _, p := range d.Contents.Partitions {
			if id, err := uuid.Parse(p.ID); err == nil {
				present = append(present, id)
			}
		}
	}
	return present
}

// clearLoaderEntry takes back what systemd-boot was told to start, on the machine
// that runs from the disk: it would start that even if it has failed.
func clearLoaderEntry(r *progress.Reporter, table *gpt.Table) {
	partition, ok := efi.SystemPartition(table)
	if !ok {
		return
	}
	v, err := efi.Open()
	if err != nil {
		return
	}
	defer v.Close()
	id, err := efi.LoaderString(v.FS(), efi.LoaderDevicePartUUID)
	if err != nil || !strings.EqualFold(id, partition.ID.String()) {
		return
	}
	for _, name := range []string{efi.LoaderEntryDefault, efi.LoaderEntryOneShot} {
		if err := efi.SetLoaderEntry(v, name, ""); err != nil {
			r.Logger().Warn(fmt.Sprintf("the boot loader may start another system: %v", err))
		}
	}
}

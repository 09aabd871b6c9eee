package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/container"
	"github.com/kilnhq/kiln/imager/inspect"
	"github.com/kilnhq/kiln/imager/vm"
)

func newRun() *cobra.Command {
	var f struct {
		firmware, bus, arch, accel string
		memory, sectorSize         int
		keep                       bool
	}
	var buses []string
	for _, b := range vm.Buses() {
		buses = append(buses, string(b))
	}
	c := &cobra.Command{
		Use:   "run IMAGE",
		Short: "Boot an image in QEMU, with its console in the terminal",
		Long: `Boot an image in QEMU, with the serial console in the terminal: a disk in a
format that QEMU knows, an ISO image as a CD, or a directory made with --format
pxe from the network. Leave with Ctrl-A X. Without --keep what the machine writes
is forgotten.`,
		Example: "  kiln run metal.raw\n  kiln run metal.iso\n  kiln run metal.pxe --firmware bios\n  kiln run metal.raw --firmware bios --bus ahci\n  kiln run metal-4k.raw --sector-size 4096",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			config := vm.Config{
				Image: args[0], Arch: f.arch, Firmware: vm.Firmware(f.firmware), Bus: vm.Bus(f.bus),
				SectorSize: f.sectorSize, Memory: f.memory, Accel: f.accel, Snapshot: !f.keep,
			}
			if fi, err := os.Stat(args[0]); err == nil && fi.IsDir() {
				config.Image, config.Netboot = "", args[0]
				return vm.Run(c.Context(), config)
			}
			disk, err := openContainer(args[0])
			if err != nil {
				return err
			}
			defer disk.Close()
			if config.Format, err = qemuFormat(disk.Format); err != nil {
				return err
			}
			if f.arch == "" {
				config.Arch = imageArch(disk)
			}
			if !c.Flags().Changed("bus") && strings.HasSuffix(args[0], ".iso") {
				config.Bus, config.Snapshot = vm.CDROM, false
			}
			return vm.Run(c.Context(), config)
		},
	}
	c.Flags().StringVar(&f.firmware, "firmware", string(vm.UEFI), "firmware: bios or uefi")
	c.Flags().StringVar(&f.bus, "bus", string(vm.VirtioBlk), "how the disk is attached: "+strings.Join(buses, ", "))
	c.Flags().IntVar(&f.sectorSize, "sector-size", 512, "sector size of the disk: 512 or 4096")
	c.Flags().IntVar(&f.memory, "memory", 1024, "memory in MiB")
	c.Flags().StringVar(&f.arch, "arch", "", "architecture: amd64 or arm64 (default: that of the UKIs in the image, or amd64)")
	c.Flags().StringVar(&f.accel, "accel", "tcg", "QEMU's accelerator: tcg or kvm")
	c.Flags().BoolVar(&f.keep, "keep", false, "keep what the machine writes to the disk")
	return c
}

// imageArch is the architecture of what UEFI boots from the disk, or "".
func imageArch(disk *container.Disk) string {
	img, err := inspect.Read(disk.Map, disk.Map.Size())
	if err != nil {
		return "" // it may be another system's
	}
	for _, e := range img.Entries {
		if e.Arch != "" {
			return e.Arch
		}
	}
	return ""
}

// qemuFormat is what QEMU calls a format.
func qemuFormat(format string) (string, error) {
	switch format {
	case "raw", "qcow2", "vhdx", "vmdk":
		return format, nil
	case "vhd", "vhd-dynamic":
		return "vpc", nil
	}
	return "", fmt.Errorf("%w: QEMU does not boot from %s; make it another format with 'kiln convert'", imager.ErrRefused, format)
}

package main

import (
	"strings"

	"github.com/spf13/cobra"

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
		Long: `Boot a raw disk image in QEMU, with the serial console in the terminal. Leave
with Ctrl-A X. Without --keep what the machine writes is forgotten.`,
		Example: "  kiln run metal.raw\n  kiln run metal.raw --firmware bios --bus ahci\n  kiln run metal-4k.raw --sector-size 4096",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			return vm.Run(c.Context(), vm.Config{
				Image: args[0], Arch: f.arch, Firmware: vm.Firmware(f.firmware), Bus: vm.Bus(f.bus),
				SectorSize: f.sectorSize, Memory: f.memory, Accel: f.accel, Snapshot: !f.keep,
			})
		},
	}
	c.Flags().StringVar(&f.firmware, "firmware", string(vm.UEFI), "firmware: bios or uefi")
	c.Flags().StringVar(&f.bus, "bus", string(vm.VirtioBlk), "how the disk is attached: "+strings.Join(buses, ", "))
	c.Flags().IntVar(&f.sectorSize, "sector-size", 512, "sector size of the disk: 512 or 4096")
	c.Flags().IntVar(&f.memory, "memory", 1024, "memory in MiB")
	c.Flags().StringVar(&f.arch, "arch", "amd64", "architecture: amd64 or arm64")
	c.Flags().StringVar(&f.accel, "accel", "tcg", "QEMU's accelerator: tcg or kvm")
	c.Flags().BoolVar(&f.keep, "keep", false, "keep what the machine writes to the disk")
	return c
}

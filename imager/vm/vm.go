// Package vm boots disk images and kernels in QEMU, for 'kiln run' and for the
// tests that watch what an image prints while it starts.
//
// A machine has one processor, one disk to boot from, a serial port as its only
// console and no way out to the network. Processors are emulated (TCG) unless
// the caller asks for another accelerator, so that a boot is the same wherever
// it runs. One processor is no limitation but on purpose: the emulation of more
// in QEMU 7.2 races with the kernel where it rewrites its own code.
//
// A machine is judged by what it prints, never by QEMU's exit status, which is 0
// after a panic as well.
package vm

import (
	"errors"
	"fmt"
	"slices"
)

// Firmware is what starts the boot loader.
type Firmware string

// The firmwares.
const (
	BIOS Firmware = "bios" // SeaBIOS, only amd64 has it
	UEFI Firmware = "uefi" // OVMF or AAVMF
)

// Bus is what the disk to boot from is attached to.
type Bus string

// The buses. The firmware of arm64 machines has no driver for AHCI, and their CDs
// are on VirtioSCSI.
const (
	VirtioBlk  Bus = "virtio-blk"
	VirtioSCSI Bus = "virtio-scsi"
	AHCI       Bus = "ahci"
	NVMe       Bus = "nvme"
	USB        Bus = "usb"
	CDROM      Bus = "cdrom" // which is read only
)

// Buses lists all buses.
func Buses() []Bus { return []Bus{VirtioBlk, VirtioSCSI, AHCI, NVMe, USB, CDROM} }

// Config is a machine.
type Config struct {
	Arch       string   // amd64 or arm64; "" is amd64
	Image      string   // file or device to boot from; may be "" if there is a Kernel
	Format     string   // of Image, as QEMU names it; "" is raw
	Firmware   Firmware // "" is UEFI
	Bus        Bus      // of Image; "" is VirtioBlk
	SectorSize int      // of Image, in bytes, logical and physical: 512 or 4096; 0 is 512
	Snapshot   bool     // leave Image as it is and forget what is written to it
	Vars       string   // file with the variables that UEFI starts from, which stays as it is; "" are the firmware's own

	// Disks are further images, raw, on VirtioBlk with 512-byte sectors. Snapshot
	// applies to them too.
	Disks []string

	// Kernel, with Initrd and Cmdline, is started without a boot loader.
	Kernel, Initrd, Cmdline string

	// Netboot is a directory whose boot.ipxe is booted from the network, by the
	// network card's iPXE and TFTP; "" is none.
	Netboot string

	// Forward leads from ports of this machine's loopback address to TCP ports of
	// the other one.
	Forward map[int]int

	// Screen is a VGA card, which only amd64 has; see Machine.Text.
	Screen bool

	// Serve has a command for each address of the machine's network, as
	// 10.0.2.100:80, that answers a connection to it with its standard input and
	// output. Network is that network; "" is 10.0.2.0/24.
	Serve   map[string]string
	Network string

	// More are arguments of QEMU besides those that all the others make.
	More []string

	// Restart lets the machine restart itself. What failed in one start is no
	// failure of the machine then, unless there is nothing left to start.
	Restart bool

	Memory int    // in MiB; 0 is 1024
	Accel  string // accelerator as QEMU names it; "" is tcg
	UUID   string // of the machine, as its firmware says; "" is none
	CPU    string // processor as QEMU names it; "" is one with all that the accelerator has
	CPUs   int    // how many; 0 is 1
}

// ErrConfig is wrapped by errors for a Config that is no machine.
var ErrConfig = errors.New("virtual machine")

// withDefaults returns the Config with its zero values replaced, and checks it.
func (c Config) withDefaults() (Config, arch, error) {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Arch, "amd64")
	def(&c.Format, "raw")
	def((*string)(&c.Firmware), string(UEFI))
	def((*string)(&c.Bus), string(VirtioBlk))
	def(&c.Accel, "tcg")
	if c.SectorSize == 0 {
		c.SectorSize = 512
	}
	if c.Memory == 0 {
		c.Memory = 1024
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	fail := func(format string, args ...any) (Config, arch, error) {
		return c, arch{}, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)
	}
	a, ok := archs()[c.Arch]
	if !ok {
		return fail("architecture %q, want amd64 or arm64", c.Arch)
	}
	switch {
	case c.Image == "" && c.Kernel == "" && c.Netboot == "":
		return fail("nothing to boot, want an image, a kernel or a directory to boot from the network")
	case c.Kernel == "" && (c.Initrd != "" || c.Cmdline != ""):
		return fail("an initramfs or a command line, but no kernel to give it to")
	case c.Firmware != BIOS && c.Firmware != UEFI:
		return fail("firmware %q, want %s or %s", c.Firmware, BIOS, UEFI)
	case c.Firmware == BIOS && !a.bios:
		return fail("%s machines have no BIOS, want firmware %s", c.Arch, UEFI)
	case !slices.Contains(a.buses(), c.Bus):
		return fail("bus %q, want one of those that %s machines boot from: %v", c.Bus, c.Arch, a.buses())
	case c.Screen && !a.bios:
		return fail("%s machines have no VGA", c.Arch)
	case c.Netboot != "" && !a.netboot:
		return fail("QEMU has no iPXE for %s machines; boot the kernel and the initramfs themselves", c.Arch)
	case c.SectorSize != 512 && c.SectorSize != 4096:
		return fail("sectors of %d bytes, want 512 or 4096", c.SectorSize)
	case c.SectorSize != 512 && (c.Bus == AHCI || c.Firmware == BIOS && c.Kernel == ""):
		return fail("sectors of %d bytes: QEMU's %s disks and every BIOS have 512", c.SectorSize, AHCI)
	case c.Memory < 0:
		return fail("%d MiB of memory", c.Memory)
	case c.CPUs < 0:
		return fail("%d processors", c.CPUs)
	}
	return c, a, nil
}

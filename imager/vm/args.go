package vm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// arch is what differs between architectures.
type arch struct {
	qemu, qemuPackage string
	bios              bool
	machine, cpu      string
	args              []string // further ones
	firmware          []firmware
	firmwarePackage   string
	netboot           bool             // the network card's iPXE runs on it
	disks             map[Bus]diskArgs // on which the firmware finds a disk
}

// diskArgs are how a disk is attached: its controller, if it needs one, and its
// own device.
type diskArgs struct {
	controller, device string
}

// archs returns the architectures.
func archs() map[string]arch {
	const scsi = "virtio-scsi-pci,id=scsi"
	disks := func(more map[Bus]diskArgs) map[Bus]diskArgs {
		maps.Copy(more, map[Bus]diskArgs{
			VirtioBlk:  {"", "virtio-blk-pci"},
			VirtioSCSI: {scsi, "scsi-hd,bus=scsi.0"},
			NVMe:       {"", "nvme,serial=kiln"},
			USB:        {"qemu-xhci,id=usb", "usb-storage,bus=usb.0"},
		})
		return more
	}
	return map[string]arch{
		"amd64": {
			qemu: "qemu-system-x86_64", qemuPackage: "qemu-system-x86",
			bios: true,
			// Without a keyboard controller: firmware takes the noise of one for
			// keys and stops in its menu.
			machine: "q35,i8042=off", cpu: "max",
			firmware:        ovmf(),
			firmwarePackage: "ovmf",
			netboot:         true,
			disks: disks(map[Bus]diskArgs{ // the machine has a controller
				AHCI:  {"", "ide-hd,bus=ide.0"},
				CDROM: {"", "ide-cd,bus=ide.0"},
			}),
		},
		"arm64": {
			qemu: "qemu-system-aarch64", qemuPackage: "qemu-system-arm",
			// The architecture's own pointer authentication takes most of the time.
			machine: "virt", cpu: "max,pauth-impdef=on",
			args:            []string{"-boot", "menu=on,splash-time=0"}, // or the firmware waits 5 s
			firmware:        aavmf(),
			firmwarePackage: "qemu-efi-aarch64",
			disks:           disks(map[Bus]diskArgs{CDROM: {scsi, "scsi-cd,bus=scsi.0"}}),
		},
	}
}

// buses returns those that the architecture's machines boot from.
func (a arch) buses() []Bus {
	return slices.DeleteFunc(Buses(), func(b Bus) bool { return a.disks[b].device == "" })
}

// files are the host's parts of a machine.
type files struct {
	code, vars string // UEFI firmware and its variables
	serial     string // character device of the serial port
	monitor    string // character device of the monitor in control mode; may be ""
}

// arguments returns QEMU's, for a Config with defaults.
func (c Config) arguments(a arch, f files) []string {
	cpu := a.cpu
	if c.Accel != "tcg" {
		cpu = "host"
	}
	if c.CPU != "" {
		cpu = c.CPU
	}
	args := []string{
		"-nodefaults", "-no-user-config",
		"-machine", a.machine, "-accel", c.Accel, "-cpu", cpu, "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.Memory),
		"-display", "none",
		"-chardev", f.serial, "-serial", "chardev:serial",
	}
	if f.monitor != "" {
		args = append(args, "-chardev", f.monitor, "-mon", "chardev=monitor,mode=control")
	}
	args = append(args, a.args...)
	// With its option ROM the network card would be one more thing to boot from.
	net, card := "user,id=net,restrict=on", "virtio-net-pci,netdev=net,romfile="
	if c.Netboot != "" {
		net, card = net+",bootfile=boot.ipxe,tftp="+escape(c.Netboot), "virtio-net-pci,netdev=net,bootindex=0"
	}
	for _, port := range slices.Sorted(maps.Keys(c.Forward)) {
		net += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", port, c.Forward[port])
	}
	if c.Network != "" {
		net += ",net=" + escape(c.Network)
	}
	for _, address := range slices.Sorted(maps.Keys(c.Serve)) {
		net += fmt.Sprintf(",guestfwd=tcp:%s-cmd:%s", address, escape(c.Serve[address]))
	}
	args = append(args, "-device", "virtio-rng-pci", "-netdev", net, "-device", card)
	if c.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(f.code),
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(f.vars))
	}
	if c.UUID != "" {
		args = append(args, "-uuid", c.UUID)
	}
	if c.Image != "" {
		d := a.disks[c.Bus]
		if d.controller != "" {
			args = append(args, "-device", d.controller)
		}
		drive, device := c.drive("disk", c.Format, c.Image), d.device+",drive=disk,bootindex=0"
		if c.Bus == CDROM {
			drive += ",readonly=on"
		} else {
			device += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%[1]d", c.SectorSize)
		}
		args = append(args, "-drive", drive, "-device", device)
	}
	for i, name := range c.Disks {
		id := fmt.Sprintf("extra%d", i)
		args = append(args, "-drive", c.drive(id, "raw", name), "-device", "virtio-blk-pci,drive="+id)
	}
	if c.Screen {
		args = append(args, "-device", "VGA")
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel)
		if c.Initrd != "" {
			args = append(args, "-initrd", c.Initrd)
		}
		args = append(args, "-append", c.Cmdline)
	}
	return append(args, c.More...)
}

func (c Config) drive(id, format, file string) string {
	s := fmt.Sprintf("if=none,id=%s,format=%s,discard=unmap,file=%s", id, format, escape(file))
	if c.Snapshot {
		s += ",snapshot=on"
	}
	return s
}

// escape makes s a value in QEMU's lists of key=value.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

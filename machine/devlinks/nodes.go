package devlinks

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/uevent"
)

// Groups of the root file system that device nodes belong to.
const (
	Root  = 0
	TTY   = 5
	Disk  = 6
	CDROM = 24
	KVM   = 36
	Video = 44
)

// A permission is that of a device node, which is root's.
type permission struct {
	group int
	mode  os.FileMode
}

// grouped is the mode of nodes of a group that no rule gives another.
const grouped = 0o660

// permissionOf returns that of a device, as udev's 50-udev-default.rules has it, and
// whether there is one.
func permissionOf(d device, subsystem string) (permission, bool) {
	name := d.name()
	is := func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	}
	switch subsystem {
	case "block":
		if is("sr[0-9]*") {
			return permission{CDROM, grouped}, true
		}
		return permission{Disk, grouped}, true
	case "scsi_generic":
		scsi, _ := d.find("scsi", "scsi_device")
		switch scsi.attr("type") {
		case "0":
			return permission{Disk, grouped}, true
		case "4", "5":
			return permission{CDROM, grouped}, true
		}
	case "tty":
		switch {
		case is("ptmx"), is("tty"):
			return permission{TTY, 0o666}, true
		case is("tty[0-9]*"):
			return permission{TTY, 0o620}, true
		}
	case "vc":
		return permission{TTY, grouped}, true
	case "drm", "graphics", "video4linux", "media":
		return permission{Video, grouped}, true
	case "usb":
		if d.event()["DEVTYPE"] == "usb_device" {
			return permission{Root, 0o664}, true
		}
	}
	switch name {
	case "loop-control", "btrfs-control":
		return permission{Disk, grouped}, true
	case "kvm", "vhost-vsock", "vhost-net", "udmabuf":
		return permission{KVM, grouped}, true
	case "tun", "fuse", "vfio", "vsock":
		return permission{Root, 0o666}, true
	case "rfkill":
		return permission{Root, 0o664}, true
	}
	return permission{}, false
}

// permit sets group and mode of a device node.
func (k *Keeper) permit(d device, subsystem string, e uevent.Event) error {
	p, ok := permissionOf(d, cmp.Or(subsystem, e["SUBSYSTEM"]))
	if !ok {
		return nil
	}
	name := filepath.Join(k.dev, filepath.Clean("/"+strings.TrimPrefix(e["DEVNAME"], "/dev/")))
	fi, err := os.Lstat(name)
	if os.IsNotExist(err) {
		return nil // it is gone already
	}
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeDevice == 0 {
		return fmt.Errorf("%s: not a device node, which the kernel has made", name)
	}
	if err := unix.Lchown(name, 0, p.group); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.Chmod(name, p.mode)
}

package devlinks

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnhq/kiln/machine/uevent"
)

// maxAttribute bounds an attribute; pages of SCSI data have the most.
const maxAttribute = 64 << 10

// A device is a directory of sysfs with a file uevent.
type device struct {
	root string // where sysfs is mounted
	dir  string // below it, without links: root/devices/…
}

func (d device) name() string { return filepath.Base(d.dir) }

// raw returns an attribute as it is, nil if there is none.
func (d device) raw(name string) []byte {
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil || len(data) > maxAttribute {
		return nil
	}
	return data
}

// attr returns an attribute that is text.
func (d device) attr(name string) string {
	return strings.TrimRight(string(d.raw(name)), " \t\n\x00")
}

// nearest returns the attribute of the device, or of the nearest one above that has
// it.
func (d device) nearest(name string) string {
	for ok := true; ok; d, ok = d.above() {
		if v := d.attr(name); v != "" {
			return v
		}
	}
	return ""
}

// above returns the device that this one is part of.
func (d device) above() (device, bool) {
	for dir := filepath.Dir(d.dir); len(dir) > len(d.root)+len("/devices"); dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, "uevent")); err == nil {
			return device{d.root, dir}, true
		}
	}
	return device{}, false
}

func (d device) subsystem() string {
	link, err := os.Readlink(filepath.Join(d.dir, "subsystem"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

func (d device) event() uevent.Event { return uevent.ParseFile(d.raw("uevent")) }

// find returns the nearest device above of that subsystem and, if devtype is not
// empty, type.
func (d device) find(subsystem, devtype string) (device, bool) {
	for p, ok := d.above(); ok; p, ok = p.above() {
		if p.subsystem() == subsystem && (devtype == "" || p.event()["DEVTYPE"] == devtype) {
			return p, true
		}
	}
	return device{}, false
}

// last returns the topmost of the devices from d upwards that are of one subsystem.
func (d device) last(subsystem string) device {
	for p, ok := d.above(); ok && p.subsystem() == subsystem; p, ok = p.above() {
		d = p
	}
	return d
}

// class returns a device of a class by its name.
func (d device) class(class, name string) (device, bool) {
	dir, err := filepath.EvalSymlinks(filepath.Join(d.root, "class", class, name))
	return device{d.root, dir}, err == nil
}

// Package blockdev finds the block devices of a Linux machine, says what they
// are, what is on them and who uses them, and takes one over for writing.
//
// The way of a disk that is to be overwritten:
//
//	host := blockdev.Local()
//	dev, err := host.Resolve("/dev/disk/by-id/…")   // or host.Select(selector)
//	err = host.Inspect(dev)      // what is on it, who uses it, its fingerprint
//	err = dev.Check(minimum)     // what must never be overwritten
//	err = dev.Occupied()         // what may be, when somebody says so
//	                             // … show the plan …
//	disk, err := host.Lock(ctx, dev)
//	defer disk.Close()           // nobody else's until then
//	…                            // WriteAt, ReadAt, Zero, Discard, Sync
//	err = disk.Reread()          // the kernel learns of the new partitions
//
// Facts come from sysfs, as the kernel's Documentation/ABI describes it:
// /sys/class/block has a link for every block device, to a directory below
// /sys/devices whose path is the way over buses and controllers to the disk.
// Partitions are directories inside of their disk's. What is on a disk is read
// from the disk by offset, so that it does not matter whether the kernel knows
// the partitions.
package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kilnhq/kiln/machine/uevent"
)

// A Host is a machine, by the directories where its kernel shows it: sysfs,
// the device nodes, and proc.
type Host struct {
	Sys, Dev, Proc string
}

// Local returns the machine that the program runs on.
func Local() Host { return Host{Sys: "/sys", Dev: "/dev", Proc: "/proc"} }

// A Kind says what a block device is.
type Kind string

// Kinds of devices. A Disk, a Loop and a File can be written; the others are
// part of something, or not for keeping anything.
const (
	Disk      Kind = "disk"
	Loop      Kind = "loop"
	File      Kind = "file" // a regular file: an image of a disk
	Partition Kind = "partition"
	CD        Kind = "cd"
	Floppy    Kind = "floppy"
	RAM       Kind = "ram"
	ZRAM      Kind = "zram"
	Mapper    Kind = "dm" // LVM, dm-crypt, multipath
	RAID      Kind = "md"
	BCache    Kind = "bcache"
	BootArea  Kind = "boot area" // of eMMC, beside the disk
	Flash     Kind = "flash"     // raw, without a translation layer
)

// A Device is a block device, or a file that is treated like one.
type Device struct {
	Name      string `json:"name"` // of the kernel: sda, nvme0n1
	Path      string `json:"path"` // of the device node or the file
	Kind      Kind   `json:"kind"`
	Size      int64  `json:"size"`               // bytes
	Sector    int64  `json:"sector,omitempty"`   // logical: the unit of addressing, in bytes
	Physical  int64  `json:"physical,omitempty"` // sector size that writes had better be multiples of
	Model     string `json:"model,omitempty"`
	Serial    string `json:"serial,omitempty"`
	WWN       string `json:"wwn,omitempty"` // as the kernel has it: naa.…, eui.…, t10.…
	Transport string `json:"transport,omitempty"`
	// BusPath is the way to the device as sysfs has it, for example
	// /pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/.
	BusPath    string   `json:"bus_path,omitempty"`
	Links      []string `json:"links,omitempty"` // to it, in /dev/disk
	Rotational bool     `json:"rotational"`
	Removable  bool     `json:"removable"`
	ReadOnly   bool     `json:"readonly"`
	Number     string   `json:"number,omitempty"` // major:minor
	// Parent is the name of the disk that a partition is part of; Backing the
	// file behind a loop device.
	Parent  string `json:"parent,omitempty"`
	Backing string `json:"backing,omitempty"`

	// Users is everything that uses the device or a part of it.
	Users []User `json:"users,omitempty"`

	// Contents and Fingerprint are what Inspect found; nil before.
	Contents    *Contents    `json:"contents,omitempty"`
	Fingerprint *Fingerprint `json:"fingerprint,omitempty"`
}

// IDs returns the names of the links in /dev/disk/by-id.
func (d *Device) IDs() []string {
	var ids []string
	for _, l := range d.Links {
		if dir, name := filepath.Split(l); filepath.Base(dir) == "by-id" {
			ids = append(ids, name)
		}
	}
	return ids
}

// List returns all block devices sorted by name, without what is on them.
// Numbers in names sort as numbers. Devices that have no medium have the size 0.
func (h Host) List() ([]*Device, error) {
	entries, err := os.ReadDir(h.class())
	if err != nil {
		return nil, err
	}
	links := h.links()
	var devices []*Device
	for _, e := range entries {
		d, err := h.device(e.Name(), links)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue // it has just gone, or is one of several paths to a disk
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b *Device) int { return compareNames(a.Name, b.Name) })
	if err := h.findUsers(devices); err != nil {
		return nil, err
	}
	return devices, nil
}

// Candidates returns the devices of List that a selector chooses from: disks
// with a medium, and loop devices that can be written.
func Candidates(devices []*Device) []*Device {
	var c []*Device
	for _, d := range devices {
		if d.Size > 0 && (d.Kind == Disk || d.Kind == Loop && !d.ReadOnly) {
			c = append(c, d)
		}
	}
	return c
}

func (h Host) class() string { return filepath.Join(h.Sys, "class/block") }

// device reads what sysfs says about the device with that name.
func (h Host) device(name string, links map[string][]string) (*Device, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(h.class(), name))
	if err != nil {
		return nil, err
	}
	a := attributes(dir)
	number := a.text("dev")
	if number == "" || a.text("hidden") == "1" {
		return nil, fmt.Errorf("%s: %w", dir, fs.ErrNotExist)
	}
	data, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return nil, err
	}
	node := uevent.ParseFile(data)["DEVNAME"]
	if node == "" || !filepath.IsLocal(node) {
		node = strings.ReplaceAll(name, "!", "/")
	}
	d := &Device{
		Name: name, Path: filepath.Join(h.Dev, node), Number: number,
		Size:     a.number("size") * 512, // whatever the sector size is
		ReadOnly: a.text("ro") == "1",
	}
	disk := a // what partitions inherit
	if a.text("partition") != "" {
		d.Kind = Partition
		disk = attributes(filepath.Dir(dir))
		d.Parent = filepath.Base(string(disk))
	} else {
		d.Kind = kindOf(name, a)
		d.Backing = a.text("loop/backing_file")
	}
	d.Links = links[number]
	d.Sector = disk.number("queue/logical_block_size")
	d.Physical = disk.number("queue/physical_block_size")
	d.Rotational = disk.text("queue/rotational") == "1"
	d.Removable = disk.text("removable") == "1"
	d.ReadOnly = d.ReadOnly || disk.text("ro") == "1"
	h.identify(d, disk)
	return d, nil
}

// links returns the links in /dev/disk by the number of the device they lead
// to. The names of device nodes stand for numbers where there are no nodes.
func (h Host) links() map[string][]string {
	links := map[string][]string{}
	root := filepath.Join(h.Dev, "disk")
	dirs, err := os.ReadDir(root)
	if err != nil {
		return links // nobody makes any
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(root, dir.Name()))
		if err != nil {
			continue
		}
		for _, e := range entries {
			link := filepath.Join(root, dir.Name(), e.Name())
			if target, err := filepath.EvalSymlinks(link); err == nil {
				if number := h.numberOf(target); number != "" {
					links[number] = append(links[number], link)
				}
			}
		}
	}
	return links
}

// numberOf returns the device number, major:minor, of a device node without
// links in its path. Below h.Dev a file that is no node stands for the device
// of its name.
func (h Host) numberOf(path string) string {
	if number := nodeNumber(path); number != "" {
		return number
	}
	rel, err := filepath.Rel(h.realDev(), path)
	if err != nil || !filepath.IsLocal(rel) {
		return ""
	}
	return attributes(filepath.Join(h.class(), strings.ReplaceAll(rel, "/", "!"))).text("dev")
}

func (h Host) realDev() string {
	if p, err := filepath.EvalSymlinks(h.Dev); err == nil {
		return p
	}
	return h.Dev
}

// attributes is a directory of sysfs with one value to a file.
type attributes string

// text returns the value of a file without surrounding space, or "".
func (a attributes) text(name string) string {
	b, err := os.ReadFile(filepath.Join(string(a), name))
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), " \t\n\x00")
}

func (a attributes) number(name string) int64 {
	n, err := strconv.ParseInt(a.text(name), 10, 64)
	if err != nil || n < 0 || n > 1<<54 {
		return 0
	}
	return n
}

// compareNames compares names with numbers in them: sda, sdb, sdaa; nvme2n1,
// nvme10n1.
func compareNames(a, b string) int {
	pa, pb := strings.TrimRight(a, digits), strings.TrimRight(b, digits)
	if strings.HasPrefix(a, "sd") && strings.HasPrefix(b, "sd") && len(pa) != len(pb) {
		return len(pa) - len(pb)
	}
	for a != "" && b != "" {
		na, nb := number(a), number(b)
		if na == "" || nb == "" {
			if a[0] != b[0] {
				return int(a[0]) - int(b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		if len(na) != len(nb) {
			return len(na) - len(nb)
		}
		if na != nb {
			return strings.Compare(na, nb)
		}
		a, b = a[len(na):], b[len(nb):]
	}
	return len(a) - len(b)
}

const digits = "0123456789"

// number returns the digits that s begins with.
func number(s string) string { return s[:len(s)-len(strings.TrimLeft(s, digits))] }

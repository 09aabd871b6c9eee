// Package disk finds the disk that a machine runs from and its partitions.
//
// The kernel shows every block device in /sys/class/block, with the names of
// GPT partitions as PARTNAME in their uevent files. The identifiers of disk and
// partitions are read from the partition table itself.
package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/machine/uevent"
)

// Labels of the partitions that a node keeps its data on. A disk with all of
// them is an installed one.
const (
	Meta      = "META"
	State     = "STATE"
	Ephemeral = "EPHEMERAL"
)

// ImageCache is the label of the partition with container images for the node, of
// disks that have one.
const ImageCache = "IMAGECACHE"

// None is the identifier that stands for "no disk": the node runs from memory.
const None = "none"

var (
	// ErrNotFound is wrapped by Select's errors when a disk that is named is
	// not there, or not yet.
	ErrNotFound = errors.New("boot disk not found")
	// ErrAmbiguous is wrapped by Select's errors when several disks qualify.
	ErrAmbiguous = errors.New("more than one disk could be the boot disk")
)

// A Disk is a block device with a GUID partition table.
type Disk struct {
	Name       string // of the kernel: vda, nvme0n1
	GUID       string
	Partitions []Partition // by number
	Complete   bool        // the kernel shows as many partitions as the table has
}

// A Partition is a part of a disk.
type Partition struct {
	Number int
	Name   string // of the kernel: vda5
	Label  string
	GUID   string // unique to the partition (PARTUUID)
	Device string // path of the device node
}

// Partition returns the partition with that label.
func (d *Disk) Partition(label string) (Partition, bool) {
	for _, p := range d.Partitions {
		if p.Label == label {
			return p, true
		}
	}
	return Partition{}, false
}

func (d *Disk) installed() bool {
	for _, label := range []string{Meta, State, Ephemeral} {
		if _, ok := d.Partition(label); !ok {
			return false
		}
	}
	return true
}

// List returns the disks that have partitions and a GUID partition table,
// sorted by name. sys and dev are where sysfs and the device nodes are: /sys
// and /dev.
func List(sys, dev string) ([]Disk, error) {
	class := filepath.Join(sys, "class/block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, err
	}
	partitions := map[string][]Partition{} // by the disk's directory in sysfs
	for _, e := range entries {
		dir, err := filepath.EvalSymlinks(filepath.Join(class, e.Name()))
		if err != nil {
			continue // it has just gone
		}
		data, err := os.ReadFile(filepath.Join(dir, "uevent"))
		if err != nil {
			continue
		}
		u := uevent.ParseFile(data)
		number, err := strconv.Atoi(u["PARTN"])
		if u["DEVTYPE"] != "partition" || err != nil {
			continue
		}
		parent := filepath.Dir(dir)
		partitions[parent] = append(partitions[parent], Partition{
			Number: number, Name: e.Name(), Label: u["PARTNAME"], Device: filepath.Join(dev, u["DEVNAME"]),
		})
	}
	var disks []Disk
	for dir, parts := range partitions {
		table, err := readTable(dir, dev)
		if err != nil {
			continue // not partitioned by GPT, or gone, or unreadable: not ours
		}
		slices.SortFunc(parts, func(a, b Partition) int { return a.Number - b.Number })
		for i := range parts {
			if n := parts[i].Number - 1; n >= 0 && n < len(table.Partitions) {
				parts[i].GUID = table.Partitions[n].ID.String()
			}
		}
		used := 0
		for _, p := range table.Partitions {
			if p.Size > 0 {
				used++
			}
		}
		disks = append(disks, Disk{Name: filepath.Base(dir), GUID: table.DiskID.String(), Partitions: parts, Complete: len(parts) >= used})
	}
	slices.SortFunc(disks, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

func readTable(dir, dev string) (*gpt.Table, error) {
	data, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return nil, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // always of 512 bytes
	if err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join(dir, "uevent")); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dev, uevent.ParseFile(data)["DEVNAME"]))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return gpt.Read(f, sectors*512)
}

func sameGUID(a, b string) bool { return a != "" && strings.EqualFold(a, b) }

// Select returns the disk the machine was started from. It is the one with the
// GUID diskGUID or, if that is empty, the one that holds the partition with the
// GUID partGUID or, if both are empty, the only installed one. Without any of
// these the result is nil: a machine that runs from memory.
//
// A named disk that is there twice, as after copying one, is as ambiguous as
// two installed disks of which none is named.
func Select(disks []Disk, diskGUID, partGUID string) (*Disk, error) {
	var found []*Disk
	for i := range disks {
		d := &disks[i]
		switch {
		case diskGUID != "":
			if sameGUID(d.GUID, diskGUID) {
				found = append(found, d)
			}
		case partGUID != "":
			if slices.ContainsFunc(d.Partitions, func(p Partition) bool { return sameGUID(p.GUID, partGUID) }) {
				found = append(found, d)
			}
		case d.installed():
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, d := range found {
			names = append(names, d.Name+" ("+d.GUID+")")
		}
		next := "name it with the kernel argument kiln.disk=GUID"
		if diskGUID != "" || partGUID != "" {
			next = "they are copies of each other: remove one or give it new GUIDs"
		}
		return nil, fmt.Errorf("%w: %s; %s", ErrAmbiguous, strings.Join(names, ", "), next)
	case diskGUID != "":
		return nil, fmt.Errorf("%w: kernel argument kiln.disk=%s; %s", ErrNotFound, diskGUID, present(disks))
	case partGUID != "":
		return nil, fmt.Errorf("%w: the firmware started a boot loader on partition %s; %s", ErrNotFound, partGUID, present(disks))
	}
	return nil, nil
}

func present(disks []Disk) string {
	if len(disks) == 0 {
		return "no partitioned disk is there: is its driver in the image?"
	}
	var names []string
	for _, d := range disks {
		names = append(names, d.Name+" ("+d.GUID+")")
	}
	return "disks: " + strings.Join(names, ", ")
}

// Data returns the partitions STATE and EPHEMERAL of d. Both may be missing,
// as on an installation medium, but not one of them.
func (d *Disk) Data() (state, ephemeral Partition, ok bool, err error) {
	state, haveState := d.Partition(State)
	ephemeral, haveEphemeral := d.Partition(Ephemeral)
	if haveState != haveEphemeral {
		missing := State
		if haveState {
			missing = Ephemeral
		}
		return state, ephemeral, false, fmt.Errorf("disk %s (%s) has no partition labelled %s", d.Name, d.GUID, missing)
	}
	return state, ephemeral, haveState, nil
}

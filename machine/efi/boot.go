package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"github.com/google/uuid"
)

// Entry is the boot entry of an installed disk.
type Entry struct {
	Description string
	Partition   HardDrive // EFI system partition of the disk
	Path        string    // of the boot loader on it

	// Present are the GUIDs of the partitions of all disks of the machine. Nil
	// means that they are not known.
	Present []uuid.UUID
}

// Register makes the entry the first that the firmware boots, and returns its
// number. Doing it again changes nothing.
//
// An entry is ours if it is what Register makes: the same description, a path
// that is a partition of a GPT and a file, and no data. Of ours those are stale
// whose partition is this one, or is not among Present. Others, those of other
// disks of this machine among them, are left alone, and keep their places in the
// order.
//
// An entry of the same partition is used again, then the number of a stale one,
// then a free one. First the entry is written, then BootOrder, then what is stale
// is deleted: a cut leaves the old order or the new one.
func Register(v *Variables, e Entry) (number uint16, err error) { return register(v, e) }

// Unregister deletes our entries of the partition.
func Unregister(v *Variables, e Entry) error { return unregister(v, e) }

// variables are Variables, but in tests of cuts.
type variables interface {
	List() ([]Name, error)
	Read(n Name) (attributes uint32, value []byte, err error)
	Write(n Name, attributes uint32, value []byte) error
	Delete(n Name) error
}

func register(v variables, e Entry) (number uint16, err error) {
	file, err := FilePath(e.Path)
	if err != nil {
		return 0, err
	}
	if e.Description == "" || e.Partition.ID == uuid.Nil {
		return 0, invalid("a boot entry %q of the partition %s, want a description and the partition's GUID", e.Description, e.Partition.ID)
	}
	option := LoadOption{Active, e.Description, []DevicePath{{e.Partition.Node(), file}}, nil}
	value, err := option.Encode()
	if err != nil {
		return 0, err
	}
	entries, order, err := readEntries(v)
	if err != nil {
		return 0, err
	}
	stale := staleOf(entries, order, e)
	var use entry
	if len(stale) > 0 {
		use, stale = stale[0], stale[1:]
	} else if use, err = free(entries, order); err != nil {
		return 0, err
	}
	if err := v.Write(use.name, Persistent, value); err != nil {
		return 0, err
	}
	return use.number, replace(v, append([]uint16{use.number}, without(order, use)...), stale)
}

func unregister(v variables, e Entry) error {
	entries, order, err := readEntries(v)
	if err != nil {
		return err
	}
	e.Present = nil
	return replace(v, order, staleOf(entries, order, e))
}

// entry is a boot entry that exists.
type entry struct {
	number uint16
	name   Name
	option *LoadOption // nil if it is none
}

// partition returns the partition of an entry that Register may have made.
func (e entry) partition(description string) (HardDrive, bool) {
	if o := e.option; o != nil && e.name == bootName(e.number) && o.Description == description && len(o.Data) == 0 && len(o.Paths) == 1 && len(o.Paths[0]) == 2 {
		if _, ok := o.Paths[0][1].FilePath(); ok {
			return o.Paths[0][0].HardDrive()
		}
	}
	return HardDrive{}, false
}

// readEntries returns all boot entries, sorted by number, and BootOrder.
func readEntries(v variables) (entries []entry, order []uint16, err error) {
	names, err := v.List()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		number, ok := bootNumber(n)
		if !ok {
			continue
		}
		x := entry{number: number, name: n}
		if _, value, err := v.Read(n); err == nil {
			x.option, _ = DecodeLoadOption(value) // of others, who may do it their way
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrInvalid) {
			return nil, nil, err
		}
		entries = append(entries, x)
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return int(a.number) - int(b.number) })
	_, value, err := v.Read(bootOrder())
	if errors.Is(err, fs.ErrNotExist) {
		return entries, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if len(value)%2 != 0 {
		return nil, nil, fmt.Errorf("BootOrder: %w", invalid("%d bytes, want pairs", len(value)))
	}
	for ; len(value) > 0; value = value[2:] {
		order = append(order, binary.LittleEndian.Uint16(value))
	}
	return entries, order, nil
}

func bootOrder() Name { return Name{"BootOrder", GlobalVendor} }

func bootName(number uint16) Name { return Name{fmt.Sprintf("Boot%04X", number), GlobalVendor} }

// bootNumber returns the number of the boot entry that the variable is. Some
// firmware has small letters in it.
func bootNumber(n Name) (uint16, bool) {
	if n.Vendor != GlobalVendor || len(n.Name) != 8 || n.Name[:4] != "Boot" {
		return 0, false
	}
	number, err := strconv.ParseUint(n.Name[4:], 16, 16)
	return uint16(number), err == nil
}

// staleOf returns the entries that make room for e, those of the same partition
// first, and of these those that are booted first.
func staleOf(entries []entry, order []uint16, e Entry) []entry {
	var same, gone []entry
	for _, x := range entries {
		h, ok := x.partition(e.Description)
		switch {
		case !ok:
		case h.ID == e.Partition.ID:
			same = append(same, x)
		case e.Present != nil && !slices.Contains(e.Present, h.ID):
			gone = append(gone, x)
		}
	}
	place := func(x entry) int {
		if i := slices.Index(order, x.number); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(same, func(a, b entry) int { return place(a) - place(b) })
	return append(same, gone...)
}

// free returns an entry that does not exist, and that BootOrder does not name.
func free(entries []entry, order []uint16) (entry, error) {
	taken := make(map[uint16]bool, len(entries)+len(order))
	for _, x := range entries {
		taken[x.number] = true
	}
	for _, n := range order {
		taken[n] = true
	}
	for n := range 1 << 16 {
		if !taken[uint16(n)] {
			return entry{number: uint16(n), name: bootName(uint16(n))}, nil
		}
	}
	return entry{}, fmt.Errorf("%w: all 65536 boot entries are in use", ErrNoRoom)
}

// without returns the order without some entries.
func without(order []uint16, entries ...entry) []uint16 {
	return slices.DeleteFunc(slices.Clone(order), func(n uint16) bool {
		return slices.ContainsFunc(entries, func(x entry) bool { return x.number == n })
	})
}

// replace writes the order without the entries that are stale, and deletes those.
func replace(v variables, order []uint16, stale []entry) error {
	var value bytes.Buffer
	for _, n := range without(order, stale...) {
		value.Write(binary.LittleEndian.AppendUint16(nil, n))
	}
	var err error
	if value.Len() > 0 {
		err = v.Write(bootOrder(), Persistent, value.Bytes())
	} else if err = v.Delete(bootOrder()); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	for _, x := range stale {
		if err := v.Delete(x.name); err != nil {
			return err
		}
	}
	return nil
}

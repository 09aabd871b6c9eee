package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Errors of Select.
var (
	ErrNoMatch   = errors.New("no disk matches")
	ErrAmbiguous = errors.New("more than one disk matches")
)

// Resolve returns the device that path names: a device node, a link to one as
// in /dev/disk/by-id, or a regular file. It fails with fs.ErrNotExist if there
// is nothing, and with ErrNotDisk if it is a directory or the like; partitions
// and other devices that are no disks are left to Check.
func (h Host) Resolve(path string) (*Device, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; 'kiln disks' lists the disks", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, err
	}
	if number := h.numberOf(real); number != "" {
		devices, err := h.List()
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			if d.Number == number {
				d.Path = real // in a container the kernel's name may have no node
				return d, nil
			}
		}
		return nil, &Refusal{Path: path, Why: ErrNotDisk, Detail: fmt.Sprintf("the kernel has no block device %s for it", number)}
	}
	st, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &Refusal{Path: path, Why: ErrNotDisk, Detail: fmt.Sprintf("it has the mode %v; want a block device or a regular file", st.Mode())}
	}
	if rel, err := filepath.Rel(h.realDev(), real); err == nil && filepath.IsLocal(rel) && !strings.HasPrefix(rel, "shm/") {
		return nil, &Refusal{Path: path, Why: ErrNotDisk, Detail: "it is a regular file among the device nodes, from a program that wrote to a device that was not there; remove it"}
	}
	d := &Device{Name: filepath.Base(real), Path: real, Kind: File, Size: st.Size(), ReadOnly: st.Mode()&0o222 == 0}
	d.Users, err = h.loopsOf(real)
	return d, err
}

// loopsOf returns the loop devices that the file is attached to.
func (h Host) loopsOf(path string) ([]User, error) {
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.class())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no sysfs: nothing can be attached from here
	}
	if err != nil {
		return nil, err
	}
	var users []User
	for _, e := range entries {
		backing := attributes(filepath.Join(h.class(), e.Name())).text("loop/backing_file")
		if backing == "" {
			continue
		}
		if st, err := os.Stat(backing); err == nil && os.SameFile(st, file) {
			users = append(users, User{Use: LoopFile, Device: filepath.Base(path), Where: filepath.Join(h.Dev, e.Name())})
		}
	}
	return users, nil
}

// Select returns the one candidate that the selector matches. Its error names
// the candidates with what can be selected by.
func (h Host) Select(s *Selector) (*Device, error) {
	devices, err := h.List()
	if err != nil {
		return nil, err
	}
	return Select(Candidates(devices), s)
}

// Select returns the one of the devices that the selector matches.
func Select(devices []*Device, s *Selector) (*Device, error) {
	var found []*Device
	for _, d := range devices {
		if s.Match(d) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if len(devices) == 0 {
			return nil, fmt.Errorf("%w %s: there are no disks", ErrNoMatch, s)
		}
		return nil, fmt.Errorf("%w %s; there are:%s", ErrNoMatch, s, facts(devices))
	default:
		return nil, fmt.Errorf("%w %s; add to it, for example && name==%q:%s", ErrAmbiguous, s, found[0].Name, facts(found))
	}
}

func facts(devices []*Device) string {
	var b strings.Builder
	for _, d := range devices {
		fmt.Fprintf(&b, "\n  %s", d.Facts())
	}
	return b.String()
}

// Facts returns what is known of the device in terms of the selector language.
func (d *Device) Facts() string {
	var b strings.Builder
	b.WriteString(d.Path)
	fmt.Fprintf(&b, " size=%s", unitSize(d.Size))
	for _, f := range []struct{ name, value string }{
		{"transport", d.Transport}, {"model", d.Model}, {"serial", d.Serial}, {"wwn", d.WWN},
	} {
		if f.value != "" {
			fmt.Fprintf(&b, " %s=%q", f.name, f.value)
		}
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"rotational", d.Rotational}, {"removable", d.Removable}, {"readonly", d.ReadOnly}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	return b.String()
}

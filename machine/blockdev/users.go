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

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
)

// A Use says how a device is used.
type Use string

// Uses of a device.
const (
	Root      Use = "root"      // holds the file system that the machine runs from
	Mounted   Use = "mounted"   // at Where
	Swap      Use = "swap"      // of the running system
	Member    Use = "member"    // of Where, an active md, LVM, device mapper or bcache device
	LoopFile  Use = "loop"      // is the file behind the loop device Where
	Exclusive Use = "exclusive" // somebody has opened it for themselves, or mounted it out of our sight
)

// A User is something that uses a device.
type User struct {
	Use Use `json:"use"`
	// Device is the name of what is used: the device, one of its partitions,
	// or something on top of these.
	Device string `json:"device"`
	Where  string `json:"where,omitempty"`
}

func (u User) String() string {
	switch u.Use {
	case Root:
		return u.Device + " holds the root of the running system"
	case Mounted:
		return u.Device + " is mounted on " + u.Where
	case Swap:
		return u.Device + " is swap space in use"
	case Member:
		return u.Device + " is part of " + u.Where
	case LoopFile:
		return u.Device + " is attached to " + u.Where
	default:
		return u.Device + " is in use by another program, or mounted where this one cannot see it"
	}
}

// findUsers sets the users of all devices. Who uses a partition uses its disk,
// and who uses an md, LVM or other device uses all that it is made of.
func (h Host) findUsers(devices []*Device) error {
	own := map[string][]User{}      // by the name of the device that is itself used
	byNumber := map[string]string{} // to names
	for _, d := range devices {
		byNumber[d.Number] = d.Name
	}
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		name := byNumber[m.number]
		if name == "" {
			name = byNumber[h.sourceNumber(m.Source)] // btrfs and others have numbers of their own
		}
		if name == "" {
			continue
		}
		u := User{Use: Mounted, Device: name, Where: m.Path}
		if m.Path == "/" {
			u = User{Use: Root, Device: name}
		}
		if !slices.Contains(own[name], u) {
			own[name] = append(own[name], u)
		}
	}
	swaps, err := h.swaps()
	if err != nil {
		return err
	}
	for _, path := range swaps {
		if name := byNumber[h.sourceNumber(path)]; name != "" {
			own[name] = append(own[name], User{Use: Swap, Device: name})
		}
	}
	above := map[string][]string{} // from a device to its partitions and what holds it
	for _, d := range devices {
		if d.Parent != "" {
			above[d.Parent] = append(above[d.Parent], d.Name)
		}
		for _, holder := range h.holders(d) {
			own[d.Name] = append(own[d.Name], User{Use: Member, Device: d.Name, Where: h.describe(holder)})
			above[d.Name] = append(above[d.Name], holder)
		}
	}
	for _, d := range devices {
		d.Users = collect(d.Name, own, above)
	}
	return nil
}

// collect returns the users of a device and of all above it, the gravest first.
func collect(name string, own map[string][]User, above map[string][]string) []User {
	var users []User
	seen := map[string]bool{}
	var visit func(string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		users = append(users, own[name]...)
		for _, n := range above[name] {
			visit(n)
		}
	}
	visit(name)
	slices.SortStableFunc(users, func(a, b User) int { return rank(a.Use) - rank(b.Use) })
	return users
}

func rank(u Use) int {
	return slices.Index([]Use{Root, Mounted, Swap, Member, LoopFile, Exclusive}, u)
}

// holders returns the names of the devices that are made of d.
func (h Host) holders(d *Device) []string {
	entries, err := os.ReadDir(filepath.Join(h.class(), d.Name, "holders"))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// describe says what a device is that is made of others.
func (h Host) describe(name string) string {
	a := attributes(filepath.Join(h.class(), name))
	label := a.text("dm/name")
	id := a.text("dm/uuid")
	switch {
	case strings.HasPrefix(id, "LVM-"):
		return fmt.Sprintf("the LVM volume %s (%s)", label, name)
	case strings.HasPrefix(id, "CRYPT-"):
		return fmt.Sprintf("the encrypted volume %s (%s)", label, name)
	case strings.HasPrefix(id, "mpath-"):
		return fmt.Sprintf("the multipath device %s (%s)", label, name)
	case label != "":
		return fmt.Sprintf("the device mapper device %s (%s)", label, name)
	}
	if level := a.text("md/level"); level != "" {
		return fmt.Sprintf("the RAID set %s (%s)", name, level)
	}
	return name
}

// A mounted is a mount and the number of the device below it.
type mounted struct {
	mount.Point
	number string
}

// mounts returns the mounts that this process and the first one see: in a
// container they differ, if the container sees the host's processes at all.
func (h Host) mounts() ([]mounted, error) {
	var all []mounted
	for _, process := range []string{"self", "1"} {
		data, err := os.ReadFile(filepath.Join(h.Proc, process, "mountinfo"))
		if process != "self" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			points, err := mount.ParseInfo(line)
			if err != nil {
				return nil, err
			}
			all = append(all, mounted{points[0], strings.Fields(line)[2]})
		}
	}
	return all, nil
}

// swaps returns the paths of the devices and files in /proc/swaps.
func (h Host) swaps() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(h.Proc, "swaps"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/") {
			paths = append(paths, f[0])
		}
	}
	return paths, nil
}

// sourceNumber returns the number of the device that the kernel names with a
// path below /dev, or "".
func (h Host) sourceNumber(path string) string {
	rel, ok := strings.CutPrefix(path, "/dev/")
	if !ok {
		return ""
	}
	target, err := filepath.EvalSymlinks(filepath.Join(h.Dev, rel))
	if err != nil {
		// Without a node, in a container for example, the name is enough.
		target = filepath.Join(h.realDev(), rel)
	}
	return h.numberOf(target)
}

func formatNumber(dev uint64) string {
	return strconv.FormatUint(uint64(unix.Major(dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(dev)), 10)
}

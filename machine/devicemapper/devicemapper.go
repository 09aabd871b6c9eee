//go:build linux

// Package devicemapper makes block devices out of parts of others, by the ioctls
// of the kernel's device mapper: what dmsetup(8) and veritysetup(8) do, without
// them.
//
// A mapped device has a name, a table, and a node /dev/dm-N that the kernel makes
// on devtmpfs. The table is a list of targets, each of which says what a run of
// the device's sectors is; the targets here are those of
// Documentation/admin-guide/device-mapper/verity.rst and linear.rst of the
// kernel's source. The ioctls are those of its include/uapi/linux/dm-ioctl.h.
//
// A device is made in three steps: it gets its name, then a table, and the table
// becomes active when the device is resumed. What fails on the way leaves no
// device.
package devicemapper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrMissing is wrapped by errors for a kernel without the device mapper or
// without the target that a table needs; the error names the module to load.
var ErrMissing = errors.New("the kernel does not have it")

// controlPath is the node that the ioctls go to.
const controlPath = "/dev/" + unix.DM_DIR + "/" + unix.DM_CONTROL_NODE

// A Control is the way to the kernel's device mapper.
type Control struct {
	file *os.File
	// ioctl is ioctl(2) on file; tests put their own here.
	ioctl func(request uint, buf []byte) error
}

// Open opens the device mapper's control node, which is there when the module
// dm_mod is loaded and devtmpfs is mounted on /dev.
func Open() (*Control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("device mapper: %w: %w; load the module dm_mod, and mount devtmpfs on /dev", ErrMissing, err)
	}
	if err != nil {
		return nil, fmt.Errorf("device mapper: %w", err)
	}
	c := &Control{file: f, ioctl: func(request uint, buf []byte) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
			return errno
		}
		return nil
	}}
	if _, err := c.call(unix.DM_VERSION, "", 0, nil); err != nil {
		f.Close()
		return nil, fmt.Errorf("device mapper: the kernel does not take version %d.0.0 of its interface: %w", unix.DM_VERSION_MAJOR, err)
	}
	return c, nil
}

// Close closes the control node. Devices stay.
func (c *Control) Close() error { return c.file.Close() }

// Verity makes the read-only device name, of which every block that is read is
// checked, and returns the path of its node.
func (c *Control) Verity(name string, v Verity) (string, error) {
	t, err := v.target()
	if err != nil {
		return "", fmt.Errorf("verity device %q: %w", name, err)
	}
	return c.create(name, true, []target{t})
}

// Linear makes the device name of the segments, one after the other, and returns
// the path of its node.
func (c *Control) Linear(name string, readOnly bool, segments []Segment) (string, error) {
	targets, err := linear(segments)
	if err != nil {
		return "", fmt.Errorf("linear device %q: %w", name, err)
	}
	return c.create(name, readOnly, targets)
}

// create makes a device and activates its table.
func (c *Control) create(name string, readOnly bool, targets []target) (_ string, err error) {
	fail := func(step string, err error) (string, error) {
		return "", fmt.Errorf("%s device %q: %s: %w", targets[0].kind, name, step, err)
	}
	if name == "" {
		return fail("create", errors.New("it has no name"))
	}
	var flags uint32
	if readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	r, err := c.call(unix.DM_DEV_CREATE, name, 0, nil)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: there is a device of that name", err)
	}
	if err != nil {
		return fail("create", err)
	}
	defer func() {
		if err != nil {
			// What went wrong first matters more than this.
			_ = c.Remove(name)
		}
	}()
	if _, err := c.call(unix.DM_TABLE_LOAD, name, flags, targets); err != nil {
		return fail("load the table", c.explain(err, targets))
	}
	// Without DM_SUSPEND_FLAG this is what resumes.
	if _, err := c.call(unix.DM_DEV_SUSPEND, name, flags, nil); err != nil {
		return fail("activate the table", err)
	}
	return r.path(), nil
}

// explain adds to the kernel's reason for refusing a table what to do about it.
func (c *Control) explain(err error, targets []target) error {
	kind := targets[0].kind
	switch {
	case errors.Is(err, unix.EINVAL):
		// Both an unknown target and arguments that it does not take.
		if kinds, e := c.kinds(); e == nil && !slices.Contains(kinds, kind) {
			return fmt.Errorf("target %s: %w: %w; load the module dm_%s", kind, ErrMissing, err, kind)
		}
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTBLK):
		var missing []string
		for _, t := range targets {
			for _, d := range t.devices {
				if _, e := os.Stat(d); e != nil && !slices.Contains(missing, d) {
					missing = append(missing, d)
				}
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%w: %s: not there", err, strings.Join(missing, ", "))
		}
	case kind == verityKind && errors.Is(err, unix.E2BIG):
		// Not what strerror(3) says.
		return fmt.Errorf("%w: %s is too small for the hash tree", err, targets[0].devices[1])
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s: mounted, or used by another device", err, strings.Join(targets[0].devices, ", "))
	}
	return fmt.Errorf("%w: the kernel log says what is wrong with %q", err, targets[0].String())
}

// Remove removes the named device. It must not be mounted or open.
func (c *Control) Remove(name string) error {
	_, err := c.call(unix.DM_DEV_REMOVE, name, 0, nil)
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: it is open, or something is mounted from it", err)
	case errors.Is(err, unix.ENXIO):
		err = fmt.Errorf("%w: there is no device of that name", err)
	}
	if err != nil {
		return fmt.Errorf("mapped device %q: remove: %w", name, err)
	}
	return nil
}

// A Device is a mapped device.
type Device struct {
	Name string
	Path string // of its node
}

// List returns all mapped devices, sorted by name.
func (c *Control) List() ([]Device, error) {
	r, err := c.call(unix.DM_LIST_DEVICES, "", 0, nil)
	if err != nil {
		return nil, fmt.Errorf("list mapped devices: %w", err)
	}
	devices, err := r.devices()
	slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return devices, err
}

// A Status is the state of a mapped device.
type Status struct {
	Device
	Open      int // how many have it open or mounted
	ReadOnly  bool
	Suspended bool
	Targets   []TargetStatus
}

// A TargetStatus is what a target says about itself. That of verity is "V", or "C"
// once it has found a block that is damaged.
type TargetStatus struct {
	Kind string // verity, linear
	Text string
}

// Status returns the state of the named device.
func (c *Control) Status(name string) (Status, error) {
	r, err := c.call(unix.DM_TABLE_STATUS, name, 0, nil)
	if errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("%w: there is no device of that name", err)
	}
	if err != nil {
		return Status{}, fmt.Errorf("mapped device %q: status: %w", name, err)
	}
	targets, err := r.targets()
	return Status{
		Device:    Device{name, r.path()},
		Open:      int(r.header.Open_count),
		ReadOnly:  r.header.Flags&unix.DM_READONLY_FLAG != 0,
		Suspended: r.header.Flags&unix.DM_SUSPEND_FLAG != 0,
		Targets:   targets,
	}, err
}

// kinds returns the names of the targets that the kernel has.
func (c *Control) kinds() ([]string, error) {
	r, err := c.call(unix.DM_LIST_VERSIONS, "", 0, nil)
	if err != nil {
		return nil, err
	}
	return r.kinds()
}

// maxRoom is how many bytes an answer may take.
const maxRoom = 1 << 20

// call is one ioctl. The answer gets the room it needs.
func (c *Control) call(request uint, name string, flags uint32, targets []target) (*answer, error) {
	for room := 16 << 10; ; room *= 4 {
		buf, err := encode(name, flags, targets, room)
		if err != nil {
			return nil, err
		}
		if err := c.ioctl(request, buf); err != nil {
			return nil, err
		}
		r, err := decode(buf)
		if err != nil {
			return nil, err
		}
		if r.header.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return r, nil
		}
		if room >= maxRoom {
			return nil, fmt.Errorf("the kernel's answer takes more than %d bytes", maxRoom)
		}
	}
}

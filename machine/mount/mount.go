//go:build linux

package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A FileSystem is what to mount where.
type FileSystem struct {
	Source string
	Target string
	Type   string
	Flags  uintptr
	Data   string
}

// Mount mounts fs on its target, which must exist. The error names everything
// that matters.
func Mount(fs FileSystem) error {
	if err := unix.Mount(fs.Source, fs.Target, fs.Type, fs.Flags, fs.Data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w%s", fs.Source, fs.Type, fs.Target, err, hint(fs, err))
	}
	return nil
}

func hint(fs FileSystem, err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		if _, err := os.Stat(fs.Target); err != nil {
			return ": the image has no directory " + fs.Target
		}
		return ": " + fs.Source + " does not exist"
	case errors.Is(err, unix.ENODEV):
		return ": the kernel does not know " + fs.Type + ": is its module in the image?"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN):
		return ": there is no sound " + fs.Type + " on it"
	}
	return ""
}

// Known reports whether the kernel knows the file system type, without loading
// a module for it.
func Known(fsType string) bool {
	data, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == fsType {
			return true
		}
	}
	return false
}

// Loop attaches the file to a free loop device, read-only, and returns the
// device. The device detaches from the file when nothing uses it any more; the
// file may be unlinked at once. The caller closes the device after mounting it.
func Loop(file string) (*os.File, error) {
	backing, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
	// Another process may take the free device first; the kernel then says it
	// is busy.
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device for %s: %w", file, err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device for %s: %w", file, err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("attach %s to %s: %w", file, dev.Name(), err)
		}
	}
	return nil, fmt.Errorf("loop device for %s: %w", file, unix.EBUSY)
}

// Image mounts the squashfs in file on target, read-only.
func Image(file, target string) error {
	dev, err := Loop(file)
	if err != nil {
		return err
	}
	defer dev.Close()
	err = Mount(FileSystem{dev.Name(), target, "squashfs", unix.MS_RDONLY | unix.MS_NODEV, ""})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// maxOptions is what mount(2) takes of options, in bytes: a page less the zero.
const maxOptions = 4095

// Overlay mounts a read-only overlay of the directories lower, lowest first, on
// target. The directories' names must be short and plain: all of them together
// must fit in a page, and none may hold a colon, comma or backslash. The kernel
// takes at most 500 layers.
func Overlay(lower []string, target string) error {
	names := make([]string, len(lower))
	for i, l := range lower {
		if strings.ContainsAny(l, `:,\`) {
			return fmt.Errorf("overlay: directory %q needs a plain name", l)
		}
		names[len(lower)-1-i] = l // the kernel wants the topmost first
	}
	data := "lowerdir=" + strings.Join(names, ":")
	if len(data) > maxOptions {
		return fmt.Errorf("overlay: %d layers are too many: %d bytes of options, at most %d", len(lower), len(data), maxOptions)
	}
	return Mount(FileSystem{"overlay", target, "overlay", unix.MS_RDONLY | unix.MS_NODEV, data})
}

// SwitchRoot makes newRoot, a mount point, the root of the mount namespace and
// of the calling process.
func SwitchRoot(newRoot string) error {
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("chdir %s: %w", newRoot, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", newRoot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot %s: %w", newRoot, err)
	}
	return unix.Chdir("/")
}

// DetachAll takes off everything mounted at or below the directories, the
// latest first, and makes read-only what is still in use. It returns what
// could be neither.
func DetachAll(dirs ...string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points, err := ParseInfo(string(data))
	if err != nil {
		return err
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		path := points[i].Path
		for _, d := range dirs {
			if !Below(path, d) {
				continue
			}
			if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err == nil {
				break
			}
			err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			if err != nil && !errors.Is(err, unix.EINVAL) {
				errs = append(errs, fmt.Errorf("remount %s read-only: %w", path, err))
			}
			break
		}
	}
	return errors.Join(errs...)
}

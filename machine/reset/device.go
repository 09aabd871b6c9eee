//go:build linux

package reset

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Device is a Disk that is a block device.
type Device struct {
	*os.File
	Size int64 // bytes
}

var errBounds = errors.New("beyond the end of the device")

// OpenDevice opens a block device for writing. It fails if anybody has mounted it
// or a part of it.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Device{f, size}, nil
}

// Discard tells the device that n bytes from off are not needed.
func (d *Device) Discard(off, n int64) error { return d.erase(unix.BLKDISCARD, "discard", off, n) }

// Zero makes n bytes from off zeros; the kernel sends them if the device cannot
// do it by itself.
func (d *Device) Zero(off, n int64) error { return d.erase(unix.BLKZEROOUT, "zero", off, n) }

func (d *Device) erase(request uintptr, verb string, off, n int64) error {
	err := errBounds
	if off >= 0 && n >= 0 && off <= d.Size-n {
		arg := [2]uint64{uint64(off), uint64(n)} // see linux/fs.h
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), request, uintptr(unsafe.Pointer(&arg)))
		if errno == 0 {
			return nil
		}
		err = errno
	}
	return fmt.Errorf("%s %d bytes at %d of %s: %w", verb, n, off, d.Name(), err)
}

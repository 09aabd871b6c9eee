//go:build linux

package randomseed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is the kernel's generator.
type Device struct{}

// urandom is what entropy is added to.
const urandom = "/dev/urandom"

// Random implements Kernel by getrandom(2).
func (Device) Random(p []byte, wait bool) (good bool, err error) {
	flags := unix.GRND_NONBLOCK
	if wait {
		flags = 0
	}
	good = true
	for n := 0; n < len(p); {
		m, err := unix.Getrandom(p[n:], flags)
		switch {
		case errors.Is(err, unix.EAGAIN): // not good yet
			good, flags = false, unix.GRND_INSECURE
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("getrandom: %w", err)
		default:
			n += m
		}
	}
	return good, nil
}

// Add implements Kernel. Its request is struct rand_pool_info: the bits as int, the
// length in bytes as int, the bytes.
func (Device) Add(p []byte, bits int) error {
	f, err := os.OpenFile(urandom, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ne := binary.NativeEndian
	info := ne.AppendUint32(nil, uint32(bits))
	info = ne.AppendUint32(info, uint32(len(p)))
	info = append(info, p...)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0])))
	runtime.KeepAlive(info)
	if errno != 0 {
		return &os.PathError{Op: "RNDADDENTROPY", Path: urandom, Err: errno}
	}
	return nil
}

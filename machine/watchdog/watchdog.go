//go:build linux

// Package watchdog keeps a machine from hanging for ever: it resets the machine
// unless it is told in time that all is well.
//
// A watchdog is a timer that nothing but a program can wind again: in the chip
// set, in a hypervisor, or, for want of one, in the kernel (softdog). Linux shows
// each as a character device; the kernel's
// Documentation/watchdog/watchdog-api.rst describes it. Opening the device starts
// the timer. The ioctl WDIOC_KEEPALIVE winds it, WDIOC_SETTIMEOUT says in how
// many seconds it runs down, which drivers round or refuse. Closing the device
// stops the timer only if the last thing written to it is the letter V (the magic
// close); otherwise it goes on, and whoever opens the device next takes it over.
//
// A Device is that device. A Keeper winds it for as long as there is progress.
package watchdog

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Path is the first watchdog's device node.
const Path = "/dev/watchdog"

// A Device is a watchdog that runs.
type Device struct {
	f        *os.File
	identity string
	timeout  time.Duration
}

// Open opens the watchdog at path, which starts it, and asks for a timeout of
// whole seconds. The driver may choose another one: see Timeout.
func Open(path string, timeout time.Duration) (*Device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	d, err := newDevice(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	// A driver that takes no other timeout keeps the one it has.
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int((timeout+time.Second-1)/time.Second))
	if err := d.readTimeout(); err != nil {
		_ = d.Stop()
		return nil, err
	}
	return d, d.KeepAlive()
}

// Inherit returns the watchdog that a program before, in this process, has left
// open with Leave.
func Inherit(fd int) (*Device, error) {
	unix.CloseOnExec(fd)
	d, err := newDevice(os.NewFile(uintptr(fd), Path))
	if err != nil {
		return nil, err
	}
	return d, d.readTimeout()
}

func newDevice(f *os.File) (*Device, error) {
	info, err := unix.IoctlGetWatchdogInfo(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%s is not a watchdog: %w", f.Name(), err)
	}
	identity, _, _ := bytes.Cut(info.Identity[:], []byte{0})
	return &Device{f: f, identity: string(identity)}, nil
}

func (d *Device) readTimeout() error {
	n, err := unix.IoctlGetInt(int(d.f.Fd()), unix.WDIOC_GETTIMEOUT)
	if err == nil && n <= 0 {
		err = fmt.Errorf("it says %d seconds", n)
	}
	if err != nil {
		return fmt.Errorf("%s (%s): timeout of the watchdog: %w", d.f.Name(), d.identity, err)
	}
	d.timeout = time.Duration(n) * time.Second
	return nil
}

// Identity is the watchdog's name, as its driver has it.
func (d *Device) Identity() string { return d.identity }

// Timeout is in how long the watchdog resets the machine, as the driver says.
func (d *Device) Timeout() time.Duration { return d.timeout }

// KeepAlive begins the timeout anew.
func (d *Device) KeepAlive() error {
	if err := unix.IoctlWatchdogKeepalive(int(d.f.Fd())); err != nil {
		return fmt.Errorf("%s (%s): keeping the watchdog alive: %w", d.f.Name(), d.identity, err)
	}
	return nil
}

// Leave returns a file descriptor of the watchdog that stays open, and so
// running, when the process executes another program: see Inherit.
func (d *Device) Leave() (int, error) {
	fd := int(d.f.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return 0, fmt.Errorf("%s: keeping it open: %w", d.f.Name(), err)
	}
	return fd, nil
}

// Stop stops the watchdog and closes the device. Kernels and drivers may be
// configured never to let a watchdog be stopped (nowayout): it then resets the
// machine, and the kernel says so.
func (d *Device) Stop() error {
	_, err := d.f.Write([]byte("V"))
	if cerr := d.f.Close(); err == nil {
		err = cerr
	}
	return err
}

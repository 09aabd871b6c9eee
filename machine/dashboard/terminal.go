//go:build linux

package dashboard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// vtActivate is a request of ioctl_console(2), VT_ACTIVATE.
const vtActivate = 0x5606

// Files of sysfs: the name of the virtual console that is on the screen, and the
// drivers of virtual consoles.
const (
	sysfs      = "/sys"
	activeFile = "class/tty/tty0/active"
	drivers    = "class/vtconsole/vtcon*"
)

// ErrBusy says that a terminal did not take all it was given, as when somebody has
// stopped its output.
var ErrBusy = errors.New("the terminal does not take more")

// A Terminal is a virtual console.
type Terminal struct {
	fd     int
	number int
}

// Open opens the virtual console of that number, from 1. The error is
// fs.ErrNotExist or ENXIO if the kernel has none. What is typed there does nothing.
func Open(number int) (*Terminal, error) {
	path := fmt.Sprintf("/dev/tty%d", number)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t := &Terminal{fd, number}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, mode)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// Show makes the terminal the one that is on the screen.
func (t *Terminal) Show() error {
	if err := unix.IoctlSetInt(t.fd, vtActivate, t.number); err != nil {
		return fmt.Errorf("show tty%d: %w", t.number, err)
	}
	return nil
}

// Visible reports whether there is a screen, and the terminal is on it.
func (t *Terminal) Visible() bool { return visible(os.DirFS(sysfs), t.number) }

func visible(sysfs fs.FS, number int) bool {
	read := func(name string) string {
		data, _ := fs.ReadFile(sysfs, name)
		return strings.TrimSpace(string(data))
	}
	if read(activeFile) != fmt.Sprintf("tty%d", number) {
		return false
	}
	// Without a screen a driver called "(S) dummy device" has the consoles.
	list, _ := fs.Glob(sysfs, drivers)
	return !slices.ContainsFunc(list, func(dir string) bool {
		return read(dir+"/bind") == "1" && strings.Contains(read(dir+"/name"), "dummy")
	})
}

// Size returns the columns and rows.
func (t *Terminal) Size() (width, height int, err error) {
	w, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, fmt.Errorf("size of tty%d: %w", t.number, err)
	}
	return int(w.Col), int(w.Row), nil
}

// Write sends a piece to the terminal, and forgets what was typed. The error is
// ErrBusy if the terminal does not take all of it.
func (t *Terminal) Write(p []byte) (int, error) {
	_ = unix.IoctlSetInt(t.fd, unix.TCFLSH, unix.TCIFLUSH) // what was typed
	n, err := unix.Write(t.fd, p)
	switch {
	case err == unix.EAGAIN || err == nil && n < len(p):
		return max(n, 0), ErrBusy
	case err != nil:
		return 0, fmt.Errorf("tty%d: %w", t.number, err)
	}
	return n, nil
}

// Close closes the terminal. What it shows stays.
func (t *Terminal) Close() error { return unix.Close(t.fd) }

//go:build linux

package console

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The actions of syslog(2) that stop kernel messages from reaching the console
// and let them again.
const (
	syslogConsoleOff = 6
	syslogConsoleOn  = 7
)

// patience is how long a line may take to leave. A console nobody reads from
// must not stop the machine from starting.
const patience = 2 * time.Second

// A Device is the system console. Each Write is a line that no kernel message
// cuts in two; a copy goes to the kernel's log at level debug, and one to the
// screen, if the machine has one and the console is something else.
type Device struct {
	mu      sync.Mutex
	tty     *os.File
	kmsg    string
	screen  int // file descriptor, below 0 if there is none
	pending chan struct{}
}

// OpenDevice opens the device node of the console, of the kernel's log and of the
// screen's first virtual console. What cannot be opened is done without: lines
// then reach the log at level notice.
func OpenDevice(tty, kmsg, screen string) *Device {
	d := &Device{kmsg: kmsg, screen: -1}
	d.tty, _ = os.OpenFile(tty, os.O_WRONLY|unix.O_NOCTTY, 0)
	if d.tty == nil || !virtual(d.tty) {
		// Whoever holds its output up must not hold the console up.
		if fd, err := unix.Open(screen, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			d.screen = fd
		}
	}
	return d
}

// virtual reports whether a terminal is a virtual console, which /dev/console is
// if the kernel's last argument console= says so.
func virtual(tty *os.File) bool {
	const ttyMajor, serial = 4, 64 // from that minor number on
	device, err := unix.IoctlGetUint32(int(tty.Fd()), unix.TIOCGDEV)
	return err == nil && unix.Major(uint64(device)) == ttyMajor && unix.Minor(uint64(device)) < serial
}

// Write writes a line to the console and waits until it is out.
func (d *Device) Write(line []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	level := "<15>" // facility user, level debug
	if d.tty == nil {
		level = "<13>" // notice
	}
	timeout := time.After(patience)
	if d.pending != nil {
		select {
		case <-d.pending:
		case <-timeout:
			return len(line), nil
		}
	}
	done := make(chan struct{})
	d.pending = done
	text := string(line)
	go func() {
		defer close(done)
		if d.tty != nil || d.screen >= 0 {
			_, _ = unix.Klogctl(syslogConsoleOff, nil)
			defer func() { _, _ = unix.Klogctl(syslogConsoleOn, nil) }()
		}
		// The kernel drops what comes too fast from one who has opened its log.
		if log, err := os.OpenFile(d.kmsg, os.O_WRONLY, 0); err == nil {
			_, _ = log.WriteString(shorten(level + text))
			log.Close()
		}
		if d.tty != nil {
			_, _ = d.tty.WriteString(text)
			_ = unix.IoctlSetInt(int(d.tty.Fd()), unix.TCSBRK, 1) // tcdrain
		}
		if d.screen >= 0 {
			_, _ = unix.Write(d.screen, []byte(text))
		}
	}()
	select {
	case <-done:
	case <-timeout:
	}
	return len(line), nil
}

// SinceKernelStart returns the time since the kernel started, with the time the
// machine was suspended.
func SinceKernelStart() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// maxMessage is what the kernel takes in one write to /dev/kmsg, in bytes
// (PRINTKRB_RECORD_MAX); longer ones it refuses.
const maxMessage = 1024

func shorten(message string) string {
	const end = "…\n"
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-len(end)], "") + end
}

// Priority writes lines to /dev/kmsg with a level from 0, emergency, to 7,
// debug.
type Priority struct {
	Writer io.Writer
	Level  int
}

// Write writes a line, as far as the kernel takes one.
func (p Priority) Write(line []byte) (int, error) {
	const user = 1 // facility
	if _, err := io.WriteString(p.Writer, shorten(fmt.Sprintf("<%d>%s", user*8+p.Level, line))); err != nil {
		return 0, err
	}
	return len(line), nil
}

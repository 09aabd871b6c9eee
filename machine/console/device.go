//go:build linux

package console

import (
	"os"
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
// cuts in two; a copy goes to the kernel's log at level debug.
type Device struct {
	mu      sync.Mutex
	tty     *os.File
	kmsg    *os.File
	pending chan struct{}
}

// OpenDevice opens the device node of the console and of the kernel's log. What
// cannot be opened is done without: lines then reach the log at level notice.
func OpenDevice(tty, kmsg string) *Device {
	d := &Device{}
	d.tty, _ = os.OpenFile(tty, os.O_WRONLY|unix.O_NOCTTY, 0)
	d.kmsg, _ = os.OpenFile(kmsg, os.O_WRONLY, 0)
	return d
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
		if d.tty != nil {
			_, _ = unix.Klogctl(syslogConsoleOff, nil)
			defer func() { _, _ = unix.Klogctl(syslogConsoleOn, nil) }()
		}
		if d.kmsg != nil {
			_, _ = d.kmsg.WriteString(level + text)
		}
		if d.tty != nil {
			_, _ = d.tty.WriteString(text)
			_ = unix.IoctlSetInt(int(d.tty.Fd()), unix.TCSBRK, 1) // tcdrain
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

//go:build linux

package uevent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrOverrun is returned by Receive when the kernel had to drop events: what
// they told must be read from sysfs.
var ErrOverrun = errors.New("uevent: events were lost")

// receiveBuffer holds the events of a big machine's boot, in bytes.
const receiveBuffer = 16 << 20

// A Listener receives the kernel's events from its creation on.
type Listener struct{ fd int }

// Listen opens a Listener. The caller closes it.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	return &Listener{fd}, nil
}

// Receive returns the next event. It waits for at most the given time, or
// without limit if that is negative; then the event is nil.
func (l *Listener) Receive(wait time.Duration) (Event, error) {
	deadline := time.Now().Add(wait)
	buf := make([]byte, 16<<10)
	for {
		n, from, err := unix.Recvfrom(l.fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOBUFS:
			return nil, ErrOverrun
		case err == nil:
			// Only the kernel is heard, not another process that found the group.
			if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
				continue
			}
			if e, err := ParseMessage(buf[:n]); err == nil {
				return e, nil
			}
			continue
		case err != unix.EAGAIN:
			return nil, fmt.Errorf("uevent socket: %w", err)
		}
		timeout := -1
		if wait >= 0 {
			left := time.Until(deadline)
			if left <= 0 {
				return nil, nil
			}
			timeout = int(left/time.Millisecond) + 1
		}
		poll := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, timeout); err != nil && err != unix.EINTR {
			return nil, fmt.Errorf("uevent socket: %w", err)
		}
	}
}

// Close closes the socket.
func (l *Listener) Close() error { return unix.Close(l.fd) }

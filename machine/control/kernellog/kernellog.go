//go:build linux

// Package kernellog sends the kernel's log to those who ask PID 1 for it.
package kernellog

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/kmsg"
)

// Device is the kernel's log.
const Device = "/dev/kmsg"

const (
	maxRecord = 16 << 10 // more than the kernel makes of one message, in bytes
	patience  = 250      // milliseconds between looks at the context
)

// Send sends what the log at path holds, and then, if asked to, what comes.
func Send(ctx context.Context, path string, r control.TailRequest, send func(control.DmesgLine) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	l := log{fd: fd, buf: make([]byte, maxRecord)}
	var past []control.DmesgLine
	for {
		line, ok, err := l.next()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if !ok {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.Tail < 0 {
			if err := send(line); err != nil {
				return err
			}
		} else if past = append(past, line); len(past) > r.Tail {
			past = past[1:]
		}
	}
	for _, line := range past {
		if err := send(line); err != nil {
			return err
		}
	}
	for r.Follow {
		if err := ctx.Err(); err != nil {
			return err
		}
		line, ok, err := l.next()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		case ok:
			if err := send(line); err != nil {
				return err
			}
		default:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience) // only to wait
		}
	}
	return nil
}

type log struct {
	fd   int
	buf  []byte
	last uint64 // sequence
	any  bool
}

// next returns the next message, if there is one.
func (l *log) next() (line control.DmesgLine, ok bool, err error) {
	for {
		n, err := unix.Read(l.fd, l.buf)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EPIPE): // overwritten: the next read goes on behind that
			continue
		case errors.Is(err, unix.EAGAIN) || err == nil && n == 0:
			return line, false, nil
		case err != nil:
			return line, false, err
		}
		r, err := kmsg.Parse(string(l.buf[:n]))
		if err != nil {
			return line, false, err
		}
		line = control.DmesgLine{
			Sequence: r.Sequence, Microseconds: uint64(r.Time.Microseconds()), Level: uint32(r.Level), Facility: uint32(r.Facility), Message: r.Message,
		}
		if l.any && r.Sequence > l.last+1 {
			line.Lost = r.Sequence - l.last - 1
		}
		l.last, l.any = r.Sequence, true
		return line, true, nil
	}
}

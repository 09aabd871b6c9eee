//go:build linux

// Package reaper buries the orphans that a PID 1 inherits, and leaves alone the
// programs that it starts itself: os/exec waits for those, and finds ECHILD if
// somebody else was first.
package reaper

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Reaper buries every child but those that were started with its Run.
type Reaper struct {
	mu    sync.Mutex
	known map[int]bool
	wake  chan os.Signal
}

// New returns a Reaper at work, for the rest of the process's life. A process
// has one: a second would bury what the first one's Run waits for.
func New() *Reaper {
	r := &Reaper{known: map[int]bool{}, wake: make(chan os.Signal, 1)}
	signal.Notify(r.wake, unix.SIGCHLD)
	go func() {
		for range r.wake {
			r.reap()
		}
	}()
	return r
}

// Run is c.Run for a process with a Reaper.
func (r *Reaper) Run(c *exec.Cmd) error {
	wait, err := r.Start(c)
	if err != nil {
		return err
	}
	return wait()
}

// Start is c.Start for a process with a Reaper. The result is c.Wait.
func (r *Reaper) Start(c *exec.Cmd) (wait func() error, err error) {
	r.mu.Lock() // so that the child is known before it can be buried
	defer r.mu.Unlock()
	if err := c.Start(); err != nil {
		return nil, err
	}
	r.known[c.Process.Pid] = true
	return func() error {
		err := c.Wait()
		r.mu.Lock()
		delete(r.known, c.Process.Pid)
		r.mu.Unlock()
		select {
		case r.wake <- unix.SIGCHLD: // for those that were behind it
		default:
		}
		return err
	}, nil
}

// reap buries the children that are dead. The kernel shows one of them at a
// time; if that one is known, its Run is about to take it away and to wake the
// Reaper again.
func (r *Reaper) reap() {
	for {
		var info siginfo
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || info.pid == 0 || !r.bury(int(info.pid)) {
			return
		}
	}
}

func (r *Reaper) bury(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[pid] {
		return false
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || errors.Is(err, unix.EINTR)
}

// siginfo is the kernel's siginfo_t for SIGCHLD, on 64-bit machines.
type siginfo struct {
	_   [16]byte // signo, errno, code and padding
	pid int32
	_   [108]byte
}

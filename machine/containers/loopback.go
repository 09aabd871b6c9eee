//go:build linux

package containers

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// loopback brings the loopback interface up in the network name space of a process.
func loopback(pid int) error {
	done := make(chan error)
	go func() {
		// The thread is in the other name space for good: it ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network name space of process %d: %w", pid, err)
			}
			return up("lo")
		}()
	}()
	return <-done
}

// up brings an interface up, as netdevice(7) says.
func up(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

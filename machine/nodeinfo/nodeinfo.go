//go:build linux

// Package nodeinfo reads what the kernel tells every user about a machine:
// processes, memory, CPU time, pressure, network and disk traffic, mounts. The
// formats are those of proc(5) and of the kernel's documentation of procfs,
// pressure stall information and block statistics.
//
// The JSON names of the types are those of the messages in api/v1alpha1.
package nodeinfo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// System is a machine.
type System struct {
	Proc string // where procfs is mounted
}

// Local is the machine that this program runs on.
func Local() System { return System{Proc: "/proc"} }

// read returns a file of procfs.
func (s System) read(name string) (string, error) {
	data, err := os.ReadFile(filepath.Join(s.Proc, name))
	return string(data), err
}

// ErrFormat is wrapped by the errors of the parsers.
var ErrFormat = errors.New("unexpected format")

// malformed is an error about a line of a file.
func malformed(file, line, want string) error {
	return fmt.Errorf("%s: %w: found %.120q, want %q", file, ErrFormat, line, want)
}

// tick is the unit of times in procfs: USER_HZ, 100 on every architecture that
// Go knows.
const tick = 10 * time.Millisecond

// ticks returns milliseconds.
func ticks(n uint64) uint64 { return n * uint64(tick/time.Millisecond) }

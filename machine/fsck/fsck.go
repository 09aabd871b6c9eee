// Package fsck has e2fsck check and repair ext4 file systems that are not mounted.
//
// The exit status of e2fsck(8) is a sum of
//
//	  1  errors were corrected
//	  2  errors were corrected, the machine should be restarted
//	  4  errors were left as they are
//	  8  e2fsck did not get that far
//	 16  wrong arguments
//	 32  it was interrupted
//	128  a shared library is missing
package fsck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
)

// Program is where a node has e2fsck.
const Program = "/usr/bin/e2fsck"

// Superblock of ext4: little-endian, at byte 1024.
const (
	superOffset = 1024
	magicOffset = 0x38
	magic       = 0xef53
	stateOffset = 0x3a
	stateErrors = 2
)

// Asks reports whether the file system asks for a check: the kernel has found
// something wrong when it was mounted last. That it was not unmounted is no reason,
// the journal is there for that.
func Asks(r io.ReaderAt) (bool, error) {
	b := make([]byte, 64)
	if _, err := r.ReadAt(b, superOffset); err != nil {
		return false, err
	}
	word := binary.LittleEndian.Uint16
	return word(b[magicOffset:]) == magic && word(b[stateOffset:])&stateErrors != 0, nil
}

// ErrDamaged is wrapped by the errors for what is still damaged after a repair.
var ErrDamaged = errors.New("cannot be repaired")

// maxOutput bounds what is kept of what e2fsck prints, in bytes.
const maxOutput = 64 << 10

// Repair checks the file system on a device and repairs all that it can. What it
// did is in the lines that it returns: none if there was nothing to do. What no
// directory leads to any more is put into lost+found. run starts a program and
// waits for it.
func Repair(program, device string, run func(*exec.Cmd) error) (done []string, err error) {
	out := &limited{left: maxOutput}
	c := exec.Command(program, "-f", "-y", device)
	c.Env = []string{"E2FSCK_CONFIG=/dev/null", "LC_ALL=C"}
	c.Stdout, c.Stderr = out, out
	err = run(c)
	lines := repairs(out.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil, nil
	case !errors.As(err, &exit) || !exit.Exited():
		return lines, fmt.Errorf("%s %s: %w", program, device, err)
	case exit.ExitCode() <= 3: // corrected
		return lines, nil
	case exit.ExitCode()&^7 == 0:
		return lines, fmt.Errorf("the file system on %s %w: %s", device, ErrDamaged, last(lines))
	}
	return lines, fmt.Errorf("%s %s: exit status %d: %w: %s", program, device, exit.ExitCode(), ErrDamaged, last(lines))
}

// summary is how e2fsck ends for a file system that is sound.
var summary = regexp.MustCompile(`: \d+/\d+ files \(.*\), \d+/\d+ blocks$`)

// repairs returns the lines of e2fsck's output that tell of a repair, or why there
// was none, without those that say what is being looked at, and its advice.
func repairs(out string) []string {
	out, _, _ = strings.Cut(out, "The superblock could not be read or does not describe a valid")
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Pass ") || strings.HasPrefix(line, "e2fsck ") || summary.MatchString(line) {
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

func last(lines []string) string {
	if len(lines) == 0 {
		return "it does not say why"
	}
	return lines[len(lines)-1]
}

// limited keeps the first bytes that are written to it.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.Buffer.Write(p[:n])
	return len(p), nil
}

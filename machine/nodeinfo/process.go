//go:build linux

package nodeinfo

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A Process is one process, without its threads.
type Process struct {
	PID      int32     `json:"pid"`
	Parent   int32     `json:"parent"`
	UID      uint32    `json:"uid"`     // effective
	State    string    `json:"state"`   // a letter
	Threads  uint32    `json:"threads"` //
	Name     string    `json:"name"`    // up to 15 bytes
	Command  string    `json:"command"` // arguments, quoted where needed
	CPU      uint64    `json:"cpu"`     // user and system time, in milliseconds
	Virtual  uint64    `json:"virtual"` // bytes
	Resident uint64    `json:"resident"`
	Started  time.Time `json:"started,omitzero"`
	CGroup   string    `json:"cgroup"` // in the unified hierarchy
	Kernel   bool      `json:"kernel"` // thread of the kernel
	start    uint64    // ticks after the machine's
}

// maxCommand is the length that a command is cut to, in bytes.
const maxCommand = 4096

// Processes returns the processes, by ID; the kernel's threads only if kernel is
// set. What ends meanwhile is left out.
func (s System) Processes(kernel bool) ([]Process, error) {
	stat, err := s.read("stat")
	if err != nil {
		return nil, err
	}
	times, err := parseStat(stat)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.Proc)
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 31); err != nil {
			continue
		}
		p, err := s.process(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH):
			continue
		case err != nil:
			return nil, err
		case p.Kernel && !kernel:
			continue
		}
		p.Started = times.Boot.Add(time.Duration(p.start) * tick)
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Process) int { return int(a.PID) - int(b.PID) })
	return list, nil
}

func (s System) process(pid string) (Process, error) {
	data, err := s.read(pid + "/stat")
	if err != nil {
		return Process{}, err
	}
	p, err := parseProcess(data)
	if err != nil {
		return p, err
	}
	if data, err = s.read(pid + "/status"); err != nil {
		return p, err
	}
	if p.UID, err = parseUID(data); err != nil {
		return p, err
	}
	if data, err = s.read(pid + "/cmdline"); err != nil {
		return p, err
	}
	p.Command = command(data)
	// Kernels without control groups have no such file.
	if data, err = s.read(pid + "/cgroup"); err == nil {
		p.CGroup = unified(data)
	}
	return p, nil
}

// parseProcess reads /proc/PID/stat. The name is in parentheses and may hold
// anything, parentheses too.
func parseProcess(data string) (Process, error) {
	const file, want = "/proc/PID/stat", "PID (NAME) STATE PPID …"
	open, end := strings.IndexByte(data, '('), strings.LastIndexByte(data, ')')
	if open < 1 || end < open {
		return Process{}, malformed(file, data, want)
	}
	f := strings.Fields(data[end+1:]) // f[0] is field 3 of proc(5)
	if len(f) < 22 || len(f[0]) != 1 {
		return Process{}, malformed(file, data, want)
	}
	n := numbers{}
	p := Process{
		PID:     int32(n.parse(strings.TrimSpace(data[:open]), 31)),
		Name:    data[open+1 : end],
		State:   f[0],
		Parent:  int32(n.parse(f[1], 31)),
		Kernel:  n.parse(f[6], 32)&pfKthread != 0,
		CPU:     ticks(n.parse(f[11], 56) + n.parse(f[12], 56)),
		Threads: uint32(n.parse(f[17], 31)),
		start:   n.parse(f[19], 48),
		Virtual: n.parse(f[20], 64),
		// Pages, which are of the machine's size.
		Resident: n.parse(f[21], 48) * uint64(os.Getpagesize()),
	}
	if n.bad {
		return Process{}, malformed(file, data, want)
	}
	return p, nil
}

// pfKthread is the flag of the kernel's threads, see include/linux/sched.h.
const pfKthread = 0x00200000

// numbers parses numbers and remembers if one was none.
type numbers struct{ bad bool }

func (n *numbers) parse(s string, bits int) uint64 {
	v, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		n.bad = true
	}
	return v
}

// parseUID returns the effective user of /proc/PID/status.
func parseUID(data string) (uint32, error) {
	for line := range strings.Lines(data) {
		ids, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		f := strings.Fields(ids)
		n := numbers{}
		if len(f) == 4 {
			if uid := n.parse(f[1], 32); !n.bad {
				return uint32(uid), nil
			}
		}
		return 0, malformed("/proc/PID/status", line, "Uid: REAL EFFECTIVE SAVED FILESYSTEM")
	}
	return 0, malformed("/proc/PID/status", data, "Uid:")
}

// command returns the arguments of /proc/PID/cmdline, which zero bytes end, as a
// line. A process may write there what it likes.
func command(data string) string {
	if len(data) > maxCommand {
		data = data[:maxCommand]
	}
	var words []string
	for _, arg := range strings.Split(strings.TrimRight(data, "\x00"), "\x00") {
		if arg == "" && data != "" || !utf8.ValidString(arg) || strings.ContainsFunc(arg, func(r rune) bool { return r == ' ' || r == '"' || !strconv.IsPrint(r) }) {
			arg = strconv.Quote(arg)
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// unified returns the path of hierarchy 0 of /proc/PID/cgroup.
func unified(data string) string {
	for line := range strings.Lines(data) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n")
		}
	}
	return ""
}

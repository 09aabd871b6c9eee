//go:build linux

// Package power turns a machine off: it hears the power button and the signals
// that ask PID 1 to, stops the processes, syncs and takes off the file systems.
package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
)

// An Action is what becomes of the machine.
type Action int

const (
	Off Action = iota
	Restart
)

func (a Action) String() string {
	if a == Restart {
		return "reboot"
	}
	return "poweroff"
}

// request returns what a signal to PID 1 asks for. SIGUSR1, SIGUSR2 and SIGTERM
// are as BusyBox has them, SIGPWR comes from LXC and from an uninterruptible
// power supply, and the kernel sends SIGINT for ctrl-alt-del.
func request(s os.Signal) Request {
	switch s {
	case unix.SIGINT:
		return Request{Restart, "ctrl-alt-del"}
	case unix.SIGTERM:
		return Request{Restart, "SIGTERM"}
	case unix.SIGPWR:
		return Request{Off, "SIGPWR"}
	case unix.SIGUSR1:
		return Request{Off, "SIGUSR1"}
	}
	return Request{Off, "SIGUSR2"}
}

// Signal is the signal that asks PID 1 for a.
func (a Action) Signal() unix.Signal {
	if a == Restart {
		return unix.SIGTERM
	}
	return unix.SIGUSR2
}

// A Request is an action and who asked for it.
type Request struct {
	Action Action
	Reason string
}

// Signals sends a request for every signal that is one, from now on. It also
// asks the kernel to turn ctrl-alt-del into SIGINT instead of a reset.
func Signals(c chan<- Request) {
	s := make(chan os.Signal, 8)
	signal.Notify(s, unix.SIGINT, unix.SIGTERM, unix.SIGPWR, unix.SIGUSR1, unix.SIGUSR2)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	go func() {
		for sig := range s {
			c <- request(sig)
		}
	}()
}

// Numbers of input events, from linux/input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// eventSize is the size of struct input_event: two words of time, u16 type, u16
// code, s32 value.
const eventSize = 2*strconv.IntSize/8 + 8

// Buttons hears the power buttons among the input devices.
type Buttons struct {
	c    chan<- Request
	mu   sync.Mutex
	seen map[string]bool
}

// NewButtons returns Buttons that send their requests to c.
func NewButtons(c chan<- Request) *Buttons { return &Buttons{c: c, seen: map[string]bool{}} }

// Scan opens every power button in /dev/input that is not yet heard and returns
// the number of those heard. It is called again when input devices appear.
func (b *Buttons) Scan() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	paths, _ := filepath.Glob("/sys/class/input/event*")
	for _, p := range paths {
		name := filepath.Base(p)
		keys, err := os.ReadFile(filepath.Join(p, "device/capabilities/key"))
		if b.seen[name] || err != nil || !hasBit(string(keys), keyPower) {
			continue
		}
		f, err := os.Open("/dev/input/" + name)
		if err != nil {
			continue
		}
		b.seen[name] = true
		go b.listen(name, f)
	}
	return len(b.seen)
}

// hasBit reports whether a bit is set in a bitmap as sysfs shows it: words of
// the kernel's long in hexadecimal, the highest first.
func hasBit(bitmap string, bit int) bool {
	words := strings.Fields(bitmap)
	i := len(words) - 1 - bit/strconv.IntSize
	if i < 0 {
		return false
	}
	w, err := strconv.ParseUint(words[i], 16, 64)
	return err == nil && w>>(bit%strconv.IntSize)&1 == 1
}

func (b *Buttons) listen(name string, f *os.File) {
	defer f.Close()
	buf := make([]byte, 64*eventSize)
	for {
		n, err := f.Read(buf)
		if err != nil {
			b.mu.Lock()
			delete(b.seen, name) // unplugged
			b.mu.Unlock()
			return
		}
		if pressed(buf[:n]) {
			b.c <- Request{Off, "power button"}
		}
	}
}

// pressed reports whether the power key goes down in a run of input events.
func pressed(events []byte) bool {
	r := bytes.NewReader(events)
	for {
		var e [eventSize]byte
		if _, err := io.ReadFull(r, e[:]); err != nil {
			return false
		}
		ne, v := binary.NativeEndian, e[eventSize-8:]
		if ne.Uint16(v) == evKey && ne.Uint16(v[2:]) == keyPower && ne.Uint32(v[4:]) == 1 {
			return true
		}
	}
}

// Do stops all other processes, syncs, takes off what is mounted at or below
// dirs, and carries out the action. Processes have the time grace to end. It
// returns only when the kernel refuses, and always an error.
func Do(a Action, grace time.Duration, dirs ...string) error {
	stop(grace)
	unix.Sync()
	errs := mount.DetachAll(dirs...)
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if a == Restart {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(cmd); err != nil {
		errs = errors.Join(errs, fmt.Errorf("%v: %w", a, err))
	}
	return errs
}

// stop ends all other processes, first politely.
func stop(grace time.Duration) {
	if len(processes("/proc")) == 0 {
		return
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(processes("/proc")) == 0 {
			return
		}
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	for end := time.Now().Add(time.Second); time.Now().Before(end) && len(processes("/proc")) > 0; {
		time.Sleep(10 * time.Millisecond)
	}
}

// processes returns the processes in proc that run, without PID 1, the kernel's
// threads (children of PID 2) and zombies.
func processes(proc string) []int {
	entries, _ := os.ReadDir(proc)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 2 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat"))
		if err != nil {
			continue
		}
		// PID (NAME) STATE PPID …, and NAME may hold anything.
		i := strings.LastIndex(string(data), ") ")
		if i < 0 {
			continue
		}
		f := strings.Fields(string(data[i+2:]))
		if len(f) < 2 || f[0] == "Z" || f[0] == "X" || f[1] == "2" {
			continue
		}
		pids = append(pids, pid)
	}
	return pids
}

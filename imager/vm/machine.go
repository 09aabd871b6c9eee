//go:build linux

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrEnded is wrapped by errors for a machine that is off, or whose QEMU did not
// start.
var ErrEnded = errors.New("the machine ended")

// A Machine is a running virtual machine.
type Machine struct {
	cmd     *exec.Cmd
	dir     string
	console *console
	pos     int      // in the console, where Wait goes on
	control *os.File // the monitor's connection
	monitor *monitor
	stderr  *tailBuffer

	exited chan struct{} // closed when QEMU is gone
	once   sync.Once
}

// Start starts a machine, whose serial port is copied to console if that is not
// nil. It runs until it is off, until it restarts, until Stop is called or until
// ctx is done. The caller must call Stop.
func Start(ctx context.Context, c Config, console io.Writer) (*Machine, error) {
	c, a, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	program, err := a.program()
	if err != nil {
		return nil, err
	}
	failure := fatal
	if c.Restart {
		failure = final
	}
	m := &Machine{console: newConsole(failure), stderr: &tailBuffer{}, exited: make(chan struct{})}
	if m.dir, err = os.MkdirTemp("", "kiln-vm-"); err != nil {
		return nil, err
	}
	if err := m.start(ctx, program, c, a, console); err != nil {
		os.RemoveAll(m.dir)
		return nil, err
	}
	return m, nil
}

func (m *Machine) start(ctx context.Context, program string, c Config, a arch, copy io.Writer) error {
	serial, theirSerial, err := socketpair("serial")
	if err != nil {
		return err
	}
	defer theirSerial.Close()
	control, theirControl, err := socketpair("monitor")
	if err != nil {
		serial.Close()
		return err
	}
	defer theirControl.Close()
	ok := false
	defer func() {
		if !ok {
			serial.Close()
			control.Close()
		}
	}()

	// Files that the child inherits are numbered from 3.
	f := files{serial: "socket,id=serial,fd=3", monitor: "socket,id=monitor,fd=4"}
	if err := c.prepare(a, m.dir, &f); err != nil {
		return err
	}
	m.cmd = exec.CommandContext(ctx, program, c.arguments(a, f)...)
	if !c.Restart {
		m.cmd.Args = append(m.cmd.Args, "-no-reboot")
	}
	m.cmd.ExtraFiles = []*os.File{theirSerial, theirControl}
	m.cmd.Env = append(os.Environ(), "TMPDIR="+m.dir) // of snapshots
	m.cmd.Stderr = m.stderr
	m.cmd.Stdout = m.stderr
	// In a process group of its own a machine does not get the terminal's
	// interrupt, and is ended as a whole.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m.cmd.Cancel = func() error { return unix.Kill(-m.cmd.Process.Pid, unix.SIGKILL) }
	m.cmd.WaitDelay = 5 * time.Second
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	ok = true
	m.control, m.monitor = control, newMonitor(control)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer serial.Close()
		m.console.follow(serial, copy)
	}()
	go func() {
		defer close(m.exited)
		_ = m.cmd.Wait() // the exit status says nothing
		<-read
	}()
	return nil
}

// prepare gives the machine its firmware's variables.
func (c Config) prepare(a arch, dir string, f *files) error {
	if c.Firmware != UEFI {
		return nil
	}
	uefi, err := a.uefi()
	if err != nil {
		return err
	}
	f.code, f.vars = uefi.code, filepath.Join(dir, "vars.fd")
	if c.Vars != "" {
		uefi.vars = c.Vars
	}
	return copyVars(f.vars, uefi.vars)
}

// socketpair returns a connection, our end first.
func socketpair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for the %s: %w", name, err)
	}
	// Only what does not block can have a deadline.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// Wait returns the next line that the machine prints, or has printed since the
// line that the last Wait returned, that matches one of the expressions. It
// fails as soon as the machine prints that it cannot boot (a *FailedError), is
// off (ErrEnded), or ctx is done. Terminal control sequences are not part of
// lines. Only one goroutine may wait.
func (m *Machine) Wait(ctx context.Context, until ...*regexp.Regexp) (string, error) {
	line, err := m.console.wait(ctx, &m.pos, until)
	if errors.Is(err, ErrEnded) {
		<-m.exited
		if s := m.stderr.String(); s != "" {
			err = fmt.Errorf("%w\nqemu: %s", err, s)
		}
	}
	return line, err
}

// Console returns everything the machine has printed, without terminal control
// sequences.
func (m *Machine) Console() string { return m.console.String() }

// Powerdown presses the power button. What follows is the guest's business; see
// WaitOff.
func (m *Machine) Powerdown(ctx context.Context) error {
	if err := m.execute(ctx, "system_powerdown", nil); err != nil {
		return fmt.Errorf("power button: %w", err)
	}
	return nil
}

func (m *Machine) execute(ctx context.Context, command string, arguments any) error {
	stop := context.AfterFunc(ctx, func() { _ = m.control.SetDeadline(time.Now()) })
	defer stop()
	if err := m.monitor.execute(command, arguments); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// The memory of a VGA card in text mode: rows of 80 characters, each a byte for the
// character and one for its colours.
const (
	textAddress = 0xb8000
	textColumns = 80
	textRows    = 25
)

// Text returns what a Screen in text mode shows, in lines. Characters are those of
// code page 437; what is not in ASCII is '?'. A machine with UEFI has no text mode.
func (m *Machine) Text(ctx context.Context) (string, error) {
	file := filepath.Join(m.dir, "screen")
	err := m.execute(ctx, "pmemsave", map[string]any{"val": textAddress, "size": 2 * textColumns * textRows, "filename": file})
	if err != nil {
		return "", fmt.Errorf("screen: %w", err)
	}
	memory, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return text(memory), nil
}

func text(memory []byte) string {
	var b strings.Builder
	for row := range slices.Chunk(memory, 2*textColumns) {
		var line []byte
		for i := 0; i < len(row); i += 2 {
			switch c := row[i]; {
			case c == 0:
				line = append(line, ' ')
			case c < ' ' || c > '~':
				line = append(line, '?')
			default:
				line = append(line, c)
			}
		}
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return b.String()
}

// Picture saves what a Screen shows as a PNG file.
func (m *Machine) Picture(ctx context.Context, file string) error {
	if err := m.execute(ctx, "screendump", map[string]any{"filename": file, "format": "png"}); err != nil {
		return fmt.Errorf("screen: %w", err)
	}
	return nil
}

// WaitOff waits until the machine is off.
func (m *Machine) WaitOff(ctx context.Context) error {
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the machine is not off: %w\n%s", context.Cause(ctx), m.console.last(20))
	}
}

// Stop ends the machine as if its power was cut, and removes what it had on the
// host. It may be called more than once.
func (m *Machine) Stop() {
	m.once.Do(func() {
		select {
		case <-m.exited: // its number may be another's by now
		default:
			_ = m.cmd.Cancel()
			<-m.exited
		}
		m.control.Close()
		os.RemoveAll(m.dir)
	})
}

// tailBuffer keeps the last 4 KiB written to it.
type tailBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if n := t.buf.Len() - 4096; n > 0 {
		t.buf.Next(n)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}

//go:build linux

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run runs a machine with the terminal as its serial port until it is off. Ctrl-A
// X ends it, Ctrl-A H shows what else there is. The machine may restart.
func Run(ctx context.Context, c Config) error {
	c, a, err := c.withDefaults()
	if err != nil {
		return err
	}
	program, err := a.program()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kiln-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f := files{serial: "stdio,id=serial,mux=on,signal=off"}
	if err := c.prepare(a, dir, &f); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, append(c.arguments(a, f), "-mon", "chardev=serial,mode=readline")...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Asked to end, QEMU restores the terminal. It does not outlive this process.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", a.qemu, err)
	}
	return err
}

//go:build linux

package vm

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestMain is the init of the machines that the tests start, as well.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guest()
	}
	os.Exit(m.Run())
}

// guest is what PID 1 does in a machine.
func guest() {
	_ = os.Mkdir("/proc", 0o755)
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	line, _ := os.ReadFile("/proc/cmdline")
	fmt.Printf("guest: %s", line)
	switch {
	case strings.Contains(string(line), "guest=panic"):
		os.Exit(1)
	case strings.Contains(string(line), "guest=stay"):
		time.Sleep(time.Hour)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// testKernel writes the kernel of a package, and an initramfs with this program
// in it, to a directory.
func testKernel(t *testing.T) Config {
	t.Helper()
	oracle.Tool(t, archs()["amd64"].qemu)
	debs, _ := filepath.Glob(filepath.Join(os.Getenv("KILN_TEST_DEBS"), "linux-image-*-cloud-amd64_*.deb"))
	if os.Getenv("KILN_TEST_DEBS") == "" || len(debs) == 0 {
		t.Skip("SKIPPED: KILN_TEST_DEBS names no directory with a linux-image package of the cloud flavour for amd64")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			t.Skip("SKIPPED: the test is not linked statically and cannot be an init; build it with CGO_ENABLED=0")
		}
	}
	program.Close()
	content, err := extent.File(self)
	if err != nil {
		t.Fatal(err)
	}
	root := tree.New()
	for _, f := range []struct {
		name string
		ino  tree.Inode
	}{
		{"init", tree.Inode{Mode: 0o755, Content: content}},
		{"dev", tree.Inode{Mode: fs.ModeDir | 0o755}},
		{"dev/console", tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1}},
	} {
		if err := root.Add(f.name, &f.ino); err != nil {
			t.Fatal(err)
		}
	}
	initrd, err := cpio.Build(root)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Import(t.Context(), debs[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, src extent.Source) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.Copy(f, extent.Reader(src)); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	return Config{Firmware: BIOS, Memory: 256, Kernel: write("vmlinuz", k.Vmlinuz), Initrd: write("init.cpio", initrd)}
}

// leftovers returns what machines have in the directory for temporary files.
func leftovers(t *testing.T, dir string) []string {
	found, err := filepath.Glob(filepath.Join(dir, "kiln-vm-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	base := testKernel(t)
	guestLine := regexp.MustCompile(`guest: `)
	for _, tc := range []struct {
		name, args string
		firmware   Firmware
		then       func(ctx context.Context, m *Machine) error
	}{
		{"power off", "guest=off", BIOS, func(ctx context.Context, m *Machine) error { return m.WaitOff(ctx) }},
		{"power off, UEFI", "guest=off", UEFI, func(ctx context.Context, m *Machine) error { return m.WaitOff(ctx) }},
		{"panic", "guest=panic panic=30", BIOS, func(ctx context.Context, m *Machine) error {
			_, err := m.Wait(ctx, regexp.MustCompile("never"))
			var failed *FailedError
			if !errors.As(err, &failed) || !strings.Contains(failed.Line, "Attempted to kill init!") {
				return fmt.Errorf("%v, want a FailedError with the kernel's reason", err)
			}
			return nil
		}},
		{"power button and cut", "guest=stay", BIOS, func(ctx context.Context, m *Machine) error {
			for range 2 {
				if err := m.Powerdown(ctx); err != nil {
					return err
				}
			}
			brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if err := m.WaitOff(brief); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("off: %v, want it to stay on, it has no driver for the button", err)
			}
			m.Stop()
			_, err := m.Wait(ctx, regexp.MustCompile("never"))
			if !errors.Is(err, ErrEnded) {
				return fmt.Errorf("%v, want it to be off", err)
			}
			return m.WaitOff(ctx)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			c := base
			c.Cmdline = "console=ttyS0 " + tc.args
			if c.Firmware = tc.firmware; c.Firmware == UEFI {
				oracle.File(t, ovmf()[0].code)
			}
			m, err := Start(ctx, c, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Stop()
			pid := m.cmd.Process.Pid
			line, err := m.Wait(ctx, guestLine)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(line, tc.args) {
				t.Errorf("the guest printed %q, want its command line with %q", line, tc.args)
			}
			if err := tc.then(ctx, m); err != nil {
				t.Error(err)
			}
			m.Stop()
			m.Stop()
			if !strings.Contains(m.Console(), "Linux version") {
				t.Error("the kernel's messages are not on the console")
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d after Stop: %v, want it gone", pid, err)
			}
			if left := leftovers(t, tmp); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A disk with nothing on it is reported by the firmware, without a timeout.
func TestBootEmptyDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	oracle.Tool(t, archs()["amd64"].qemu)
	oracle.File(t, ovmf()[0].code)
	image := filepath.Join(t.TempDir(), "empty, really.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := Start(ctx, Config{Image: image, Snapshot: true, Bus: AHCI}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	_, err = m.Wait(ctx, regexp.MustCompile("never"))
	var failed *FailedError
	if !errors.As(err, &failed) {
		t.Errorf("%v, want the firmware to have failed", err)
	}
}

// What QEMU has to say is part of the error, and the caller's end is the
// machine's.
func TestStartFails(t *testing.T) {
	oracle.Tool(t, archs()["amd64"].qemu)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	m, err := Start(t.Context(), Config{Image: filepath.Join(tmp, "missing.raw"), Firmware: BIOS}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Wait(t.Context(), regexp.MustCompile("never"))
	if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "missing.raw': No such file or directory") {
		t.Errorf("%v, want it to have ended, with QEMU's reason", err)
	}
	m.Stop()

	ctx, cancel := context.WithCancelCause(t.Context())
	image := filepath.Join(tmp, "empty.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err = Start(ctx, Config{Image: image, Firmware: BIOS}, nil); err != nil {
		t.Fatal(err)
	}
	cancel(errors.New("interrupted"))
	if err := m.WaitOff(t.Context()); err != nil {
		t.Error(err)
	}
	m.Stop()
	if left := leftovers(t, tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

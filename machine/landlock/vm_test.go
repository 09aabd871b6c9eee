//go:build linux

package landlock

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/oracle"
)

// inMachine is what the test does as the first process of a machine.
func inMachine() {
	const dir = "/work"
	err := unix.Mount("proc", "/proc", "proc", 0, "")
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600)
	}
	if err == nil {
		err = loopback()
	}
	if err == nil {
		restricted(dir)
	} else {
		fmt.Println(err)
	}
	fmt.Println("guest: end")
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// loopback brings the loopback interface up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// The kernel of the base restricts.
func TestRestrictInMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	oracle.Tool(t, "qemu-system-x86_64")
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := b.Part(base.Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	save := func(name string, src extent.Source) string {
		data, err := io.ReadAll(extent.Reader(src))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{Firmware: vm.BIOS, Memory: 512, Cmdline: "console=ttyS0 quiet panic=-1",
		Kernel: save("vmlinuz", kernel.Content), Initrd: save("initrd", guest.Initramfs(t, nil))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	if _, err := m.Wait(ctx, regexp.MustCompile(`^guest: end`)); err != nil {
		t.Fatal(err)
	}
	console := strings.ReplaceAll(m.Console(), "\r\n", "\n")
	if !strings.Contains(console, refused) || !regexp.MustCompile(`(?m)^version [4-9]$`).MatchString(console) {
		t.Errorf("the console has\n%s\nwant a version of 4 or more, and\n%s", console, refused)
	}
}

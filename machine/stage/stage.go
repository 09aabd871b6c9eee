//go:build linux

// Package stage starts a node. One runs in the initramfs: it brings the layers
// of the root file system together and starts the init in there. Two is that
// init: it loads drivers, finds the machine's disk, mounts what the node keeps
// its data on, and stays as PID 1.
//
// Both report each milestone on the console and neither returns: what fails is
// printed with its reason, and after a while the machine restarts.
package stage

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/watchdog"
)

// Kernel arguments that init knows.
const (
	argDisk     = "kiln.disk"     // GUID of the disk to use, or "none"
	argSlot     = "kiln.slot"     // A or B, from a boot loader without EFI variables
	argPanic    = "kiln.panic"    // seconds from a failure to the restart, as the kernel's panic=
	argPowerOff = "kiln.poweroff" // "ready": turn off when the node is up
	argReset    = "kiln.reset"    // what to erase: "ephemeral", "state" or "all"
	argWatchdog = "kiln.watchdog" // seconds that a stage may take, or "off"
	argHang     = "kiln.hang"     // stage to stop at, to try the watchdog

	argMedium          = "kiln.medium"              // GUID of the ISO image the machine was started from
	argInstallDisk     = installPrefix + "disk"     // path or selector of the disk to install onto
	argInstallPlatform = installPrefix + "platform" // profile to install
	argInstallForce    = installPrefix + "force"    // overwrite what is on the disk
	argInstallThen     = installPrefix + "then"     // "poweroff" or "reboot"
	installPrefix      = "kiln.install."
)

// Where a node keeps its data.
const (
	stateDir     = "/system/state"
	ephemeralDir = "/var"
)

// Where stage 1 leaves word for stage 2.
const (
	runDir      = "/run/kiln"
	layersFile  = runDir + "/layers.json"
	originsFile = runDir + "/origins.json"
)

// configName is the machine configuration: in the initramfs, in runDir when it
// came from there, and on STATE.
const configName = "config.yaml"

// Where stage 2 leaves word for other programs.
const (
	modulesFile = runDir + "/modules.json"             // what became of the extensions' modules
	optionsFile = "/run/modprobe.d/zz-kiln-asked.conf" // parameters from the manifests' lists
)

// defaultPanic is how long a failure stays on the console, in seconds.
const defaultPanic = 10

// ending is how long the machine may take to turn off before the watchdog does:
// what is not yet on disks may be much, and they slow.
const ending = 10 * time.Minute

// InInitramfs reports whether the root is the kernel's initial file system.
func InInitramfs() bool {
	var s unix.Statfs_t
	if err := unix.Statfs("/", &s); err != nil {
		return false
	}
	return int64(s.Type) == unix.TMPFS_MAGIC || int64(s.Type) == unix.RAMFS_MAGIC
}

// A start is the state of one stage.
type start struct {
	console  *console.Console
	args     cmdline.Args
	watchdog *watchdog.Keeper // of dog; nil if there is none
	dog      *watchdog.Device
	mu       sync.Mutex
	stage    string        // under way
	ending   sync.Once     // failure or shutdown
	system   System        // nil until it has begun
	settled  chan struct{} // nil, then open from before ready until the slot is confirmed
}

// run opens the console, arms the watchdog, runs f and turns its error or panic
// into a failure. prepare mounts what is needed for that; its error is reported
// like f's.
func run(first string, prepare func() error, arm func(*start), f func(*start) error) {
	err := prepare()
	device := console.OpenDevice("/dev/console", "/dev/kmsg", "/dev/tty1")
	s := &start{console: console.New(device, console.SinceKernelStart), stage: first}
	if line, err := os.ReadFile("/proc/cmdline"); err == nil {
		s.args = cmdline.Parse(string(line))
	}
	s.guard(func() error {
		if err != nil {
			return err
		}
		arm(s)
		s.begin(first)
		return f(s)
	})
	select {}
}

// guard runs f and fails with its error or panic.
func (s *start) guard(f func() error) {
	defer func() {
		if p := recover(); p != nil {
			s.fail(fmt.Errorf("panic: %v: %s", p, where(debug.Stack())))
		}
	}()
	if err := f(); err != nil {
		s.fail(err)
	}
}

// where shortens a stack to the functions and places above the panic.
func where(stack []byte) string {
	lines := strings.Split(string(stack), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic(") && i+2 < len(lines) {
			lines = lines[i+2:]
			break
		}
	}
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines[:min(len(lines), 8)], "; ")
}

func (s *start) begin(stage string) {
	s.mu.Lock()
	s.stage = stage
	s.mu.Unlock()
	s.watchdog.Renew()
	if at, ok := s.args.Get(argHang); ok && at == stage {
		s.console.Note(fmt.Sprintf("%s=%s: the start stops here, and nothing keeps the watchdog alive", argHang, stage))
		for {
			time.Sleep(time.Hour)
		}
	}
}

func (s *start) done(fields ...console.Field) {
	s.console.Stage(s.stage, fields...)
	s.watchdog.Renew()
}

// fail reports the error and restarts the machine. It does not return.
func (s *start) fail(err error) {
	s.ending.Do(func() {
		s.mu.Lock()
		stage := s.stage
		s.mu.Unlock()
		s.console.Failed(stage, err)
		wait, forever := panicTime(s.args)
		if forever { // somebody wants to look
			_ = s.watchdog.Stop()
		}
		for forever {
			time.Sleep(time.Hour)
		}
		s.watchdog.Last(wait + ending)
		time.Sleep(wait)
		unix.Sync()
		_ = mount.DetachAll(stateDir, ephemeralDir)
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			s.console.Failed("reboot", err)
		}
	})
	select {}
}

// panicTime returns how long to wait before the restart: as with the kernel's
// panic=, 0 is for ever and less than that is not at all.
func panicTime(args cmdline.Args) (wait time.Duration, forever bool) {
	seconds := defaultPanic
	if v, ok := args.Get(argPanic); ok {
		if n, err := strconv.Atoi(v); err == nil {
			seconds = n
		}
	}
	return time.Duration(max(seconds, 0)) * time.Second, seconds == 0
}

// log writes a remark to the kernel's log.
func log(format string, args ...any) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		console.New(console.Priority{Writer: f, Level: 6}, console.SinceKernelStart).Note(fmt.Sprintf(format, args...))
	}
}

// release returns the kernel's release, as uname -r prints it.
func release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// Ask asks PID 1 for the action.
func Ask(a power.Action) error {
	if err := unix.Kill(1, a.Signal()); err != nil {
		return fmt.Errorf("signal %v to PID 1: %w", a.Signal(), err)
	}
	return nil
}

//go:build linux

// Init is PID 1 in the root file system of every kiln image: the init of the
// initramfs starts it when the root is there. Called as modprobe, poweroff or
// reboot, which the kernel does as well, it is that.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/node"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/stage"
	"github.com/kilnhq/kiln/machine/timesync"
)

func main() {
	name := filepath.Base(os.Args[0])
	var err error
	switch {
	case os.Getpid() == 1:
		stage.Two(begin)
	case name == "modprobe":
		os.Exit(modprobe.Main(os.Args[1:], os.Stdout, os.Stderr))
	case name == "poweroff" || name == "halt":
		err = stage.Ask(power.Off)
	case name == "reboot":
		err = stage.Ask(power.Restart)
	default:
		err = fmt.Errorf("only as PID 1, or called modprobe, poweroff or reboot")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// begin starts what the node is for.
func begin(f stage.Facts) (stage.System, error) {
	o := node.Options{
		Args: f.Args, Console: f.Console, Runner: f.Children, Power: f.Power,
		Version: f.Version, Release: f.Release, Slot: f.Slot, Disk: f.Disk, StateDir: f.StateDir,
		Image: f.Image, RunDir: f.RunDir, Modules: f.Modules, Layers: f.Layers, Damaged: f.Damaged,
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		o.Epoch = timesync.Built(unix.ByteSliceToString(u.Version[:]))
	}
	return node.Start(context.Background(), o)
}

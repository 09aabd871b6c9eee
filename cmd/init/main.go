//go:build linux

// Init is PID 1 in the root file system of every kiln image: the init of the
// initramfs starts it when the root is there. Called as poweroff or reboot, which the
// kernel does as well, or as mount or umount, which the kubelet does, it is that.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
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
	case name == "mount" || name == "umount":
		os.Exit(mount.Program(name, os.Args[1:], os.Stderr))
	case name == "poweroff" || name == "halt":
		err = stage.Ask(power.Off)
	case name == "reboot":
		err = stage.Ask(power.Restart)
	default:
		err = fmt.Errorf("only as PID 1, or called mount, umount, poweroff or reboot")
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
		Image: f.Image, RunDir: f.RunDir, Modules: f.Modules, Layers: f.Layers, Load: f.Load, Damaged: f.Damaged,
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		o.Epoch = timesync.Built(unix.ByteSliceToString(u.Version[:]))
	}
	return node.Start(context.Background(), o)
}

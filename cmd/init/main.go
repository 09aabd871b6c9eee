//go:build linux

// Init is PID 1 of every kiln image.
//
// The kernel starts it as /init of the initramfs, which is stage 1; stage 1
// starts it again from the root file system, which is stage 2. Called as
// modprobe, poweroff or reboot, which the kernel does as well, it is that.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/stage"
)

func main() {
	name := filepath.Base(os.Args[0])
	var err error
	switch {
	case os.Getpid() == 1 && stage.InInitramfs():
		stage.One()
	case os.Getpid() == 1:
		stage.Two()
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

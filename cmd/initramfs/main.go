//go:build linux

// Initramfs is the init of every kiln image's initramfs, and called as modprobe
// there. It is a program of its own to be small: it is read by boot loaders, and
// unpacked at each start.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/stage"
)

func main() {
	switch {
	case os.Getpid() == 1:
		stage.One()
	case filepath.Base(os.Args[0]) == "modprobe":
		os.Exit(modprobe.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	fmt.Fprintln(os.Stderr, "initramfs: only as PID 1, or called modprobe")
	os.Exit(1)
}

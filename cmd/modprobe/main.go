//go:build linux

// Modprobe loads kernel modules. It is what the kernel starts when it needs one, at
// times many at once: so it is a small program of its own.
package main

import (
	"os"

	"github.com/kilnhq/kiln/machine/modprobe"
)

func main() { os.Exit(modprobe.Main(os.Args[1:], os.Stdout, os.Stderr)) }

//go:build linux

// Machine is those programs of a node that speak gRPC, in one file because most of
// each is that: which one it is says the name that it is called by.
//
//	apid        the server of the machine API
//	containers  the node's client of containerd
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/machine/apid"
	"github.com/kilnhq/kiln/machine/containers/command"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "apid":
		os.Exit(apid.Main())
	case "containers":
		os.Exit(command.Main())
	default:
		fmt.Fprintf(os.Stderr, "%s: only called apid or containers\n", name)
		os.Exit(2)
	}
}

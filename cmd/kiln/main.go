// Command kiln builds bootable images of a minimal, immutable operating system
// for containers, and adds kernel modules to them as system extensions.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends what does not end by itself
	err := execute(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kiln: %v\n", err)
	}
	os.Exit(exitCode(ctx, err))
}

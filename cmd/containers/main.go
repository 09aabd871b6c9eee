//go:build linux

// Containers is the node's client of containerd. PID 1 calls it: what it answers
// is JSON, on its standard output.
//
//	containers [-namespace NAME] list               control.ContainerList
//	containers [-namespace NAME] images             control.ImageList
//	containers [-namespace NAME] import DIR|FILE…   OCI image layouts, or archives
//	containers [-namespace NAME] pull IMAGE…
//	containers cache DIR REPORT                     the image cache, see machine/imagecache
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/containers"
	"github.com/kilnhq/kiln/machine/control"
)

// patience is how long a question may take, containerd's start included.
const patience = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "containers: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("containers", flag.ContinueOnError)
	socket := flags.String("socket", containers.Socket, "`socket` of containerd")
	namespace := flags.String("namespace", containers.System, "`name` space of containerd")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := containers.Connect(*socket, *namespace)
	if err != nil {
		return err
	}
	defer c.Close()
	verb, args := flags.Arg(0), flags.Args()[min(1, flags.NArg()):]
	switch verb {
	case "list":
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		list, err := c.List(ctx, os.DirFS("/"))
		return print(control.ContainerList{Containers: list}, err)
	case "images":
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		list, err := c.Images(ctx)
		return print(control.ImageList{Images: list}, err)
	case "import":
		return each(args, func(name string) error { return load(ctx, c, name) })
	case "cache":
		return importCache(ctx, *socket, args)
	case "pull":
		return each(args, func(name string) error { return c.Pull(ctx, name) })
	}
	return fmt.Errorf("%q, want list, images, import or pull", verb)
}

func print(v any, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

// each does something with every argument, of which there must be one.
func each(args []string, do func(string) error) error {
	if len(args) == 0 {
		return errors.New("want arguments: what to bring in")
	}
	var failed []error
	for _, a := range args {
		failed = append(failed, do(a))
	}
	return errors.Join(failed...)
}

// load imports a layout or an archive.
func load(ctx context.Context, c *containers.Client, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return c.ImportLayout(ctx, name)
	}
	if err := c.Import(ctx, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

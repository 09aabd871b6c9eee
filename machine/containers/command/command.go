//go:build linux

// Package command is the node's client of containerd as a program. PID 1 calls it:
// what it answers is JSON, on its standard output.
//
//	containers [-namespace NAME] list               control.ContainerList
//	containers [-namespace NAME] images             control.ImageList
//	containers [-namespace NAME] import DIR|FILE…   OCI image layouts, or archives
//	containers [-namespace NAME] pull IMAGE…
//	containers cache DIR REPORT                     the image cache, see machine/imagecache
//	containers run NAME                             the static container of that name
//	containers host NAME                            its program, without a container
package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/containers"
	"github.com/kilnhq/kiln/machine/containers/static"
	"github.com/kilnhq/kiln/machine/control"
)

// patience is how long a question may take, containerd's start included.
const patience = 30 * time.Second

// Main is the program; it returns its exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	status, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "containers: %v\n", err)
		status = failed
	}
	return status
}

// failed is the exit status of what did not work; a container's own is what it
// exits with.
const failed = 125

func run(ctx context.Context, args []string) (status int, err error) {
	flags := flag.NewFlagSet("containers", flag.ContinueOnError)
	socket := flags.String("socket", containers.Socket, "`socket` of containerd")
	namespace := flags.String("namespace", containers.System, "`name` space of containerd")
	dir := flags.String("dir", static.Dir, "`directory` with static containers")
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	verb, args := flags.Arg(0), flags.Args()[min(1, flags.NArg()):]
	if verb == "host" && len(args) == 1 {
		return 0, become(*dir, args[0])
	}
	if verb == "cache" {
		return 0, importCache(ctx, *socket, args)
	}
	c, err := containers.Connect(*socket, *namespace)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if verb == "run" && len(args) == 1 {
		return runStatic(ctx, c, *dir, args[0])
	}
	return 0, ask(ctx, c, verb, args)
}

// runStatic runs a static container.
func runStatic(ctx context.Context, c *containers.Client, dir, name string) (int, error) {
	k, err := static.Read(dir, name)
	if err != nil {
		return 0, err
	}
	r := containers.Runner{Client: c, Dir: dir, Network: containers.Local(), Log: func(text string) {
		fmt.Fprintf(os.Stderr, "kiln: %s\n", text)
	}}
	return r.Run(ctx, k, os.Stdout, os.Stderr)
}

// become becomes the program of a static container that is none.
func become(dir, name string) error {
	k, err := static.Read(dir, name)
	if err != nil {
		return err
	}
	env, err := static.ReadEnv(k.EnvFile)
	if err != nil {
		return err
	}
	if len(k.Command) == 0 {
		return errors.New("there is no command")
	}
	err = unix.Exec(k.Command[0], k.Command, slices.Concat(os.Environ(), env, k.Env))
	return fmt.Errorf("%s: %w", k.Command[0], err)
}

func ask(ctx context.Context, c *containers.Client, verb string, args []string) error {
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
	case "pull":
		return each(args, func(name string) error { return c.Pull(ctx, name) })
	}
	return fmt.Errorf("%q, want list, images, import, pull or run and a name", verb)
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

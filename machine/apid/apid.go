//go:build linux

// Package apid is the server of a node's machine API as a program. It runs as a user
// of its own, without privilege, and asks PID 1 for what takes any.
//
//	apid [-listen ADDRESS] [-control SOCKET]
package apid

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/api"
	"github.com/kilnhq/kiln/machine/api/files"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/landlock"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

// Main is the program; it returns its exit status.
func Main() int {
	listen := flag.String("listen", fmt.Sprintf(":%d", api.Port), "TCP `address` to listen on")
	socket := flag.String("control", control.Socket, "`socket` of PID 1")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log, *listen, *socket); err != nil {
		fmt.Fprintf(os.Stderr, "apid: %v\n", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, log *slog.Logger, listen, socket string) error {
	if os.Geteuid() == 0 {
		return errors.New("started as root; start it as a user of its own, which PID 1 allows to ask (control.Server.Users)")
	}
	if err := confine(); err != nil {
		return err
	}
	if err := restrict(log, listen); err != nil {
		return err
	}
	tree, err := files.Open("/")
	if err != nil {
		return err
	}
	defer tree.Close()
	server := api.New(api.Options{
		Node: &control.Client{Path: socket}, System: nodeinfo.Local(), Disks: blockdev.Local(), Files: tree, Log: log, Now: time.Now,
	})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	followed := make(chan error, 1)
	go func() {
		err := server.Follow(ctx)
		if err != nil {
			cancel(err)
		}
		followed <- err
	}()
	err = listenAndServe(ctx, log, server, listen)
	cancel(nil)
	return errors.Join(err, <-followed)
}

// listenAndServe listens as soon as there is an identity.
func listenAndServe(ctx context.Context, log *slog.Logger, server *api.Server, listen string) error {
	select {
	case <-server.Identified():
	case <-ctx.Done():
		return nil
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	log.Info("the API listens", "address", l.Addr().String())
	return server.Serve(ctx, l)
}

// confine gives up what this process could gain or give away.
func confine() error {
	// Of one thread only, and what it starts: the program starts itself once more.
	runtime.LockOSThread()
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err == nil && set == 0 {
		if err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
			err = unix.Exec("/proc/self/exe", os.Args, os.Environ())
		}
	}
	if err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	runtime.UnlockOSThread()
	_ = os.WriteFile("/proc/self/comm", []byte("apid"), 0) // it was exe from then on
	// No core file, and nobody of the same user may look into this process: it
	// holds the node's key.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("close this process to others: %w", err)
	}
	return nil
}

// restrict leaves this process nothing but to read files, to listen, and to ask
// PID 1 over a socket that has a path. Kernels without landlock run it all the same.
func restrict(log *slog.Logger, listen string) error {
	_, p, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return fmt.Errorf("address %s: %w", listen, err)
	}
	version, err := landlock.Restrict(landlock.Rules{Read: []string{"/"}, Listen: []uint16{uint16(port)}})
	if err != nil {
		return err
	}
	if version == 0 {
		log.Warn("the kernel has no landlock: files and network are restricted by the user only")
	} else {
		log.Info("files and network are restricted", "landlock", version)
	}
	return nil
}

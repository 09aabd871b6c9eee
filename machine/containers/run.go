//go:build linux

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kilnhq/kiln/machine/containers/static"
)

// How long things take.
const (
	defaultStop = 10 * time.Second // from SIGTERM to SIGKILL
	cleaning    = 30 * time.Second // what is left of a container
	reconnect   = 500 * time.Millisecond
)

// A Runner runs the node's own containers.
type Runner struct {
	Client  *Client
	Dir     string // of what belongs to containers while they run: static.Dir
	Network Network
	Log     func(text string) // of what takes its time
}

// A Network connects containers that have a network of their own.
type Network interface {
	// Attach connects a container whose first process has been made, but not
	// started yet.
	Attach(ctx context.Context, c *static.Container, pid int) error
	// Detach undoes that. It is no error if there is nothing to undo.
	Detach(ctx context.Context, c *static.Container) error
}

// Run runs a container until it ends, and returns its exit status, which is above
// 128 if a signal ended it. When ctx ends the container is told to end, and killed
// if it does not. What an earlier one of the same name has left is removed first,
// and nothing is left of this one. containerd may be started anew meanwhile.
func (r *Runner) Run(ctx context.Context, c *static.Container, stdout, stderr io.Writer) (status int, err error) {
	if err := r.remove(ctx, c); err != nil {
		return 0, fmt.Errorf("remove what is left of it: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
		defer cancel()
		if e := r.remove(ctx, c); err == nil && e != nil {
			err = fmt.Errorf("remove it: %w", e)
		}
	}()
	config, root, err := r.root(ctx, c)
	if err != nil {
		return 0, err
	}
	id, err := identify(c, config.User, func() (fs.FS, func() error, error) { return mountRoot(root, r.path(c, "root")) })
	if err != nil {
		return 0, err
	}
	if err := makeSources(c); err != nil {
		return 0, err
	}
	variables, err := static.ReadEnv(c.EnvFile)
	if err != nil {
		return 0, err
	}
	config.Env = append(slices.Clip(config.Env), variables...)
	spec, err := runtimeSpec(c, config, id, names(c))
	if err != nil {
		return 0, err
	}
	if err := r.create(ctx, c, spec); err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	out, err := openOutput(r.path(c, "stdout"), stdout)
	if err != nil {
		return 0, err
	}
	defer out.drain()
	errs, err := openOutput(r.path(c, "stderr"), stderr)
	if err != nil {
		return 0, err
	}
	defer errs.drain()
	tasks := r.Client.tasks
	made, err := tasks.Create(ctx, &taskapi.CreateTaskRequest{ContainerID: c.Name, Rootfs: root, Stdout: out.path, Stderr: errs.path})
	if err != nil {
		return 0, fmt.Errorf("create: %w", err)
	}
	if isolated(c) {
		if err := r.Network.Attach(ctx, c, int(made.GetPid())); err != nil {
			return 0, fmt.Errorf("network: %w", err)
		}
	}
	if _, err := tasks.Start(ctx, &taskapi.StartRequest{ContainerID: c.Name}); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if err := static.MarkStarted(r.Dir, c.Name); err != nil {
		return 0, err
	}
	return r.follow(ctx, c, stopSignal(config))
}

// unpackLock is a file that is locked while an image is unpacked.
const unpackLock = ".unpack"

func (r *Runner) path(c *static.Container, name string) string {
	return filepath.Join(r.Dir, c.Name, name)
}

func (r *Runner) snapshot(c *static.Container) string { return "kiln-" + c.Name }

func isolated(c *static.Container) bool { return c.Network != "" && c.Network != static.NetworkHost }

// root makes the root file system, and returns what is to be mounted for it.
func (r *Runner) root(ctx context.Context, c *static.Container) (ocispec.ImageConfig, []*types.Mount, error) {
	if err := os.MkdirAll(r.path(c, ""), 0o700); err != nil {
		return ocispec.ImageConfig{}, nil, err
	}
	if c.RootFS != "" {
		// What is mounted in it needs places, which a read-only directory of the
		// node cannot get.
		upper, work := r.path(c, "upper"), r.path(c, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return ocispec.ImageConfig{}, nil, err
		}
		return ocispec.ImageConfig{}, []*types.Mount{{
			Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + c.RootFS, "upperdir=" + upper, "workdir=" + work},
		}}, nil
	}
	img, mounts, err := r.prepare(ctx, c, c.Pull == static.PullAlways)
	if errors.Is(err, ErrNotFound) && c.Pull != static.PullNever && c.Pull != static.PullAlways {
		img, mounts, err = r.prepare(ctx, c, true)
	}
	if err != nil {
		return ocispec.ImageConfig{}, nil, fmt.Errorf("image %s: %w", c.Image, err)
	}
	return img.config, mounts, nil
}

// prepare makes the root file system out of the image.
func (r *Runner) prepare(ctx context.Context, c *static.Container, pull bool) (*image, []*types.Mount, error) {
	if pull {
		r.Log("pulls " + c.Image)
		if err := r.Client.Pull(ctx, c.Image); err != nil {
			return nil, nil, err
		}
	}
	img, err := r.Client.image(ctx, c.Image)
	if err != nil {
		return nil, nil, err
	}
	snapshot := &snapshotapi.PrepareSnapshotRequest{
		Snapshotter: snapshotter, Key: r.snapshot(c), Parent: img.chain,
		// Until the container refers to it nothing else does.
		Labels: map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)},
	}
	p, err := r.Client.snapshots.Prepare(ctx, snapshot)
	if errors.Is(err, ErrNotFound) { // one of the image cache, which nothing has needed before
		if err = r.Client.Unpack(ctx, c.Image, filepath.Join(r.Dir, unpackLock)); err == nil {
			p, err = r.Client.snapshots.Prepare(ctx, snapshot)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return img, p.GetMounts(), nil
}

func (r *Runner) create(ctx context.Context, c *static.Container, spec any) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	x := &containerapi.Container{
		ID: c.Name, Image: c.Image, Runtime: &containerapi.Container_Runtime{Name: runtimeName},
		Spec: &anypb.Any{TypeUrl: specType, Value: data},
	}
	if c.RootFS == "" {
		x.Snapshotter, x.SnapshotKey = snapshotter, r.snapshot(c)
	}
	_, err = r.Client.containers.Create(ctx, &containerapi.CreateContainerRequest{Container: x})
	return err
}

// follow waits for the end of a container, which it tells to end when ctx does.
func (r *Runner) follow(ctx context.Context, c *static.Container, signal unix.Signal) (int, error) {
	type end struct {
		status uint32
		err    error
	}
	waiting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan end, 1)
	go func() {
		status, err := r.wait(waiting, c)
		ended <- end{status, err}
	}()
	select {
	case e := <-ended:
		return int(e.status), e.err
	case <-ctx.Done():
	}
	stop := c.StopTimeout
	if stop <= 0 {
		stop = defaultStop
	}
	if err := r.kill(waiting, c, signal, false); err != nil {
		r.Log(fmt.Sprintf("%v: %v", signal, err))
	}
	select {
	case e := <-ended:
		return int(e.status), e.err
	case <-time.After(stop):
	}
	r.Log(fmt.Sprintf("has not ended in %v, and is killed", stop))
	if err := r.kill(waiting, c, unix.SIGKILL, true); err != nil {
		return 0, err
	}
	e := <-ended
	return int(e.status), e.err
}

// kill sends a signal to a container; it is no error if that has ended.
func (r *Runner) kill(ctx context.Context, c *static.Container, s unix.Signal, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, cleaning)
	defer cancel()
	_, err := r.Client.tasks.Kill(ctx, &taskapi.KillRequest{ContainerID: c.Name, Signal: uint32(s), All: all})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// wait waits for the end of a container.
func (r *Runner) wait(ctx context.Context, c *static.Container) (uint32, error) {
	for {
		w, err := r.Client.tasks.Wait(ctx, &taskapi.WaitRequest{ContainerID: c.Name})
		if !errors.Is(err, ErrUnreachable) {
			return w.GetExitStatus(), err
		}
		select { // containerd has ended; the container has not, and will be known again
		case <-time.After(reconnect):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// remove removes all that there is of a container.
func (r *Runner) remove(ctx context.Context, c *static.Container) error {
	absent := func(err error) error {
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	task := func() error {
		if err := r.kill(ctx, c, unix.SIGKILL, true); err != nil {
			r.Log(err.Error()) // one that has ended cannot be killed either
		}
		if _, err := r.Client.tasks.Wait(ctx, &taskapi.WaitRequest{ContainerID: c.Name}); err != nil {
			return err
		}
		_, err := r.Client.tasks.Delete(ctx, &taskapi.DeleteTaskRequest{ContainerID: c.Name})
		return err
	}
	var failed []error
	if _, err := r.Client.tasks.Get(ctx, &taskapi.GetRequest{ContainerID: c.Name}); err == nil {
		failed = append(failed, absent(task()))
	} else {
		failed = append(failed, absent(err))
	}
	failed = append(failed, r.Network.Detach(ctx, c))
	_, err := r.Client.containers.Delete(ctx, &containerapi.DeleteContainerRequest{ID: c.Name})
	failed = append(failed, absent(err))
	_, err = r.Client.snapshots.Remove(ctx, &snapshotapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: r.snapshot(c)})
	failed = append(failed, absent(err), os.RemoveAll(r.path(c, "")))
	return errors.Join(failed...)
}

// varDir is where directories that containers want to see are made.
const varDir = "/var"

// makeSources makes the directories below /var that are missing.
func makeSources(c *static.Container) error {
	for _, m := range c.Mounts {
		name, below := strings.CutPrefix(filepath.Clean(m.Source), varDir+"/")
		if m.Type != "bind" || !below {
			continue
		}
		if _, err := os.Stat(m.Source); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		root, err := os.OpenRoot(varDir) // links do not lead out of it
		if err != nil {
			return err
		}
		err = root.MkdirAll(name, 0o755)
		root.Close()
		if err != nil {
			return fmt.Errorf("mount of %s: %w", m.Source, err)
		}
	}
	return nil
}

// stopSignal returns what the image wants to be told to end with.
func stopSignal(config ocispec.ImageConfig) unix.Signal {
	name := config.StopSignal
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return unix.SIGTERM
}

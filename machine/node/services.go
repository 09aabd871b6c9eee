//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/service"
)

// groupRoot is where control groups of version 2 are.
const groupRoot = "/sys/fs/cgroup"

// systemGroup is what the services of the system are in.
const systemGroup = "system"

// Programs that the image may have.
const (
	apiProgram = "/usr/bin/apid"
)

// programPath is where the programs find others.
const programPath = "PATH=/usr/bin:/usr/local/bin"

// APIName is the service of the API's server.
const APIName = "apid"

// prepareGroups makes the control group of the system's services, and lets groups
// below the root have limits.
func prepareGroups(root string) error {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(root, systemGroup), 0o755); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	var failed []error
	for _, dir := range []string{root, filepath.Join(root, systemGroup)} {
		for _, controller := range strings.Fields(string(data)) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
				failed = append(failed, fmt.Errorf("control groups: %s: %w", controller, err))
			}
		}
	}
	return errors.Join(failed...)
}

// startAPI starts the API's server, if the image has one.
func (n *Node) startAPI() error {
	return n.start(service.Spec{
		Name: APIName, Path: apiProgram, Args: []string{"-control", filepath.Join(n.options.RunDir, filepath.Base(control.Socket))},
		Env: []string{programPath, "GOMEMLIMIT=48MiB"}, UID: APIUser, GID: APIUser, OOM: -900,
		Health: func(ctx context.Context) error { return answers(ctx, "tcp", "localhost:50000") },
	})
}

// startServices starts the system's other programs.
func (n *Node) startServices(ctx context.Context) error {
	var failed []error
	if n.hasEphemeral() {
		failed = append(failed, n.start(n.containerd([]string{programPath})))
	}
	for _, s := range n.imageCacheService(ctx) {
		failed = append(failed, n.start(s))
	}
	n.workloads.begin()
	return errors.Join(failed...)
}

// start starts a service of the system, if the image has its program.
func (n *Node) start(s service.Spec) error {
	if _, err := os.Stat(s.Path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s.Cgroup = filepath.Join(groupRoot, systemGroup, s.Name)
	return n.services.Add(s)
}

// answers connects to a service.
func answers(ctx context.Context, network, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// Await waits until the API's server answers, if the image has one, and until there
// is a configuration or it has taken too long.
func (n *Node) Await(ctx context.Context) error {
	if err := n.awaitAPI(ctx); err != nil {
		return err
	}
	select {
	case <-n.decided:
	case <-ctx.Done():
	}
	return nil
}

func (n *Node) awaitAPI(ctx context.Context) error {
	events := n.services.Events(ctx)
	for {
		state := service.Running // or not in the image
		var message string
		for _, s := range n.services.List() {
			if s.Name == APIName {
				state, message = s.State, s.Message
			}
		}
		if state == service.Running {
			return nil
		}
		select {
		case <-events:
		case <-ctx.Done():
			return fmt.Errorf("%s is %s: %s", APIName, state, message)
		}
	}
}

// watchServices makes events of what services do, and remarks of what they should
// not do.
func (n *Node) watchServices(ctx context.Context) {
	changes := n.services.Events(ctx)
	go func() {
		for c := range changes {
			n.event("service", c.Name, c.Message, map[string]string{"state": string(c.State)})
			switch c.State {
			case service.Backoff, service.Unhealthy, service.Failed:
				n.options.Console.Note(fmt.Sprintf("service %s: %s: %s", c.Name, c.State, c.Message))
			}
		}
	}()
}

// Services is a verb of control.Node.
func (n *Node) Services(context.Context) (control.ServiceList, error) {
	var list control.ServiceList
	for _, s := range n.services.List() {
		list.Services = append(list.Services, describe(s))
	}
	return list, nil
}

func describe(s service.Status) control.Service {
	return control.Service{
		Name: s.Name, State: string(s.State), Healthy: s.State == service.Running, Message: s.Message,
		PID: int32(s.PID), Restarts: uint32(s.Restarts), Since: s.Since,
	}
}

// ControlService is a verb of control.Node. The API's server is not stopped: it
// would be the last thing that anybody asks of the node.
func (n *Node) ControlService(_ context.Context, r control.ServiceControl) (control.ServiceResult, error) {
	var err error
	switch {
	case r.Action == control.Stop && r.Name == APIName:
		err = fmt.Errorf("%w: %s answers you; restart it instead", control.ErrInvalid, APIName)
	case r.Action == control.Restart && r.Name == APIName:
		// After the answer, which comes by way of it.
		time.AfterFunc(time.Second, func() { _ = n.services.Restart(APIName) })
	case r.Action == control.Start:
		err = n.services.Start(r.Name)
	case r.Action == control.Stop:
		err = n.services.Stop(r.Name)
	case r.Action == control.Restart:
		err = n.services.Restart(r.Name)
	default:
		err = fmt.Errorf("%w: action %q, want start, stop or restart", control.ErrInvalid, r.Action)
	}
	if errors.Is(err, service.ErrUnknown) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return control.ServiceResult{}, err
	}
	for _, s := range n.services.List() {
		if s.Name == r.Name {
			return control.ServiceResult{Service: describe(s)}, nil
		}
	}
	return control.ServiceResult{}, fmt.Errorf("%w: service %s", fs.ErrNotExist, r.Name)
}

// Logs is a verb of control.Node.
func (n *Node) Logs(ctx context.Context, r control.LogsRequest, send func(control.LogLine) error) error {
	ring, err := n.services.Log(r.Service)
	if err != nil {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	var last int64
	each := func(l service.Line) error {
		line := control.LogLine{Time: l.Time, Text: []byte(l.Text)}
		if last > 0 {
			line.Lost = uint64(l.Number - last - 1)
		}
		last = l.Number
		return send(line)
	}
	tail := ring.Tail(-1)
	if len(tail) > 0 {
		last = tail[len(tail)-1].Number
	}
	after := last
	if r.Tail >= 0 && r.Tail < len(tail) {
		tail = tail[len(tail)-r.Tail:]
	}
	last = 0
	for _, l := range tail {
		if err := each(l); err != nil {
			return err
		}
	}
	if !r.Follow {
		return nil
	}
	last = after
	return ring.Follow(ctx, after, each)
}

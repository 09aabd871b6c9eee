//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/containers/static"
	"github.com/kilnhq/kiln/machine/extservice"
	"github.com/kilnhq/kiln/machine/service"
	"github.com/kilnhq/kiln/machine/workload"
)

// workloads are what the node runs for others: the containers of its
// configuration and of extensions.
type workloads struct {
	node      *Node
	questions chan struct{} // as many as containerd is asked at a time

	extensions []*extservice.Service // those whose files are right
	faults     error                 // about the others

	mu    sync.Mutex
	begun bool
	ended bool
	have  map[string]*running
	order []string // as started
}

// A running workload is one of the services.
type running struct {
	workload workload.Workload
	quiet    context.CancelFunc // ends the copy of its log on the console
}

const maxQuestions = 2

func newWorkloads(n *Node) *workloads {
	w := &workloads{node: n, questions: make(chan struct{}, maxQuestions), have: map[string]*running{}}
	w.extensions, w.faults = extservice.Load(extservice.Dir)
	return w
}

// begin starts them, now that the services they need are there.
func (w *workloads) begin() {
	if w.faults != nil {
		w.node.remark("services of extensions", "%v", w.faults)
	}
	w.mu.Lock()
	w.begun = true
	w.mu.Unlock()
	w.change()
}

// end starts none any more.
func (w *workloads) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
}

// change makes them what the configuration says, which may take as long as those
// that go away take to end.
func (w *workloads) change() { go w.reconcile() }

func (w *workloads) reconcile() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun || w.ended {
		return
	}
	n := w.node
	if n.hasContainerd() {
		if changed, err := n.configureContainerd(); err != nil {
			n.remark(ContainerdName, "%v", err)
		} else if changed {
			_ = n.services.Restart(ContainerdName) // it is there
		}
	}
	c, _ := n.current()
	wanted := map[string]workload.Workload{}
	all := workload.All(c, w.extensions)
	for _, x := range all {
		wanted[x.Container.Name] = x
	}
	for _, name := range slices.Backward(slices.Clone(w.order)) {
		if x, ok := wanted[name]; !ok || !reflect.DeepEqual(x, w.have[name].workload) {
			w.remove(name)
		}
	}
	for _, x := range all {
		name := x.Container.Name
		if w.have[name] != nil {
			continue
		}
		if err := w.add(x); err != nil {
			n.remark("service "+name, "%v", err)
		}
	}
}

func (w *workloads) remove(name string) {
	if err := w.node.services.Remove(name); err != nil {
		w.node.remark("service "+name, "%v", err)
	}
	w.have[name].quiet()
	delete(w.have, name)
	w.order = slices.DeleteFunc(w.order, func(n string) bool { return n == name })
	if err := os.Remove(static.File(static.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.node.remark("service "+name, "%v", err)
	}
}

// How long a container may take.
const (
	pulling  = time.Hour        // to bring in its image
	clearing = 40 * time.Second // to be removed when it has ended
)

func (w *workloads) add(x workload.Workload) error {
	n, name := w.node, x.Container.Name
	if _, err := n.services.Log(name); err == nil {
		return fmt.Errorf("%w: give yours another name", service.ErrExists)
	}
	spec := service.Spec{
		Name: name, Path: clientProgram, Args: []string{"run", name}, Env: []string{"PATH=/usr/bin", "GOMEMLIMIT=24MiB"},
		Restart: service.Restart(x.Restart), Before: func(ctx context.Context, waiting func(string)) { n.awaitNeeds(ctx, x.Needs, waiting) },
		Grace: x.Container.StopTimeout + clearing, Patience: pulling, Cgroup: filepath.Join(groupRoot, systemGroup, name),
		Health: func(context.Context) error { return static.Started(static.Dir, name) },
	}
	if x.Host {
		spec.Args, spec.Health, spec.Env, spec.Grace = []string{"host", name}, nil, []string{"PATH=/usr/bin:/usr/local/bin"}, 0
	} else {
		if !n.hasContainerd() {
			return errors.New("the node has no containerd to run it")
		}
		spec.After = n.imageServices()
	}
	if err := static.Write(static.Dir, &x.Container); err != nil {
		return err
	}
	if err := n.services.Add(spec); err != nil {
		return err
	}
	ctx, quiet := context.WithCancel(context.Background())
	w.have[name] = &running{x, quiet}
	w.order = append(w.order, name)
	if ring, err := n.services.Log(name); err == nil && x.Console {
		go func() {
			_ = ring.Follow(ctx, 0, func(l service.Line) error { // until quiet
				n.options.Console.Note(name + ": " + l.Text)
				return nil
			})
		}()
	}
	return nil
}

// attentive is how often it is looked whether what a workload needs is there.
const attentive = 500 * time.Millisecond

// awaitNeeds waits for what a workload needs.
func (n *Node) awaitNeeds(ctx context.Context, needs workload.Needs, waiting func(string)) {
	for {
		missing := n.missing(needs)
		if missing == "" {
			return
		}
		waiting(missing)
		select {
		case <-time.After(attentive):
		case <-ctx.Done():
			return
		}
	}
}

// missing returns the first of the needs that is not there, or "".
func (n *Node) missing(needs workload.Needs) string {
	n.mu.Lock()
	cfg, network := n.config, n.status.Ready
	n.mu.Unlock()
	switch {
	case needs.Configuration && cfg == nil:
		return "a configuration"
	case needs.Network && !network:
		return "the network"
	case needs.Time && !n.clock.syncer.Status().Synced && (cfg == nil || cfg.Time == nil || !cfg.Time.Disabled):
		return "the time"
	}
	for _, p := range needs.Paths {
		if _, err := os.Stat(p); err != nil {
			return p
		}
	}
	states := map[string]service.State{}
	for _, s := range n.services.List() {
		states[s.Name] = s.State
	}
	for _, name := range needs.Services {
		if s := states[name]; s != service.Done && (s != service.Running || n.workloads.isJob(name)) {
			return "service " + name
		}
	}
	return ""
}

// isJob reports whether a service is one that is there when it has ended.
func (w *workloads) isJob(name string) bool {
	return slices.ContainsFunc(w.extensions, func(s *extservice.Service) bool {
		return workload.Prefix+s.Name == name && s.Restart == extservice.RestartUntilSuccess
	})
}

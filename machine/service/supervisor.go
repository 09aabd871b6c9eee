//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// ringSize is what is kept of a service's output, in bytes.
const ringSize = 256 << 10

// A Supervisor runs services. Its methods can be called by several goroutines.
type Supervisor struct {
	runner Runner
	ctx    context.Context // of every service

	mu      sync.Mutex
	units   map[string]*unit
	order   []string // as added
	changed chan struct{}
	watch   map[chan Event]bool
	ended   bool
}

// A unit is a service and the goroutine that looks after it.
type unit struct {
	spec   Spec
	log    *Ring
	status Status // guarded by the Supervisor's mu
	cancel context.CancelFunc
	gone   chan struct{} // closed when the goroutine has ended; nil before the first
}

// New returns a Supervisor without services. When ctx ends they all do; Shutdown
// does so in order.
func New(ctx context.Context, r Runner) *Supervisor {
	return &Supervisor{runner: r, ctx: ctx, units: map[string]*unit{}, changed: make(chan struct{}), watch: map[chan Event]bool{}}
}

// Add adds a service, after those it comes after, and starts it as soon as they
// run. The error is ErrExists, or ErrUnknown for one it comes after.
func (s *Supervisor) Add(spec Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := spec.check(s.units); err != nil {
		return err
	}
	u := &unit{spec: spec, log: NewRing(ringSize), status: Status{Name: spec.Name}}
	s.units[spec.Name] = u
	s.order = append(s.order, spec.Name)
	s.set(u, Waiting, "")
	s.launch(u)
	return nil
}

// Remove stops a service and forgets it. The error is ErrUnknown.
func (s *Supervisor) Remove(name string) error {
	if err := s.Stop(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.units, name)
	s.order = slices.DeleteFunc(s.order, func(n string) bool { return n == name })
	return nil
}

// Start starts a service that does not run; for one that waits to be started
// again, that is at once. The error is ErrUnknown.
func (s *Supervisor) Start(name string) error {
	s.mu.Lock()
	u, err := s.unit(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	waits := u.status.State == Backoff
	s.mu.Unlock()
	if waits {
		if err := s.Stop(name); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.cancel == nil && !s.ended {
		s.set(u, Waiting, "")
		s.launch(u)
	}
	return nil
}

// Stop ends a service, with all processes it has started, and returns when they
// are gone. The error is ErrUnknown.
func (s *Supervisor) Stop(name string) error {
	s.mu.Lock()
	u, err := s.unit(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	cancel, gone := u.cancel, u.gone
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if gone != nil {
		<-gone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.status.State != Stopped {
		s.set(u, Stopped, u.status.Message)
	}
	return nil
}

// Restart stops and starts a service. The error is ErrUnknown.
func (s *Supervisor) Restart(name string) error {
	if err := s.Stop(name); err != nil {
		return err
	}
	return s.Start(name)
}

// Shutdown stops all services, those first that others do not come after, and
// starts none any more.
func (s *Supervisor) Shutdown() {
	s.mu.Lock()
	s.ended = true
	names := slices.Clone(s.order)
	s.mu.Unlock()
	for _, name := range slices.Backward(names) {
		_ = s.Stop(name) // ErrUnknown: somebody has removed it
	}
}

// List returns the state of all services, in the order they were added in.
func (s *Supervisor) List() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, len(s.order))
	for i, name := range s.order {
		list[i] = s.units[name].status
	}
	return list
}

// Log returns what a service prints. The error is ErrUnknown.
func (s *Supervisor) Log(name string) (*Ring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.unit(name)
	if err != nil {
		return nil, err
	}
	return u.log, nil
}

// Events sends every change from now on, until ctx ends, when the channel is
// closed. It loses changes for a reader that is more than 64 behind.
func (s *Supervisor) Events(ctx context.Context) <-chan Event {
	c := make(chan Event, 64)
	s.mu.Lock()
	s.watch[c] = true
	s.mu.Unlock()
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watch, c)
		close(c)
	})
	return c
}

func (s *Supervisor) unit(name string) (*unit, error) {
	if u := s.units[name]; u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("service %s: %w; there are %v", name, ErrUnknown, slices.Sorted(maps.Keys(s.units)))
}

// set changes a state. The caller holds mu.
func (s *Supervisor) set(u *unit, state State, message string) {
	if u.status.State == state && u.status.Message == message {
		return
	}
	now := time.Now()
	u.status.State, u.status.Message, u.status.Since = state, message, now
	for c := range s.watch {
		select {
		case c <- Event{Time: now, Status: u.status}:
		default:
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Supervisor) update(u *unit, state State, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(u, state, message)
}

// launch starts the goroutine of a unit. The caller holds mu.
func (s *Supervisor) launch(u *unit) {
	ctx, cancel := context.WithCancel(s.ctx)
	u.cancel, u.gone = cancel, make(chan struct{})
	u.status.Restarts = 0
	go func() {
		state, message := s.look(ctx, u)
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		u.cancel = nil
		s.set(u, state, message)
		close(u.gone)
	}()
}

// look looks after a service until it is stopped or has ended for good, and
// returns its last state.
func (s *Supervisor) look(ctx context.Context, u *unit) (State, string) {
	delay := minBackoff
	for {
		if !s.await(ctx, u) {
			return Stopped, ""
		}
		began := time.Now()
		err := s.once(ctx, u)
		message := ended(err)
		switch {
		case ctx.Err() != nil:
			return Stopped, message
		case err == nil && (u.spec.Restart == OnFailure || u.spec.Restart == Never):
			return Done, message
		case u.spec.Restart == Never:
			return Failed, message
		}
		if time.Since(began) >= steady {
			delay = minBackoff
		}
		wait := delay + rand.N(delay/4) // so that what failed together does not start together
		s.update(u, Backoff, fmt.Sprintf("%s; is started again after %v", message, delay))
		delay = min(2*delay, maxBackoff)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Stopped, message
		}
		s.mu.Lock()
		u.status.Restarts++
		s.mu.Unlock()
	}
}

// await waits until what the service comes after runs, and reports whether ctx
// still does.
func (s *Supervisor) await(ctx context.Context, u *unit) bool {
	for {
		s.mu.Lock()
		missing := ""
		for _, name := range u.spec.After {
			if o := s.units[name]; o != nil && o.status.State != Running && o.status.State != Done {
				missing = name
				break
			}
		}
		if missing != "" {
			s.set(u, Waiting, "for "+missing)
		}
		changed := s.changed
		s.mu.Unlock()
		if missing == "" {
			if u.spec.Before != nil {
				u.spec.Before(ctx, func(what string) { s.update(u, Waiting, "for "+what) })
			}
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// once runs the program of a service until it ends.
func (s *Supervisor) once(ctx context.Context, u *unit) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := u.spec.command(ctx, u.log)
	var g *group
	var dir *os.File
	if u.spec.Cgroup != "" {
		var err error
		if g, err = newGroup(&u.spec); err != nil {
			return err
		}
		if dir, err = g.enter(c.SysProcAttr); err != nil {
			return err
		}
	}
	wait, err := s.runner.Start(c)
	if dir != nil {
		dir.Close()
	}
	if err != nil {
		return err
	}
	pid := c.Process.Pid
	if u.spec.OOM != 0 {
		if err := setOOM(pid, u.spec.OOM); err != nil {
			fmt.Fprintf(u.log, "kiln: %v\n", err)
		}
	}
	s.mu.Lock()
	u.status.PID = pid
	s.set(u, Starting, "")
	s.mu.Unlock()

	stopping, asked := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopping)
		s.update(u, Stopping, "")
	})
	go func() {
		defer close(asked)
		cancel(s.health(ctx, u))
	}()
	err = wait()
	if errors.Is(err, exec.ErrWaitDelay) { // it has ended, and somebody still has its output
		err = nil
	}
	if g != nil && !u.spec.KeepChildren {
		if killed := g.kill(); err == nil {
			err = killed
		}
	}
	if !stop() {
		<-stopping
	}
	if sick := context.Cause(ctx); errors.Is(sick, errSick) {
		err = sick
	}
	cancel(nil)
	<-asked
	u.log.Flush()
	s.mu.Lock()
	u.status.PID = 0
	s.mu.Unlock()
	return err
}

// errSick is why a service is told to end that was not well for too long after
// its start.
var errSick = errors.New("was never healthy")

// health asks a service how it is until ctx ends, or with errSick.
func (s *Supervisor) health(ctx context.Context, u *unit) error {
	if u.spec.Health == nil {
		s.alive(ctx, u, nil)
		<-ctx.Done()
		return nil
	}
	began, interval := time.Now(), firstInterval
	for up := false; ; {
		check, cancel := context.WithTimeout(ctx, healthTimeout)
		err := u.spec.Health(check)
		cancel()
		switch {
		case err == nil:
			up, interval = true, healthInterval
			s.alive(ctx, u, nil)
		case up:
			s.alive(ctx, u, err)
		case time.Since(began) > u.spec.patience():
			return fmt.Errorf("%w in %v: %w", errSick, u.spec.patience(), err)
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return nil
		}
	}
}

// alive says how a service is that has a process, unless it is about to end.
func (s *Supervisor) alive(ctx context.Context, u *unit, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err == nil:
		s.set(u, Running, "")
	default:
		s.set(u, Unhealthy, err.Error())
	}
}

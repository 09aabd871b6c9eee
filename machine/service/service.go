//go:build linux

// Package service keeps programs running: it starts them in an order, in control
// groups of their own, starts them again when they end, with a delay that grows,
// asks after their health, and holds the latest lines that they print.
//
// A service has a state:
//
//	waiting   for services it comes after, or for its start to be allowed
//	starting  its process runs, its health is not known yet
//	running   it is healthy
//	unhealthy its process runs, and its health check fails
//	stopping  it has been told to end
//	backoff   it has ended and will be started again
//	stopped   somebody stopped it
//	done      it has ended as it should, and is not started again
//	failed    it cannot be started, or has failed and is not started again
package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// A State says what a service is doing. It is one of the words of the package's
// description.
type State string

// The states.
const (
	Waiting   State = "waiting"
	Starting  State = "starting"
	Running   State = "running"
	Unhealthy State = "unhealthy"
	Stopping  State = "stopping"
	Backoff   State = "backoff"
	Stopped   State = "stopped"
	Done      State = "done"
	Failed    State = "failed"
)

// A Restart says when a service that has ended is started again.
type Restart string

// The policies.
const (
	Always    Restart = "always" // the zero value means it as well
	OnFailure Restart = "on-failure"
	Never     Restart = "never"
)

// Errors that callers branch on.
var (
	ErrUnknown = errors.New("no such service")
	ErrExists  = errors.New("service is there already")
	ErrOrder   = errors.New("services wait for each other")
)

// A Spec describes a service.
type Spec struct {
	Name  string
	Path  string   // of the program
	Args  []string // after the program's name
	Env   []string // all of it, KEY=VALUE
	Dir   string
	After []string // names of services that must be running, or done, first

	Restart Restart
	UID     uint32 // and no other groups than GID
	GID     uint32
	OOM     int // -1000 to 1000, see proc_pid_oom_score_adj(5)

	// Before waits, after After, for what else must be there before each start, and
	// tells waiting what that is. It returns when that is there, or with ctx.
	Before func(ctx context.Context, waiting func(forWhat string))

	// Health asks the service how it is. Without one a process that runs is
	// healthy.
	Health func(context.Context) error

	// Patience is how long one that has never been healthy may take before it is
	// started again; 0 is 5 min.
	Patience time.Duration

	// Grace is what it gets to end in, from SIGTERM to SIGKILL; 0 is 10 s.
	Grace time.Duration

	// Cgroup is the directory of the service's control group, which is made; an
	// empty one leaves it in its parent's. Limits are files of it to write first,
	// as memory.max. Nothing is left in it when the service ends, unless
	// KeepChildren is set: then what it has started outlives it, as containers do
	// when their daemon is started anew.
	Cgroup       string
	Limits       map[string]string
	KeepChildren bool
}

// How long things take.
const (
	defaultGrace = 10 * time.Second
	minBackoff   = 250 * time.Millisecond
	maxBackoff   = 30 * time.Second

	// steady is how long a service must have run for its delay to begin anew.
	steady = 30 * time.Second

	healthInterval = 5 * time.Second
	healthTimeout  = 5 * time.Second

	// firstInterval is how often one that has not been healthy yet is asked.
	firstInterval = 100 * time.Millisecond

	defaultPatience = 5 * time.Minute
)

// A Status is what is known of a service.
type Status struct {
	Name     string
	State    State
	PID      int       // 0 if there is no process
	Since    time.Time // of the state
	Restarts int       // how often it has been started again
	Message  string    // why: how it ended, what its health check says, for what it waits
}

// An Event is a change of a Status.
type Event struct {
	Time time.Time
	Status
}

// A Runner starts a program; see reaper.Reaper, which a PID 1 needs. The result
// waits for its end.
type Runner interface {
	Start(*exec.Cmd) (wait func() error, err error)
}

// Direct is the Runner of a process that is not PID 1.
type Direct struct{}

// Start is c.Start.
func (Direct) Start(c *exec.Cmd) (func() error, error) {
	if err := c.Start(); err != nil {
		return nil, err
	}
	return c.Wait, nil
}

// command makes the process of s, which ends when ctx does.
func (s *Spec) command(ctx context.Context, out *Ring) *exec.Cmd {
	c := exec.CommandContext(ctx, s.Path, s.Args...)
	c.Env, c.Dir = append([]string{}, s.Env...), s.Dir
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.UID != 0 || s.GID != 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: s.UID, Gid: s.GID}
	}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = s.grace()
	return c
}

func (s *Spec) grace() time.Duration {
	if s.Grace > 0 {
		return s.Grace
	}
	return defaultGrace
}

func (s *Spec) patience() time.Duration {
	if s.Patience > 0 {
		return s.Patience
	}
	return defaultPatience
}

// ended puts the end of a process into words.
func ended(err error) string {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		if err == nil {
			return "exited with status 0"
		}
		return err.Error()
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%v)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("exited with status %d", exit.ExitCode())
}

// check returns an error if s cannot be among the given services.
func (s *Spec) check(others map[string]*unit) error {
	if s.Name == "" || s.Path == "" {
		return fmt.Errorf("service %q: want a name and the path of a program", s.Name)
	}
	if others[s.Name] != nil {
		return fmt.Errorf("service %s: %w", s.Name, ErrExists)
	}
	for _, a := range s.After {
		if others[a] == nil && a != s.Name {
			return fmt.Errorf("service %s: comes after %s: %w", s.Name, a, ErrUnknown)
		}
	}
	if slices.Contains(s.After, s.Name) {
		return fmt.Errorf("service %s: comes after itself: %w", s.Name, ErrOrder)
	}
	switch s.Restart {
	case "", Always, OnFailure, Never:
	default:
		return fmt.Errorf("service %s: restart %q: want %s, %s or %s", s.Name, s.Restart, Always, OnFailure, Never)
	}
	return nil
}

func setOOM(pid, score int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), fmt.Append(nil, score), 0)
}

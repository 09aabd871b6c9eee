//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// As a service: does what its arguments say, one after the other.
func TestMain(m *testing.M) {
	if os.Getenv("KILN_SERVICE_TEST") == "" {
		os.Exit(m.Run())
	}
	for _, a := range os.Args[1:] {
		word, value, _ := strings.Cut(a, "=")
		switch word {
		case "print":
			fmt.Println(value)
		case "stderr":
			fmt.Fprint(os.Stderr, value)
		case "exit":
			os.Exit(len(value))
		case "stubborn":
			signal.Ignore(syscall.SIGTERM)
		case "child":
			c := exec.Command("/proc/self/exe", "sleep")
			c.Env, c.SysProcAttr = os.Environ(), &syscall.SysProcAttr{Setsid: true}
			if err := c.Start(); err != nil {
				panic(err)
			}
			fmt.Println("child", c.Process.Pid)
		case "sleep":
			time.Sleep(time.Minute)
		}
	}
	os.Exit(0)
}

// program is a service that does as it is told.
func program(name string, args ...string) Spec {
	return Spec{Name: name, Path: "/proc/self/exe", Args: args, Env: []string{"KILN_SERVICE_TEST=1"}}
}

func newSupervisor(t *testing.T) *Supervisor {
	s := New(t.Context(), Direct{})
	t.Cleanup(s.Shutdown)
	return s
}

func (s *Supervisor) status(name string) Status {
	for _, st := range s.List() {
		if st.Name == name {
			return st
		}
	}
	return Status{}
}

// reaches waits for a service to be in a state.
func reaches(t *testing.T, s *Supervisor, name string, want State) Status {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if st := s.status(name); st.State == want {
			return st
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want it %s", s.status(name), want)
		}
	}
}

// firstLine waits for what a service prints first.
func firstLine(t *testing.T, s *Supervisor, name string) string {
	t.Helper()
	log, err := s.Log(name)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if lines := log.Tail(-1); len(lines) > 0 {
			return lines[0].Text
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want it to print a line", s.status(name))
		}
	}
}

func add(t *testing.T, s *Supervisor, spec Spec) {
	t.Helper()
	if err := s.Add(spec); err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	s := newSupervisor(t)
	events := s.Events(t.Context())
	add(t, s, program("web", "print=hello", "stderr=no end", "sleep"))
	up := reaches(t, s, "web", Running)
	if up.PID == 0 || unix.Kill(up.PID, 0) != nil {
		t.Errorf("%+v: no process", up)
	}
	firstLine(t, s, "web")
	if err := s.Stop("web"); err != nil {
		t.Fatal(err)
	}
	if st := s.status("web"); st.State != Stopped || st.PID != 0 || st.Message != "killed by signal 15 (terminated)" || unix.Kill(up.PID, 0) == nil {
		t.Errorf("%+v", st)
	}
	log, err := s.Log("web")
	if got := texts(log.Tail(-1)); err != nil || got != "1:hello|2:no end|" {
		t.Errorf("log is %q, %v", got, err)
	}
	if err := s.Start("web"); err != nil {
		t.Fatal(err)
	}
	if again := reaches(t, s, "web", Running); again.PID == up.PID || again.Restarts != 0 {
		t.Errorf("%+v", again)
	}
	if err := s.Restart("web"); err != nil {
		t.Fatal(err)
	}
	reaches(t, s, "web", Running)
	if err := s.Remove("web"); err != nil || len(s.List()) != 0 {
		t.Errorf("%v, %v", s.List(), err)
	}
	var states []string
	for len(events) > 0 {
		states = append(states, string((<-events).State))
	}
	const life = "starting running stopping stopped"
	if got, want := strings.Join(states, " "), "waiting "+life+" waiting "+life+" waiting "+life; got != want {
		t.Errorf("events are %s, want %s", got, want)
	}
}

func TestPolicies(t *testing.T) {
	s := newSupervisor(t)
	for _, c := range []struct {
		restart Restart
		exit    string
		state   State
		message string
	}{
		{Never, "exit=", Done, "exited with status 0"},
		{Never, "exit=123", Failed, "exited with status 3"},
		{OnFailure, "exit=", Done, "exited with status 0"},
		{OnFailure, "exit=1", Backoff, "exited with status 1; is started again after "},
		{Always, "exit=", Backoff, "exited with status 0; is started again after "},
		{"", "exit=", Backoff, "exited with status 0; is started again after "},
	} {
		spec := program(fmt.Sprintf("%s %s", c.restart, c.exit), c.exit)
		spec.Restart = c.restart
		add(t, s, spec)
		if st := reaches(t, s, spec.Name, c.state); !strings.HasPrefix(st.Message, c.message) || st.PID != 0 {
			t.Errorf("%+v, want %s", st, c.message)
		}
		if c.state == Backoff {
			for s.status(spec.Name).Restarts == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	missing := program("missing")
	missing.Path = "/no/such/program"
	add(t, s, missing)
	if st := reaches(t, s, "missing", Backoff); !strings.Contains(st.Message, "/no/such/program: no such file or directory; is started again") {
		t.Errorf("%+v", st)
	}
}

// fake runs programs that end at once.
type fake struct{ starts []time.Time }

func (f *fake) Start(c *exec.Cmd) (func() error, error) {
	f.starts = append(f.starts, time.Now())
	return nil, errors.New("does not start")
}

// What fails again and again is started less and less often.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		ctx, cancel := context.WithCancel(t.Context())
		s := New(ctx, f)
		add(t, s, program("loop"))
		time.Sleep(3 * time.Minute)
		cancel()
		synctest.Wait()
		if st := s.status("loop"); st.State != Stopped || st.Restarts != len(f.starts)-1 {
			t.Errorf("%+v after %d starts", st, len(f.starts))
		}
		delay := minBackoff
		for i := range f.starts[1:] {
			if got := f.starts[i+1].Sub(f.starts[i]); got < delay || got > delay+delay/4 {
				t.Errorf("delay %d is %v, want %v and up to a quarter more", i, got, delay)
			}
			delay = min(2*delay, maxBackoff)
		}
		if n := len(f.starts); n < 10 || n > 13 {
			t.Errorf("%d starts", n)
		}
	})
}

func TestHealth(t *testing.T) {
	s := newSupervisor(t)
	sick := make(chan error, 1)
	sick <- errors.New("no answer")
	spec := program("api", "sleep")
	spec.Health = func(context.Context) error {
		err := <-sick
		sick <- err
		return err
	}
	after := program("client", "sleep")
	after.After = []string{"api"}
	add(t, s, spec)
	add(t, s, after)
	reaches(t, s, "api", Starting)
	time.Sleep(3 * firstInterval)
	if st := s.status("client"); st.State != Waiting || st.Message != "for api" {
		t.Errorf("%+v", st)
	}
	<-sick
	sick <- nil
	reaches(t, s, "api", Running)
	reaches(t, s, "client", Running)
	<-sick
	sick <- errors.New("no answer")
	if st := reaches(t, s, "api", Unhealthy); st.Message != "no answer" {
		t.Errorf("%+v", st)
	}
}

func TestNeverHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &unit{spec: Spec{Health: func(context.Context) error { return errors.New("no answer") }}}
		began := time.Now()
		err := New(t.Context(), nil).health(t.Context(), u)
		if !errors.Is(err, errSick) || err.Error() != "was never healthy in 5m0s: no answer" || time.Since(began) < defaultPatience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// One that does not listen to SIGTERM is killed; what it has started goes with its
// control group.
func TestStubborn(t *testing.T) {
	s := newSupervisor(t)
	spec := program("stubborn", "stubborn", "print=up", "sleep")
	spec.Grace = 50 * time.Millisecond
	add(t, s, spec)
	firstLine(t, s, "stubborn")
	if err := s.Stop("stubborn"); err != nil {
		t.Fatal(err)
	}
	if st := s.status("stubborn"); st.Message != "killed by signal 9 (killed)" {
		t.Errorf("%+v", st)
	}
}

func TestGroup(t *testing.T) {
	oracle.Root(t)
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skipf("SKIPPED: control groups of version 2: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	dir := filepath.Join(root, fmt.Sprintf("kiln-test-%d", os.Getpid()))
	s := newSupervisor(t)
	for _, keep := range []bool{false, true} {
		spec := program(fmt.Sprint("daemon ", keep), "child", "sleep")
		spec.Cgroup, spec.KeepChildren, spec.Grace = dir, keep, 100*time.Millisecond
		add(t, s, spec)
		var child int
		if _, err := fmt.Sscanf(firstLine(t, s, spec.Name), "child %d", &child); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(spec.Name); err != nil {
			t.Fatal(err)
		}
		members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if keep && string(members) != fmt.Sprintf("%d\n", child) || !keep && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("keep %v: %q are left, %v, child is %d", keep, members, err, child)
		}
	}
	if err := (&group{dir}).kill(); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	s := newSupervisor(t)
	add(t, s, program("a", "sleep"))
	for _, c := range []struct {
		spec Spec
		want string
		is   error
	}{
		{Spec{}, `service "": want a name and the path of a program`, nil},
		{program("a"), "service a: service is there already", ErrExists},
		{Spec{Name: "b", Path: "/b", After: []string{"c"}}, "service b: comes after c: no such service", ErrUnknown},
		{Spec{Name: "b", Path: "/b", After: []string{"b"}}, "service b: comes after itself: services wait for each other", ErrOrder},
		{Spec{Name: "b", Path: "/b", Restart: "often"}, `service b: restart "often": want always, on-failure or never`, nil},
	} {
		if err := s.Add(c.spec); err == nil || err.Error() != c.want || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for _, err := range []error{s.Stop("x"), s.Start("x"), s.Restart("x"), s.Remove("x")} {
		if err == nil || err.Error() != "service x: no such service; there are [a]" || !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := s.Log("x"); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

// Services end in the reverse of the order they began in, and stay so.
func TestShutdown(t *testing.T) {
	s := New(t.Context(), Direct{})
	add(t, s, program("first", "sleep"))
	second := program("second", "sleep")
	second.After = []string{"first"}
	add(t, s, second)
	reaches(t, s, "second", Running)
	events := s.Events(t.Context())
	s.Shutdown()
	var order []string
	for len(events) > 0 {
		if e := <-events; e.State == Stopped {
			order = append(order, e.Name)
		}
	}
	if got := strings.Join(order, " "); got != "second first" {
		t.Errorf("ended: %s", got)
	}
	if err := s.Start("first"); err != nil || s.status("first").State != Stopped {
		t.Errorf("%+v, %v", s.status("first"), err)
	}
}

// A service waits for what else must be there, and says so, before every start.
func TestBefore(t *testing.T) {
	s := newSupervisor(t)
	there := make(chan struct{})
	spec := program("a", "sleep")
	spec.Before = func(ctx context.Context, waiting func(string)) {
		waiting("a reason")
		select {
		case <-there:
		case <-ctx.Done():
		}
	}
	if err := s.Add(spec); err != nil {
		t.Fatal(err)
	}
	for st := s.status("a"); st.Message != "for a reason"; st = s.status("a") {
		if st.State != Waiting {
			t.Fatalf("%+v, want waiting", st)
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.Stop("a"); err != nil { // ends the waiting
		t.Fatal(err)
	}
	reaches(t, s, "a", Stopped)
	close(there)
	if err := s.Start("a"); err != nil {
		t.Fatal(err)
	}
	reaches(t, s, "a", Running)
}

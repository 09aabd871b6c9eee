//go:build linux

package containers

import (
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// In a name space of its own a process has a loopback interface that is down, until
// it is brought up; the test's own name space stays as it is.
func TestLoopback(t *testing.T) {
	oracle.Root(t)
	sleep := exec.CommandContext(t.Context(), "sleep", "60")
	sleep.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	ip := oracle.Tool(t, "ip")
	show := func() string {
		out, err := exec.Command(oracle.Tool(t, "nsenter"), "--net=/proc/"+strconv.Itoa(sleep.Process.Pid)+"/ns/net", ip, "-brief", "link", "show", "up").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if got := show(); got != "" {
		t.Fatalf("up at first: %s", got)
	}
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if err := loopback(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := show(); len(got) < 2 || got[:2] != "lo" {
		t.Errorf("up: %q, want lo", got)
	}
	after, err := net.Interfaces()
	if err != nil || len(after) != len(before) {
		t.Errorf("the test sees %d interfaces, had %d: %v", len(after), len(before), err)
	}
	if err := loopback(-1); err == nil {
		t.Error("no process: no error")
	}
}

//go:build linux

package reaper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As a program: starts a child that outlives it, prints its PID, and exits with
// the status it is told.
func TestMain(m *testing.M) {
	switch os.Getenv("KILN_REAPER_TEST") {
	case "":
		os.Exit(m.Run())
	case "orphan":
		time.Sleep(20 * time.Millisecond)
	default:
		c := exec.Command("/proc/self/exe")
		c.Env = []string{"KILN_REAPER_TEST=orphan"}
		if err := c.Start(); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println(c.Process.Pid)
		}
		status, _ := strconv.Atoi(os.Getenv("KILN_REAPER_TEST"))
		os.Exit(status)
	}
}

var newReaper = sync.OnceValue(New) // with -count, too

func TestReaper(t *testing.T) {
	if size := unsafe.Sizeof(siginfo{}); size != unsafe.Sizeof(unix.Siginfo{}) {
		t.Fatalf("siginfo has %d bytes", size)
	}
	// This process inherits orphans, as PID 1 does.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skipf("SKIPPED: PR_SET_CHILD_SUBREAPER: %v", err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	r := newReaper()
	var mu sync.Mutex
	var orphans []int
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			c := exec.Command("/proc/self/exe")
			c.Env = []string{fmt.Sprintf("KILN_REAPER_TEST=%d", i+1)}
			var out strings.Builder
			c.Stdout = &out
			err := r.Run(c)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != i+1 {
				t.Errorf("got %v, want exit status %d", err, i+1)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			orphans = append(orphans, pid)
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, pid := range orphans {
			if unix.Kill(pid, 0) == nil {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d orphans are not buried", left, len(orphans))
		}
	}
	if err := r.Run(exec.Command("/no/such/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

//go:build linux

package tool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"testing"
)

type direct struct{}

func (direct) Start(c *exec.Cmd) (func() error, error) { return c.Wait, c.Start() }

// The test itself is the program.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "upgrade" {
		fmt.Println("slot B", os.Getenv("TMPDIR"))
		fmt.Fprintln(os.Stderr, `{"event":"progress","step":"write","done":1,"total":2}`)
		fmt.Fprintln(os.Stderr, `{"event":"it is large","level":"warn"}`)
		switch os.Args[2] {
		case "fails":
			fmt.Fprintln(os.Stderr, "kiln: no room; make some")
			os.Exit(1)
		case "hangs":
			select {}
		}
		return
	}
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var events []Event
	note := func(e Event) { events = append(events, e) }
	out, err := Run(t.Context(), direct{}, self, []string{"upgrade", "works"}, "/tmp/x", note)
	if err != nil || out != "slot B /tmp/x\n" || len(events) != 2 || !events[0].Progress() || events[0].Done != 1 || events[0].Total != 2 || !events[1].Warning() {
		t.Errorf("%q, %v, %+v", out, err, events)
	}
	if _, err := Run(t.Context(), direct{}, self, []string{"upgrade", "fails"}, "", note); fmt.Sprint(err) != "no room; make some" {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	if _, err := Run(ctx, direct{}, self, []string{"upgrade", "hangs"}, "", func(Event) { cancel(gone) }); !errors.Is(err, gone) {
		t.Error(err)
	}
	if _, err := Run(t.Context(), direct{}, "/nonexistent", nil, "", note); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

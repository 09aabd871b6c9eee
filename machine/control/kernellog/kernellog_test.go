//go:build linux

package kernellog

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/control"
)

// What dmesg prints is what is sent.
func TestAgainstDmesg(t *testing.T) {
	oracle.Root(t)
	var got []control.DmesgLine
	if err := Send(t.Context(), Device, control.TailRequest{Tail: -1}, func(l control.DmesgLine) error { got = append(got, l); return nil }); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(oracle.Tool(t, "dmesg"), "--notime").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	// Messages may have come, or have fallen out, in between.
	if len(got) == 0 || len(want) == 0 {
		t.Skip("SKIPPED: this kernel has said nothing")
	}
	have := map[string]bool{}
	for _, w := range want {
		have[strings.TrimSpace(w)] = true
	}
	missed := 0
	for _, g := range got {
		for l := range strings.Lines(g.Message) {
			if !have[strings.TrimSpace(l)] {
				missed++
			}
		}
	}
	if missed > len(got)/10+1 {
		t.Errorf("%d of %d messages are unknown to dmesg", missed, len(got))
	}
	var last []control.DmesgLine
	if err := Send(t.Context(), Device, control.TailRequest{Tail: 1}, func(l control.DmesgLine) error { last = append(last, l); return nil }); err != nil || len(last) != 1 || last[0].Sequence < got[len(got)-1].Sequence {
		t.Errorf("the last is %v, %v", last, err)
	}
}

// A pipe stands in for the device, one message at a time.
func TestFollow(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kmsg")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	say := func(s string) {
		if _, err := pipe.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	say("12,7,1500000,-;first\n")
	ctx, cancel := context.WithCancel(t.Context())
	var got []control.DmesgLine
	err = Send(ctx, name, control.TailRequest{Tail: -1, Follow: true}, func(l control.DmesgLine) error {
		got = append(got, l)
		if len(got) == 1 {
			say("4,10,1500001,-;second\n")
		} else {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	want := []control.DmesgLine{{Sequence: 7, Microseconds: 1500000, Level: 4, Facility: 1, Message: "first"}, {Sequence: 10, Microseconds: 1500001, Level: 4, Message: "second", Lost: 2}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := Send(t.Context(), name+"?", control.TailRequest{}, nil); err == nil || !strings.HasPrefix(err.Error(), "open "+name+"?: no such file") {
		t.Errorf("error %v", err)
	}
}

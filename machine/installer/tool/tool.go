//go:build linux

// Package tool runs the kiln of an installer image, or of an installation medium, on
// a node, and follows its progress. It is apart from package installer, which also
// pulls images: the initramfs has this one.
package tool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Runner starts programs and waits for them, as package reaper does in PID 1.
type Runner interface {
	Start(*exec.Cmd) (wait func() error, err error)
}

// An Event is what kiln says of its progress.
type Event struct {
	Event string
	Step  string
	Level string
	Done  int64
	Total int64
}

// Progress says whether it is how far a step is.
func (e Event) Progress() bool { return e.Event == "progress" && e.Total > 0 }

// Warning says whether it is one, which Event has the text of.
func (e Event) Warning() bool { return e.Level == "warn" }

// Run runs kiln, which must have been told to say its progress in JSON, and tells
// event of it. It returns what kiln prints. The error is what it says. When ctx
// ends, so does kiln.
func Run(ctx context.Context, runner Runner, tool string, args []string, temporary string, event func(Event)) (string, error) {
	var out strings.Builder
	c := exec.CommandContext(ctx, tool, args...)
	c.Env = []string{"PATH=/usr/bin", "TMPDIR=" + temporary}
	c.Stdout = &out
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	c.Stderr = w
	wait, err := runner.Start(c)
	w.Close()
	if err != nil {
		return "", err
	}
	message := Follow(r, event)
	if err := wait(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if message == "" {
			message = fmt.Sprintf("%s %s: %v", filepath.Base(tool), strings.Join(args, " "), err)
		}
		return "", errors.New(message)
	}
	return out.String(), nil
}

// Follow reads what kiln says of its progress, and returns what else it says.
func Follow(r io.Reader, event func(Event)) string {
	var message []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Text()
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			message = append(message, strings.TrimPrefix(line, "kiln: "))
			continue
		}
		event(e)
	}
	_, _ = io.Copy(io.Discard, r) // behind a line that is too long
	return strings.Join(message, "\n")
}

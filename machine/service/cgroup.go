//go:build linux

package service

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A group is the control group of a service's processes, version 2 of the
// kernel's interface (Documentation/admin-guide/cgroup-v2.rst).
type group struct{ dir string }

// newGroup makes the group and sets its limits. What a former life of the
// service left in it is killed, unless that is to stay.
func newGroup(s *Spec) (*group, error) {
	g := &group{s.Cgroup}
	if !s.KeepChildren {
		if err := g.kill(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(s.Cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Limits)) {
		if err := os.WriteFile(filepath.Join(s.Cgroup, name), []byte(s.Limits[name]), 0); err != nil {
			return nil, fmt.Errorf("control group: %s=%s: %w", name, s.Limits[name], err)
		}
	}
	return g, nil
}

// enter makes a process start in the group. The file stays open until it has.
func (g *group) enter(attr *syscall.SysProcAttr) (*os.File, error) {
	f, err := os.Open(g.dir)
	if err != nil {
		return nil, fmt.Errorf("control group: %w", err)
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
	return f, nil
}

// kill ends every process of the group and of the groups below it, waits for
// that, and removes them. They must not be used again: Linux 6.12 kills what is
// started in a group in which it has killed before, since it takes the start for
// one that raced with that.
func (g *group) kill() error {
	if _, err := os.Stat(g.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	for delay := time.Millisecond; delay < 4*time.Second; delay *= 2 {
		events, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("control group: %w", err)
		}
		if strings.Contains(string(events), "populated 0") {
			return g.remove()
		}
		time.Sleep(delay)
	}
	return fmt.Errorf("control group %s: processes are left that do not die", g.dir)
}

// remove removes the group and those below it, which are empty.
func (g *group) remove() error {
	var dirs []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		if err == nil {
			err = os.Remove(dir)
		}
	}
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	return nil
}

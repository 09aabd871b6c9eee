package store

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

func want(t *testing.T, load func() ([]byte, error), text string) {
	t.Helper()
	data, err := load()
	if text == "" {
		if !errors.Is(err, ErrNone) {
			t.Errorf("loaded %q, %v, want ErrNone", data, err)
		}
		return
	}
	if err != nil || string(data) != text {
		t.Errorf("loaded %q, %v, want %q", data, err, text)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func TestStore(t *testing.T) {
	s := Store{t.TempDir()}
	want(t, s.Load, "")
	want(t, s.Previous, "")
	previous := ""
	for _, text := range []string{"one", "two", "two", "three"} {
		if err := s.Save([]byte(text)); err != nil {
			t.Fatal(err)
		}
		want(t, s.Load, text)
		want(t, s.Previous, previous)
		previous = text
	}
	if got := names(t, s.Dir); got != "config.yaml config.yaml.previous" {
		t.Errorf("files %s", got)
	}
	fi, err := os.Stat(filepath.Join(s.Dir, Name))
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600: there are keys in it", fi.Mode(), err)
	}
	for range 2 {
		if err := s.Clear(); err != nil {
			t.Fatal(err)
		}
	}
	want(t, s.Load, "")
	want(t, s.Previous, "")
}

// TestCut makes what a power failure in the middle of Save leaves.
func TestCut(t *testing.T) {
	s := Store{t.TempDir()}
	for _, text := range []string{"one", "two"} {
		if err := s.Save([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{".config.yaml.tmp-123", ".config.yaml.tmp-456"} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte("thr"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(s.Dir, Name), filepath.Join(s.Dir, PreviousName+".link")); err != nil {
		t.Fatal(err)
	}
	want(t, s.Load, "two")
	want(t, s.Previous, "one")
	if err := s.Save([]byte("three")); err != nil {
		t.Fatal(err)
	}
	want(t, s.Load, "three")
	want(t, s.Previous, "two")
	if got := names(t, s.Dir); got != "config.yaml config.yaml.previous" {
		t.Errorf("files %s", got)
	}
}

func TestDamage(t *testing.T) {
	s := Store{t.TempDir()}
	name := filepath.Join(s.Dir, Name)
	for _, text := range []string{"good", "better"} {
		if err := s.Save([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		make func() error
		want string
	}{
		{func() error { return os.WriteFile(name, nil, 0o600) }, name + " is empty: it was damaged, for no empty one is saved"},
		{func() error { return os.WriteFile(name, make([]byte, MaxSize+1), 0o600) }, name + " has 1048577 bytes, want at most 1048576"},
		{func() error { return os.Mkdir(name, 0o700) }, name + ": found d---------, want a regular file"},
		{func() error { return syscall.Mkfifo(name, 0o600) }, name + ": found p---------, want a regular file"},
		{func() error { return os.Symlink("/etc/passwd", name) }, "STATE cannot be read: open " + name + ": too many levels of symbolic links"},
	} {
		if err := errors.Join(os.Remove(name), c.make()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
		want(t, s.Previous, "good")
	}
	// The good one is not lost to the damaged one.
	if err := s.Save([]byte("new")); err != nil {
		t.Fatal(err)
	}
	want(t, s.Load, "new")
	want(t, s.Previous, "good")
}

func TestRefused(t *testing.T) {
	s := Store{t.TempDir()}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "an empty machine configuration is not saved"},
		{make([]byte, MaxSize+1), "a machine configuration of 1048577 bytes is not saved, at most 1048576 are"},
	} {
		if err := s.Save(c.data); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
	}
	missing := Store{filepath.Join(s.Dir, "none")}
	if err := missing.Save([]byte("x")); err == nil || !strings.HasPrefix(err.Error(), "the machine configuration was not saved: open ") {
		t.Errorf("error %v", err)
	}
}

// TestFull saves to a file system without room, and to one that is read-only.
func TestFull(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	if out, err := exec.Command(oracle.Tool(t, "mount"), "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := Store{dir}
	if err := s.Save([]byte("old")); err != nil {
		t.Fatal(err)
	}
	err := s.Save(bytes.Repeat([]byte("# new\n"), 100000/6))
	if err == nil || !errors.Is(err, syscall.ENOSPC) ||
		!strings.HasPrefix(err.Error(), "STATE is full, the machine configuration was not saved and the one before is kept: write ") {
		t.Errorf("error %v", err)
	}
	want(t, s.Load, "old")
	if got := names(t, dir); got != Name {
		t.Errorf("files %s", got)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Save([]byte("new")); err == nil || !errors.Is(err, syscall.EROFS) ||
		!strings.HasPrefix(err.Error(), "STATE cannot be written, the machine configuration was not saved; 'kiln.reset=state' makes STATE anew: ") {
		t.Errorf("error %v", err)
	}
	want(t, s.Load, "old")
}

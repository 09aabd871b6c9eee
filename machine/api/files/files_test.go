//go:build linux

package files

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/machine/control"
)

// tree makes files to read: names that end in a slash are directories, and those
// with an arrow are links.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		var err error
		if name, to, ok := strings.Cut(n, " -> "); ok {
			err = os.Symlink(to, filepath.Join(dir, name))
		} else if strings.HasSuffix(n, "/") {
			err = os.MkdirAll(filepath.Join(dir, n), 0o755)
		} else {
			err = os.WriteFile(filepath.Join(dir, n), []byte("content of "+n), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, dir string, hide ...string) *Tree {
	t.Helper()
	tr, err := Open(dir, hide...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func (t *Tree) content(r control.ReadRequest) (string, error) {
	var b strings.Builder
	err := t.ReadFile(context.Background(), r, func(c control.FileChunk) error { b.Write(c.Data); return nil })
	return b.String(), err
}

func (t *Tree) names(path string, recursive bool) ([]string, error) {
	var names []string
	err := t.ListDirectory(context.Background(), control.ListRequest{Path: path, Recursive: recursive}, func(i control.FileInfo) error {
		n := i.Path
		if i.Link != "" {
			n += " -> " + i.Link
		}
		if i.IsDir() {
			n += "/"
		}
		if i.Error != "" {
			n += ": " + i.Error
		}
		names = append(names, n)
		return nil
	})
	slices.Sort(names)
	return names, err
}

func TestRead(t *testing.T) {
	dir := tree(t, "a/", "a/file", "absolute -> /a/file", "relative -> a/../a/file", "up -> ../../../../a/file", "directory -> /a", "loop -> loop")
	tr := open(t, dir)
	for _, path := range []string{"/a/file", "//a/./file", "/a/../../a/file", "/absolute", "/relative", "/up", "/directory/file"} {
		if s, err := tr.content(control.ReadRequest{Path: path}); err != nil || s != "content of a/file" {
			t.Errorf("%s: %q, %v", path, s, err)
		}
	}
	if s, err := tr.content(control.ReadRequest{Path: "/a/file", Offset: 8, Limit: 2}); err != nil || s != "of" {
		t.Errorf("a part: %q, %v", s, err)
	}
	if s, err := tr.content(control.ReadRequest{Path: "/a/file", Offset: 1000}); err != nil || s != "" {
		t.Errorf("behind the end: %q, %v", s, err)
	}
	big := strings.Repeat("x", 3*chunk+1)
	if err := os.WriteFile(filepath.Join(dir, "big"), []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := tr.content(control.ReadRequest{Path: "/big"}); err != nil || s != big {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	if s, err := tr.content(control.ReadRequest{Path: "/big", Limit: chunk + 1}); err != nil || len(s) != chunk+1 {
		t.Errorf("%d bytes, %v", len(s), err)
	}
}

func TestRefused(t *testing.T) {
	dir := tree(t, "a/", "a/file", "secret/", "secret/key", "way -> secret/key", "loop -> loop", "dir -> secret")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr := open(t, dir, "/secret", "/a/f?le")
	for path, want := range map[string]string{
		"/none":           "open /none: no such file or directory",
		"/a/none":         "open /a/none: no such file or directory",
		"a/file":          `invalid request: path "a/file", want an absolute one`,
		"":                `invalid request: path "", want an absolute one`,
		"/a\x00b":         `invalid request: path "/a\x00b", want an absolute one`,
		"/pipe":           "invalid request: /pipe is a pipe, want a regular file",
		"/a":              "invalid request: /a is a directory, want a regular file",
		"/loop":           "open /loop: too many levels of symbolic links",
		"/secret/key":     "open /secret: permission denied",
		"/way":            "open /secret: permission denied",
		"/dir/key":        "open /secret: permission denied",
		"/a/../secret/x":  "open /secret: permission denied",
		"/a/file":         "open /a/file: permission denied",
		"/pipe/x":         "open /pipe/x: not a directory",
		"/secret/../pipe": "invalid request: /pipe is a pipe, want a regular file",
	} {
		if _, err := tr.content(control.ReadRequest{Path: path}); err == nil || err.Error() != want {
			t.Errorf("%q: error %v, want %s", path, err, want)
		}
	}
	if _, err := tr.content(control.ReadRequest{Path: "/pipe", Offset: 1 << 63}); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if names, err := tr.names("/", true); err != nil || !slices.Equal(names, []string{"/a/", "/dir -> secret", "/loop -> loop", "/pipe", "/way -> secret/key"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := tr.names("/secret", false); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v", err)
	}
	if _, err := Open(dir, "x"); err == nil || err.Error() != `hidden path "x": want an absolute path or pattern` {
		t.Errorf("error %v", err)
	}
}

// Somebody may turn a file into a link between the look at it and the opening.
func TestChangedMeanwhile(t *testing.T) {
	dir := tree(t, "secret/", "secret/key", "file")
	tr := open(t, dir, "/secret")
	f, err := os.Open(filepath.Join(dir, "secret/key"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := tr.check(f, "/file", 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a hidden file under another name: %v", err)
	}
	out, err := os.Open(filepath.Join(tree(t, "file"), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := tr.check(out, "/file", 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file outside: %v", err)
	}
}

// Nothing that holds another's memory is shown, and devices are not opened.
func TestHiddenAlways(t *testing.T) {
	tr := open(t, "/")
	for _, path := range []string{"/proc/self/mem", "/proc/self/environ", "/proc/self/auxv", "/proc/1/environ", "/proc/thread-self/mem", "/proc/self/root/etc/passwd", "/proc/self/cwd", "/proc/self/fd/0", "/proc/kcore"} {
		if _, err := tr.content(control.ReadRequest{Path: path}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := tr.content(control.ReadRequest{Path: "/dev/zero"}); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("/dev/zero: %v", err)
	}
	if s, err := tr.content(control.ReadRequest{Path: "/proc/self/status"}); err != nil || !strings.Contains(s, "Pid:") {
		t.Errorf("/proc/self/status: %q, %v", s, err)
	}
}

func TestList(t *testing.T) {
	dir := tree(t, "a/", "a/b/", "a/b/c", "a/d", "l -> a")
	tr := open(t, dir)
	for path, want := range map[string][]string{"/": {"/a/", "/l -> a"}, "/a": {"/a/b/", "/a/d"}, "/l": {"/a/b/", "/a/d"}, "/l/d": {"/a/d"}} {
		if got, err := tr.names(path, false); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	if got, err := tr.names("/", true); err != nil || !slices.Equal(got, []string{"/a/", "/a/b/", "/a/b/c", "/a/d", "/l -> a"}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := tr.names("/a/d/e", false); err == nil || err.Error() != "open /a/d/e: not a directory" {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := tr.ListDirectory(ctx, control.ListRequest{Path: "/"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Whatever path is asked for, nothing outside and nothing hidden is read.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	for _, d := range []string{"in/a", "in/secret", "out"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for _, n := range []string{"in/a/file", "in/secret/key", "out/key"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	tr, err := Open(filepath.Join(dir, "in"), "/secret")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { tr.Close() })
	f.Add("/a/file", "../out/key")
	f.Add("/link/key", "/secret")
	f.Add("/link", "../../secret/key")
	f.Fuzz(func(t *testing.T, path, link string) {
		at := filepath.Join(dir, "in", "link")
		_ = os.Remove(at)
		_ = os.Symlink(link, at) // not every text can be one
		s, err := tr.content(control.ReadRequest{Path: path})
		if err == nil && s != "in/a/file" {
			t.Errorf("%q with a link to %q: %q", path, link, s)
		}
	})
}

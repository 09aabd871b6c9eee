package dir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// fill makes a small directory whose permissions and times depend on the umask
// and the day.
func fill(t *testing.T, root string, umask int, day time.Time) {
	t.Helper()
	old := syscall.Umask(umask)
	defer syscall.Umask(old)
	steps := []error{
		os.MkdirAll(filepath.Join(root, "usr/bin"), 0o777),
		os.WriteFile(filepath.Join(root, "usr/bin/tool"), []byte("tool"), 0o777),
		os.WriteFile(filepath.Join(root, "usr/data"), []byte("data"), 0o666),
		os.WriteFile(filepath.Join(root, "empty"), nil, 0o666),
		os.Symlink("/etc/passwd", filepath.Join(root, "out")),
		os.Symlink("usr/bin", filepath.Join(root, "bin")),
		os.Link(filepath.Join(root, "usr/data"), filepath.Join(root, "usr/data2")),
		os.Chtimes(filepath.Join(root, "usr/data"), day, day),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}

func listing(t *testing.T, tr *tree.Tree) []string {
	t.Helper()
	var lines []string
	for name, ino := range tr.All() {
		line := fmt.Sprintf("%s %v %d:%d %d", name, ino.Mode, ino.UID, ino.GID, ino.ModTime)
		if ino.Target != "" {
			line += " -> " + ino.Target
		}
		if ino.Content != nil {
			b, err := io.ReadAll(extent.Reader(ino.Content))
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %q", b)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestReadIsReproducible(t *testing.T) {
	want := []string{
		". drwxr-xr-x 0:0 77",
		"bin Lrwxrwxrwx 0:0 77 -> usr/bin",
		`empty -rw-r--r-- 0:0 77 ""`,
		"out Lrwxrwxrwx 0:0 77 -> /etc/passwd",
		"usr drwxr-xr-x 0:0 77",
		"usr/bin drwxr-xr-x 0:0 77",
		`usr/bin/tool -rwxr-xr-x 0:0 77 "tool"`,
		`usr/data -rw-r--r-- 0:0 77 "data"`,
		`usr/data2 -rw-r--r-- 0:0 77 "data"`,
	}
	for i, umask := range []int{0, 0o022, 0o077} {
		root := t.TempDir()
		fill(t, root, umask, time.Unix(int64(1e9+i*86400), 0))
		tr, err := Read(t.Context(), root, Options{ModTime: 77})
		if err != nil {
			t.Fatal(err)
		}
		if got := listing(t, tr); !slices.Equal(got, want) {
			t.Errorf("umask %03o: got\n%s\nwant\n%s", umask, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestReadKeep(t *testing.T) {
	root := t.TempDir()
	fill(t, root, 0, time.Unix(1e9, 0))
	if err := os.Chmod(filepath.Join(root, "usr/bin/tool"), 0o4750|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	tr, err := Read(t.Context(), root, Options{KeepModes: true, KeepOwners: true, Keep: func(name string, mode fs.FileMode) bool {
		return name == "usr" || strings.HasPrefix(name, "usr/bin")
	}})
	if err != nil {
		t.Fatal(err)
	}
	if tr.Len() != 4 {
		t.Errorf("got %q", listing(t, tr))
	}
	ino := tr.Lookup("usr/bin/tool")
	if ino.Mode != fs.ModeSetuid|0o750 || ino.UID != uint32(os.Getuid()) || ino.GID != uint32(os.Getgid()) {
		t.Errorf("got mode %v owner %d:%d", ino.Mode, ino.UID, ino.GID)
	}
}

// Contents belong to the directory that was read, wherever the process is by
// the time they are used.
func TestReadRelative(t *testing.T) {
	root := t.TempDir()
	fill(t, root, 0, time.Unix(1e9, 0))
	t.Chdir(root)
	tr, err := Read(t.Context(), "usr", Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir("/")
	if got := listing(t, tr)[3]; got != `data -rw-r--r-- 0:0 0 "data"` {
		t.Errorf("got %s", got)
	}
}

func TestReadErrors(t *testing.T) {
	root := t.TempDir()
	if _, err := Read(t.Context(), filepath.Join(root, "none"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Read(t.Context(), root, Options{})
	if want := root + ": pipe: a FIFO: only files, directories and symbolic links can be taken"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	short, err := os.MkdirTemp("", "kiln") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	l, err := net.Listen("unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Read(t.Context(), short, Options{}); err == nil || !strings.Contains(err.Error(), "s: a socket") {
		t.Errorf("socket: %v", err)
	}
}

// After Read nothing outside of the directory is reached, and no file that has
// changed is taken for the old one.
func TestContentChanged(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("four"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"rewritten", func(p string) error { return os.WriteFile(p, []byte("DATA!"), 0o644) }, "changed while it was read"},
		{"link out", func(p string) error { return errors.Join(os.Remove(p), os.Symlink(outside, p)) }, "path escapes from parent"},
		{"parent link out", func(p string) error {
			d := filepath.Dir(p)
			return errors.Join(os.RemoveAll(d), os.Symlink(filepath.Dir(outside), d))
		}, "path escapes from parent"},
		{"fifo", func(p string) error { return errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o644)) }, "changed while it was read"},
		{"gone", os.Remove, "no such file or directory"},
	} {
		root := t.TempDir()
		p := filepath.Join(root, "d/secret")
		if err := errors.Join(os.Mkdir(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("data"), 0o644)); err != nil {
			t.Fatal(err)
		}
		tr, err := Read(t.Context(), root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.change(p); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		n, err := tr.Lookup("d/secret").Content.ReadAt(b, 0)
		if n != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: read %q, %v, want %s", tt.name, b[:n], err, tt.want)
		}
	}
}

package fsck

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

func run(c *exec.Cmd) error { return c.Run() }

// fileSystem makes one with a file in it, of two groups: the second has a copy of
// the superblock.
func fileSystem(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	name, file := filepath.Join(dir, "fs"), filepath.Join(dir, "kept")
	if err := os.WriteFile(file, []byte("kept\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*exec.Cmd{
		exec.Command(oracle.Tool(t, "mke2fs"), "-q", "-t", "ext4", "-b", "1024", name, "16M"),
		exec.Command(oracle.Tool(t, "debugfs"), "-w", "-R", "write "+file+" kept", name),
	} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	return name
}

func write(t *testing.T, name string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func TestRepair(t *testing.T) {
	program := oracle.Tool(t, "e2fsck")
	for _, tt := range []struct {
		name   string
		damage func(name string)
		done   string // in what it did; "" is nothing
		err    string
	}{
		{"sound", func(string) {}, "", ""},
		{"superblock", func(name string) { write(t, name, superOffset, make([]byte, 1024)) }, "Superblock invalid, trying backup blocks...", ""},
		{"state", func(name string) { write(t, name, superOffset+stateOffset, []byte{stateErrors}) }, "", ""},
		{"bitmap", func(name string) { damageBitmap(t, name) }, "Block bitmap differences: ", ""},
		{"all", func(name string) { write(t, name, 0, bytes.Repeat([]byte{0xa5}, 16<<20)) }, "Bad magic number in super-block", "cannot be repaired"},
		{"short", func(name string) {
			if err := os.Truncate(name, 4096); err != nil {
				t.Fatal(err)
			}
		}, "", "cannot be repaired"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := fileSystem(t)
			tt.damage(name)
			done, err := Repair(program, name, run)
			if text := strings.Join(done, "\n"); !strings.Contains(text, tt.done) || tt.name == "sound" && text != "" {
				t.Errorf("did %q, want %q", done, tt.done)
			}
			if tt.err != "" {
				if err == nil || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), name) {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
			if out, err := exec.Command(oracle.Tool(t, "debugfs"), "-R", "cat kept", name).Output(); err != nil || string(out) != "kept\n" {
				t.Errorf("the file is %q, %v", out, err)
			}
			if done, err := Repair(program, name, run); len(done) > 0 || err != nil {
				t.Errorf("repaired again: %q, %v", done, err)
			}
		})
	}
}

// damageBitmap frees, in the bitmap only, a block that is in use.
func damageBitmap(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.Command(oracle.Tool(t, "debugfs"), "-w", "-R", "freeb 1", name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestRepairWithoutProgram(t *testing.T) {
	_, err := Repair("/nothing/e2fsck", "/dev/vda6", run)
	if want := "/nothing/e2fsck /dev/vda6: fork/exec /nothing/e2fsck: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestAsks(t *testing.T) {
	super := make([]byte, 2048)
	ask := func(want bool) {
		t.Helper()
		if got, err := Asks(bytes.NewReader(super)); got != want || err != nil {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	super[superOffset+stateOffset] = stateErrors
	ask(false) // it is none
	super[superOffset+magicOffset], super[superOffset+magicOffset+1] = 0x53, 0xef
	ask(true)
	super[superOffset+stateOffset] = 1
	ask(false)
	if _, err := Asks(bytes.NewReader(super[:1030])); err == nil {
		t.Error("a short device is read")
	}
}

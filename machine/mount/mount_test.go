//go:build linux

package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

func TestOverlayRefuses(t *testing.T) {
	if err := Overlay([]string{"/a:b"}, "/x"); err == nil || err.Error() != `overlay: directory "/a:b" needs a plain name` {
		t.Errorf("got error %v", err)
	}
	var many []string
	for i := range 900 {
		many = append(many, fmt.Sprintf("/l/%d", i))
	}
	if err := Overlay(many, "/x"); err == nil || !strings.Contains(err.Error(), "900 layers are too many") {
		t.Errorf("got error %v", err)
	}
}

// TestImages stacks 70 images made by mksquashfs, one loop device at a time
// being enough because the first is the only one that is an image here.
func TestImages(t *testing.T) {
	oracle.Root(t)
	mksquashfs := oracle.Tool(t, "mksquashfs")
	dir, err := os.MkdirTemp("/tmp", "kiln") // names must be short and plain
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("tree/base", "base")
	write("tree/who", "base")
	image, root, low := dir+"/i.sqsh", dir+"/r", dir+"/0"
	if out, err := exec.Command(mksquashfs, dir+"/tree", image, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v: %s", err, out)
	}
	for _, d := range []string{root, low} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Image(image, low); err != nil {
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOSPC) {
			t.Skipf("SKIPPED: no free loop device: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(low, unix.MNT_DETACH) })
	// The file may go while the loop device holds it.
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	dirs := []string{low}
	for i := 1; i < 70; i++ {
		write(fmt.Sprintf("%d/who", i), fmt.Sprint(i))
		write(fmt.Sprintf("%d/file%d", i, i), "")
		dirs = append(dirs, fmt.Sprintf("%s/%d", dir, i))
	}
	if err := Overlay(dirs, root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = DetachAll(root) })
	for path, want := range map[string]string{"who": "69", "base": "base", "file1": "", "file69": ""} {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
	if err := os.WriteFile(root+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing into the overlay: got error %v, want %v", err, unix.EROFS)
	}
	if err := DetachAll(root, low); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(root + "/who"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after detaching: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	for _, c := range []struct {
		fs   FileSystem
		want string
	}{
		{FileSystem{"tmpfs", dir + "/absent", "tmpfs", 0, ""}, "the image has no directory " + dir + "/absent"},
		{FileSystem{"x", dir, "nosuchfs", 0, ""}, "no such device: the kernel does not know nosuchfs"},
		{FileSystem{dir + "/dev", dir, "ext4", 0, ""}, dir + "/dev does not exist"},
	} {
		err := Mount(c.fs)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got error %v, want %s", err, c.want)
		}
	}
}

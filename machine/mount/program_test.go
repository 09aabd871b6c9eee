//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// What the command lines say: what is asked of the kernel.
func TestProgramOptions(t *testing.T) {
	for _, c := range []struct {
		options     string
		flags       uintptr
		data        string
		propagation int
	}{
		{"size=1048576,noswap", 0, "size=1048576,noswap", 0},
		{"bind,remount,ro,nosuid", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID, "", 0},
		{"ro,rw,noexec,exec,nodev", unix.MS_NODEV, "", 0},
		{"rbind,rslave", unix.MS_BIND | unix.MS_REC, "", 1},
		{"defaults,_netdev,x-systemd.automount,comment=a,noatime,discard", unix.MS_NOATIME, "discard", 0},
		{"shared", 0, "", 1},
		{"ring", 0, "ring", 0},
	} {
		var r request
		r.add(c.options)
		if r.Flags != c.flags || r.Data != c.data || len(r.propagation) != c.propagation {
			t.Errorf("%s: flags %#x, data %q, propagation %v", c.options, r.Flags, r.Data, r.propagation)
		}
	}
}

func TestProgramUsage(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		line   string
		status int
		want   string
	}{
		{"mount", exitUsage, "mount: 0 paths, want what to mount and where\n"},
		{"mount /a", exitUsage, "mount: 1 paths, want what to mount and where\n"},
		{"mount -t", exitUsage, "mount: nothing after -t\n"},
		{"mount --move /a /b", exitUsage, "mount: unknown option --move, want -t, -o or --no-canonicalize\n"},
		{"mount /dev/sda /b", exitFailure, "mount: /dev/sda on /b: want the type of its file system, with -t\n"},
		{"umount", exitUsage, "umount: want the path of a mount point\n"},
		{"umount -a", exitUsage, "umount: unknown option -a, want -f or -l\n"},
		{"umount " + dir + "/none", exitFailure, "umount: " + dir + "/none: "},
	} {
		words := strings.Fields(c.line)
		var said strings.Builder
		if got := Program(words[0], words[1:], &said); got != c.status || !strings.HasPrefix(said.String(), c.want) {
			t.Errorf("%s: status %d, %q", c.line, got, said.String())
		}
	}
}

// What the kubelet does with volumes.
func TestProgram(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	volume, bound := filepath.Join(dir, "volume"), filepath.Join(dir, "bound")
	for _, d := range []string{volume, bound} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{bound, volume} {
			_ = unix.Unmount(d, unix.MNT_DETACH)
		}
	})
	run := func(status int, want string, args ...string) {
		t.Helper()
		var said strings.Builder
		if got := Program(args[0], args[1:], &said); got != status || said.String() != want {
			t.Fatalf("%v: status %d, %q", args, got, said.String())
		}
	}
	run(exitFailure, "umount: "+volume+": not mounted\n", "umount", volume)
	run(0, "", "mount", "-t", "tmpfs", "-o", "size=65536,noexec", "tmpfs", volume)
	if err := os.WriteFile(filepath.Join(volume, "secret"), make([]byte, 65537), 0o600); err == nil {
		t.Error("the volume has no size")
	}
	run(0, "", "mount", "--no-canonicalize", "-o", "bind", volume, bound)
	run(0, "", "mount", "--no-canonicalize", "-o", "bind,remount,ro", volume, bound)
	if err := os.WriteFile(filepath.Join(bound, "x"), nil, 0o600); err == nil {
		t.Error("what is bound can be written to")
	}
	if err := os.WriteFile(filepath.Join(volume, "x"), nil, 0o600); err != nil {
		t.Error(err)
	}
	run(0, "", "umount", bound)
	run(0, "", "mount", "-o", "bind,ro,nosuid", volume, bound)
	var fs unix.Statfs_t
	if err := unix.Statfs(bound, &fs); err != nil || fs.Flags&(unix.ST_RDONLY|unix.ST_NOSUID) != unix.ST_RDONLY|unix.ST_NOSUID {
		t.Errorf("flags %#x, %v", fs.Flags, err)
	}
	run(0, "", "mount", "-o", "rslave", bound)
	run(0, "", "umount", "-l", bound)
	run(0, "", "umount", "-f", volume)
	run(exitFailure, "umount: "+volume+": not mounted\n", "umount", volume)
}

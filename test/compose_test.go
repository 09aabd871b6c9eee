//go:build linux

package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// inputs copies the command, the base and the extension to a directory that
// every user can read.
func inputs(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // os.MkdirTemp makes directories for their owner
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, env := range map[string]string{"kiln": "KILN_BIN", "base": "KILN_BASE", "extension": "KILN_EXTENSION"} {
		run(t, oracle.Tool(t, "cp"), "-r", oracle.Artifact(t, env), filepath.Join(dir, name))
	}
	run(t, oracle.Tool(t, "chmod"), "-R", "a+rX", dir)
	return dir
}

// compose returns the command that composes an image from the inputs in dir, with
// everything it writes in work.
func compose(dir, work string, more ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(dir, "kiln"), append([]string{"build", "metal", "--progress", "none",
		"--base", filepath.Join(dir, "base"), "--extension", filepath.Join(dir, "extension"),
		"--kernel-arg", "composed=twice", "--output", filepath.Join(work, "metal.raw"), "--cache", filepath.Join(work, "cache")}, more...)...)
	cmd.Dir = work
	return cmd
}

func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

func digest(t testing.TB, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// nobody is a user without any privilege.
const nobody = 65534

// The same inputs make the same image in another directory, for another user,
// with another umask, time zone, time and number of processors, with nothing in
// PATH and no home, without network, with and without a cache.
func TestComposeIsPure(t *testing.T) {
	dir := inputs(t)
	work := func(name string, uid int) string {
		d := filepath.Join(dir, name)
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(d, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	first := work("first", os.Geteuid())
	output(t, compose(dir, first))
	want := digest(t, filepath.Join(first, "metal.raw"))

	other := work("other, with a much longer name", nobody)
	bare := []string{"PATH=", "TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1", "TMPDIR=" + filepath.Join(other, "no-such-directory")}
	alone := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Env = bare
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if os.Geteuid() == 0 {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		} else {
			cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		}
		return cmd
	}
	cmd := alone(compose(dir, other))
	old := unix.Umask(0o077)
	cold, err := cmd.CombinedOutput()
	unix.Umask(old)
	if err != nil && os.Geteuid() != 0 && strings.Contains(err.Error(), "operation not permitted") {
		t.Logf("no network namespaces for this user: composing with the host's network")
		cmd = compose(dir, other)
		cmd.Env = bare
		cold, err = cmd.CombinedOutput()
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, cold)
	}
	if got := digest(t, filepath.Join(other, "metal.raw")); got != want {
		t.Errorf("composed elsewhere: sha256 %s, want %s", got, want)
	}
	for _, suffix := range []string{".json", ".sha256", ".spdx.json"} {
		if a, b := read(t, filepath.Join(first, "metal.raw"+suffix)), read(t, filepath.Join(other, "metal.raw"+suffix)); !bytes.Equal(a, b) {
			t.Errorf("%s is another one elsewhere:\n%s\n%s", suffix, a, b)
		}
	}
	if got := string(read(t, filepath.Join(first, "metal.raw.sha256"))); got != want+"  metal.raw\n" {
		t.Errorf("metal.raw.sha256 is %q, want the digest %s", got, want)
	}

	warm := compose(dir, first)
	warm.Env = []string{"SOURCE_DATE_EPOCH="}
	output(t, warm)
	if got := digest(t, filepath.Join(first, "metal.raw")); got != want {
		t.Errorf("composed with a cache: sha256 %s, want %s", got, want)
	}
	later := compose(dir, first)
	later.Env = []string{"SOURCE_DATE_EPOCH=1700000000"}
	output(t, later)
	if digest(t, filepath.Join(first, "metal.raw")) == want {
		t.Error("another SOURCE_DATE_EPOCH makes no difference")
	}
}

// What composing asks of the kernel: to read and write files, and nothing that
// takes privilege, a network, a device or another program.
func TestComposeSystemCalls(t *testing.T) {
	strace := oracle.Tool(t, "strace")
	dir := inputs(t)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "trace")
	cmd := compose(dir, work)
	cmd.Args = append([]string{strace, "-f", "-qq", "-y", "-s", "4096", "-o", log, "-e",
		"trace=%process,%network,open,openat,openat2,creat,mount,move_mount,fsopen,fsmount,umount2,unshare,setns,pivot_root,chroot,mknodat,ptrace,init_module,finit_module,bpf,io_uring_setup,memfd_create",
		"-e", "signal=none"}, cmd.Args...)
	cmd.Path = strace
	output(t, cmd)

	call := regexp.MustCompile(`^\d+ +(\w+)\((.*)`)
	quoted := regexp.MustCompile(`^[^"]*"((?:[^"\\]|\\.)*)"`)
	execs, written := 0, 0
	for line := range strings.Lines(string(read(t, log))) {
		m := call.FindStringSubmatch(line)
		if m == nil {
			continue // the end of a call that was interrupted, or of a process
		}
		name, args := m[1], m[2]
		switch {
		case name == "execve":
			execs++
		case name == "exit" || name == "exit_group" || name == "tgkill":
		case name == "clone" || name == "clone3":
			if !strings.Contains(args, "CLONE_THREAD") {
				t.Errorf("a process: %s", line)
			}
		case strings.HasPrefix(name, "open") || name == "creat":
			path := quoted.FindStringSubmatch(args)
			if path == nil {
				t.Errorf("cannot understand: %s", line)
				continue
			}
			inDir := strings.HasPrefix(path[1], work+"/") || strings.Contains(args, "<"+work)
			write := name == "creat" || regexp.MustCompile(`O_(WRONLY|RDWR|CREAT)`).MatchString(args)
			if write {
				written++
			}
			if write && !inDir {
				t.Errorf("writes outside of its output and its cache: %s", line)
			}
			if strings.HasPrefix(path[1], "/dev/") && path[1] != "/dev/null" {
				t.Errorf("a device: %s", line)
			}
		default:
			t.Errorf("more than reading and writing files: %s", line)
		}
	}
	if execs != 1 {
		t.Errorf("%d programs were executed, want kiln only", execs)
	}
	if written == 0 {
		t.Error("no file was written, the trace is incomplete")
	}
}

// An image and what it was made from share their bytes, not their fate: composing
// leaves the inputs as they were and nothing but the image and the cache.
func TestComposeLeavesNothing(t *testing.T) {
	dir := inputs(t)
	work, tmp := filepath.Join(dir, "work"), filepath.Join(dir, "tmp")
	for _, d := range []string{work, tmp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sum := func() []byte {
		cmd := exec.Command("sh", "-c", "find base extension kiln -type f -print0 | sort -z | xargs -0 sha256sum")
		cmd.Dir = dir
		return []byte(output(t, cmd))
	}
	before := sum()
	cmd := compose(dir, work)
	cmd.Env = []string{"TMPDIR=" + tmp, "HOME=" + tmp}
	output(t, cmd)
	if !bytes.Equal(sum(), before) {
		t.Error("the inputs have changed")
	}
	names := func(d string) (found []string) {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, e.Name())
		}
		return found
	}
	if got := names(work); !slices.Equal(got, []string{"cache", "metal.raw", "metal.raw.json", "metal.raw.sha256", "metal.raw.spdx.json"}) {
		t.Errorf("the output directory holds %v", got)
	}
	if got := names(tmp); len(got) > 0 {
		t.Errorf("the temporary directory holds %v", got)
	}
}

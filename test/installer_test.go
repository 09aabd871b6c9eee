//go:build linux

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// A docker is a daemon of the test's own. It is the first process of a PID
// namespace, and its mounts are in a namespace as well: all that it starts and
// mounts is gone when it is, and it is when this process is.
type docker struct {
	ctx    context.Context // done when the test is interrupted
	client string
	env    []string
}

// withoutSysResource is an OCI runtime that leaves CAP_SYS_RESOURCE out of what
// --privileged asks for, for machines that have not got it themselves.
const withoutSysResource = `#!/bin/sh
set -e
for arg; do
	case $last in
	-b | --bundle) sed -i -e 's/"CAP_SYS_RESOURCE",//g' -e 's/,"CAP_SYS_RESOURCE"//g' "$arg/config.json" ;;
	esac
	last=$arg
done
exec runc "$@"
`

// startDocker starts a daemon without network.
func startDocker(t *testing.T) *docker {
	t.Helper()
	oracle.Root(t)
	daemon := oracle.Tool(t, "dockerd")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(func() { // after all others
		interrupted := ctx.Err() != nil
		stop()
		if interrupted {
			syscall.Kill(os.Getpid(), syscall.SIGINT)
		}
	})
	dir := t.TempDir()
	d := &docker{ctx, oracle.Tool(t, "docker"), append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(dir, "socket"), "DOCKER_CONFIG="+dir, "DOCKER_CONTEXT=")}

	group := fmt.Sprintf("kiln-test-%d", os.Getpid())
	args := []string{"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "--pidfile", filepath.Join(dir, "pid"),
		"--host", "unix://" + filepath.Join(dir, "socket"), "--log-level=warn", "--cgroup-parent", group, "--bridge=none", "--iptables=false", "--ip6tables=false"}
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil {
		t.Fatal(err)
	} else if has == 0 {
		runtime := filepath.Join(dir, "runtime")
		if err := os.WriteFile(runtime, []byte(withoutSysResource), 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--add-runtime", "limited="+runtime, "--default-runtime", "limited")
	}
	script := "mount --make-rprivate / && mount -t proc proc /proc\n"
	for _, fixed := range []string{"/etc/docker", "/run/containerd"} { // no option moves what is written there
		if err := os.Mkdir(fixed, 0o755); err == nil {
			t.Cleanup(func() { os.Remove(fixed) })
		} else if !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		script += "mount -t tmpfs tmpfs " + fixed + "\n"
	}
	cmd := exec.Command("sh", append([]string{"-e", "-c", script + `exec "$0" "$@"`, daemon}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { defer close(exited); cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
		if t.Failed() {
			t.Logf("dockerd:\n%s", log.Bytes())
		}
		removeGroups(t, group)
	})
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if _, _, err := d.try("", "version"); err == nil {
			return d
		}
		select {
		case <-exited:
			t.Fatal("dockerd has ended")
		case <-ctx.Done():
			t.Fatal("interrupted")
		default:
		}
		if time.Since(start) > time.Minute {
			t.Fatal("dockerd does not answer")
		}
	}
}

// removeGroups removes the empty control groups of the name, which are below that
// of this process in each hierarchy.
func removeGroups(t *testing.T, name string) {
	t.Helper()
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // another group has just gone
			return nil
		case err != nil || d.Name() != name:
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return fs.SkipDir
	})
	if err != nil {
		t.Error(err)
	}
}

// try runs the client.
func (d *docker) try(stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(d.ctx, d.client, args...)
	cmd.Env = d.env
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (d *docker) run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, err := d.try(stdin, args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// fails wants the command to end with the code, and a message with the words.
func (d *docker) fails(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	_, stderr, err := d.try("", args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("docker %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, stderr)
	}
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			t.Errorf("docker %s: message without %q:\n%s", strings.Join(args, " "), w, stderr)
		}
	}
}

// TestInstallerImage goes the way that most people go: load the image, and let a
// privileged container install onto a disk.
func TestInstallerImage(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	d := startDocker(t)
	archive := filepath.Join(t.TempDir(), "kiln.tar")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "installer", "--base", oracle.Artifact(t, "KILN_BASE"),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--cache", t.TempDir(), "--output", archive)
	image, ok := strings.CutPrefix(strings.TrimSpace(d.run(t, "", "load", "--quiet", "--input", archive)), "Loaded image: ")
	if !ok || !strings.HasPrefix(image, "kiln:") {
		t.Fatalf("docker load says %q, want kiln and a tag", image)
	}
	disk := newLoop(t, 3<<30)

	// A plan changes nothing, neither does a refusal.
	privileged := []string{"run", "--rm", "--interactive", "--privileged", "--volume", "/dev:/dev", image}
	install := append(privileged, "install", "--disk", disk.device, "--platform", "metal", "--config", "-")
	first, second := machineNamed("by-docker"), machineNamed("the-old-way")
	if out := d.run(t, first, append(install, "--plan")...); !strings.Contains(out, disk.device) || !strings.Contains(out, "nothing") || !strings.Contains(out, "EPHEMERAL") {
		t.Errorf("plan: %s", out)
	}
	if n := disk.allocated(t); n != 0 {
		t.Errorf("%d bytes were written for a plan", n)
	}
	if out := d.run(t, first, install...); out != disk.device+": installed\n" {
		t.Errorf("install: %s", out)
	}
	disk.holds(t, first)
	d.fails(t, refused, []string{disk.device + ": not empty: it holds a GPT with 6 partitions: 1 EFI (vfat", "use --force to overwrite it"}, install[:len(install)-2]...)
	var plan struct {
		Device  struct{ Path, Kind string }
		Refused []string
	}
	out, _, err := d.try(first, append(install, "--plan", "--json")...)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != refused {
		t.Errorf("plan of what is refused: %v, want exit code %d", err, refused)
	}
	if err := json.Unmarshal([]byte(out), &plan); err != nil || plan.Device.Path != disk.device || plan.Device.Kind != "loop" || len(plan.Refused) != 1 {
		t.Errorf("plan: %+v, %v\n%s", plan, err, out)
	}
	disk.holds(t, first)

	// The form of old, with the network of the host for want of another.
	var asked []string
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		fmt.Fprint(w, second)
	}))
	defer server.Close()
	if out := d.run(t, "", "run", "--net=host", "--rm", "--privileged", "--volume", "/dev:/dev", image,
		"image", "-b", disk.device, "-f", "-p", "bare-metal", "-u", server.URL+"/master.yaml"); out != disk.device+": installed\n" {
		t.Errorf("image: %s", out)
	}
	server.Close() // and what it has seen is settled
	if len(asked) != 1 || asked[0] != "GET /master.yaml" {
		t.Errorf("the server was asked for %q", asked)
	}
	disk.holds(t, second)
	disk.detach(t)
	boots(t, disk.file, 512, vm.BIOS, vm.UEFI)
}

// The same inputs make the same archive, for another user, with another umask,
// time zone and number of processors.
func TestInstallerImageIsPure(t *testing.T) {
	dir := inputs(t)
	build := func(name string, umask int, change func(*exec.Cmd)) string {
		work := filepath.Join(dir, name)
		if err := os.Mkdir(work, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(work, 0o777); err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(work, "kiln.tar")
		cmd := exec.Command(filepath.Join(dir, "kiln"), "build", "installer", "--progress", "none", "--base", filepath.Join(dir, "base"),
			"--extension", filepath.Join(dir, "extension"), "--cache", filepath.Join(work, "cache"), "--output", archive)
		cmd.Dir = work
		change(cmd)
		defer unix.Umask(unix.Umask(umask))
		output(t, cmd)
		return digest(t, archive)
	}
	want := build("first", 0o022, func(*exec.Cmd) {})
	other := build("another directory", 0o077, func(cmd *exec.Cmd) {
		cmd.Env = []string{"PATH=", "TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1"}
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
	})
	if other != want {
		t.Errorf("built elsewhere: sha256 %s, want %s", other, want)
	}
	if later := build("later", 0o022, func(cmd *exec.Cmd) { cmd.Env = []string{"SOURCE_DATE_EPOCH=1700000000"} }); later == want {
		t.Error("another SOURCE_DATE_EPOCH makes no difference")
	}
}

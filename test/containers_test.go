//go:build linux

package test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/rootfs"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// What the machine of TestContainers has in its initramfs besides the base's.
const (
	containersRootFS = "containers/rootfs.sqsh"
	containersClient = "containers/ctr"
	containersImage  = "containers/image.tar"
)

// greeter tells what a container is like from the inside.
const greeter = `package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	status, _ := os.ReadFile("/proc/self/status")
	_, mode, _ := strings.Cut(string(status), "Seccomp:")
	mode, _, _ = strings.Cut(strings.TrimSpace(mode), "\n")
	addresses, _ := net.InterfaceAddrs()
	group, _ := os.ReadFile("/proc/self/cgroup")
	_, path, _ := strings.Cut(strings.TrimSpace(string(group)), "::")
	limit, err := os.ReadFile("/sys/fs/cgroup" + path + "/memory.max")
	if err != nil { // in a name space of its own
		limit, _ = os.ReadFile("/sys/fs/cgroup/memory.max")
	}
	fmt.Printf("guest: container PID %d, seccomp %s, memory %s, addresses %v\n", os.Getpid(), mode, strings.TrimSpace(string(limit)), addresses)
}
`

// The base runs containers: its containerd, configured as it is in the base,
// imports an image and runs it through shim and runc, in a network that the base's
// CNI plugins and iptables make, with modules that the kernel has loaded through
// the base's modprobe. containerd's own client, which the base has not, asks for it.
func TestContainers(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE_CONTAINERS"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	part := func(name string) extent.Source {
		p, err := b.Part(name)
		if err != nil {
			t.Fatal(err)
		}
		return p.Content
	}
	program := func(dir, pkg string, tags ...string) []byte {
		data, err := rootfs.BuildProgram(t.Context(), rootfs.Sources{Arch: "amd64", GoDir: dir}, rootfs.Program{Package: pkg, Tags: tags})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ctr := program("../rootfs/userland/containerd", "github.com/containerd/containerd/v2/cmd/ctr", "no_btrfs", "no_devmapper", "no_zfs")
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module greeter\n\ngo 1.24\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte(greeter), 0o600)); err != nil {
		t.Fatal(err)
	}
	archive := guest.Initramfs(t, map[string]tree.Inode{
		containersRootFS: {Mode: 0o644, Content: part(base.RootFS)},
		containersClient: {Mode: 0o755, Content: extent.Bytes(ctr)},
		containersImage:  guest.File(imageArchive(t, program(dir, "."))),
	})
	// The base's initramfs has the modules that lead to a root file system; the
	// kernel unpacks what follows over it.
	initrd := contents(t, part(base.Init))
	initrd = append(initrd, make([]byte, -len(initrd)&3)...)
	initrd = append(initrd, contents(t, archive)...)

	ctx, m := start(t, vm.Config{
		Firmware: vm.BIOS, Memory: 1536, Cmdline: "console=ttyS0 panic=-1 quiet",
		Kernel: save(t, "vmlinuz", contents(t, part(base.Vmlinuz))), Initrd: save(t, "initrd", initrd),
	})
	if _, err := m.Wait(ctx, guestEnd); err != nil {
		t.Fatal(err)
	}
	console := strings.ReplaceAll(m.Console(), "\r\n", "\n")
	for _, want := range []string{
		`(?m)^guest: container PID 1, seccomp 2, memory 67108864, addresses \[127\.0\.0\.1/8 .*10\.244\.0\.\d+/24`,
		`(?m)^guest: nat -A POSTROUTING -s 10\.244\.0\.\d+/32 .*-j CNI-`,
		`(?m)^guest: containerd stopped`,
	} {
		if !regexp.MustCompile(want).MatchString(console) {
			t.Errorf("the machine does not print %s", want)
		}
	}
	for _, fault := range regexp.MustCompile(`(?m)^guest: (?:error|log) .*$`).FindAllString(console, -1) {
		t.Error(fault)
	}
	for _, fact := range regexp.MustCompile(`(?m)^guest: (?:after|used) .*$`).FindAllString(console, -1) {
		t.Log(fact)
	}
}

// imageArchive returns an image with the program, as an archive.
func imageArchive(t testing.TB, program []byte) []byte {
	t.Helper()
	root := tree.New()
	if err := root.Add("greet", &tree.Inode{Mode: 0o755, Content: extent.Bytes(program)}); err != nil {
		t.Fatal(err)
	}
	layer, err := ociimage.Layer(t.Context(), root, ociimage.None)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: "amd64", Entrypoint: []string{"/greet"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := ocilayout.WriteArchive(t.Context(), &buf, img, "example.org/greet:1"); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// runContainers is what PID 1 does in the machine of TestContainers.
func runContainers() {
	if err := containers(); err != nil {
		fmt.Printf("guest: error %v\n", strings.ReplaceAll(err.Error(), "\n", " "))
	}
}

func containers() error {
	const root = "/root"
	for _, name := range []string{"squashfs", "loop", "overlay"} {
		if modprobe.Main([]string{name}, os.Stdout, os.Stderr) != 0 {
			return fmt.Errorf("modprobe %s failed", name)
		}
	}
	if err := errors.Join(os.MkdirAll(root, 0o755), mount.Mount(mount.FileSystem{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"})); err != nil {
		return err
	}
	if err := mount.Image("/"+containersRootFS, root); err != nil {
		return err
	}
	for _, m := range []mount.FileSystem{
		{Source: "proc", Target: "/proc", Type: "proc"}, {Source: "sysfs", Target: "/sys", Type: "sysfs"},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"}, {Source: "tmpfs", Target: "/run", Type: "tmpfs"},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs"}, {Source: "tmpfs", Target: "/var", Type: "tmpfs"},
		{Source: "cgroup2", Target: "/sys/fs/cgroup", Type: "cgroup2"},
	} {
		m.Target = root + m.Target
		if err := mount.Mount(m); err != nil {
			return err
		}
	}
	for _, name := range []string{containersClient, containersImage} {
		to := filepath.Join(root, "run", filepath.Base(name))
		if err := errors.Join(os.WriteFile(to, nil, 0o755), unix.Mount("/"+name, to, "", unix.MS_BIND, "")); err != nil {
			return err
		}
	}
	// The client looks for plugins only where nodes have those of others.
	if err := errors.Join(mount.SwitchRoot(root), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
		os.MkdirAll("/var/opt/cni", 0o755), os.Symlink("/usr/lib/cni", "/var/opt/cni/bin"), os.Setenv("PATH", "/usr/bin")); err != nil {
		return err
	}

	begin := time.Now()
	log, err := os.Create("/run/containerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	daemon := exec.Command("containerd")
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return err
	}
	ctr := func(args ...string) error {
		cmd := exec.Command("/run/ctr", args...)
		cmd.Stdout = os.Stdout
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("ctr %s: %w: %s", args[0], err, &stderr)
		}
		return nil
	}
	for {
		if c, err := net.Dial("unix", "/run/containerd/containerd.sock"); err == nil {
			c.Close()
			break
		}
		if time.Since(begin) > 2*time.Minute {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("containerd does not answer: %s", said)
		}
		time.Sleep(200 * time.Millisecond)
	}
	fmt.Printf("guest: after %.1f s containerd answers\n", time.Since(begin).Seconds())
	if err := ctr("image", "import", "--local", "/run/image.tar"); err != nil {
		return err
	}
	if err := ctr("run", "--cni", "--seccomp", "--memory-limit", "67108864",
		"--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro", "example.org/greet:1", "greet"); err != nil {
		return err
	}
	fmt.Printf("guest: after %.1f s a container has run\n", time.Since(begin).Seconds())
	// What its network was given is there as long as the container is.
	out, err := exec.Command("iptables", "-t", "nat", "-S", "POSTROUTING").CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		fmt.Printf("guest: nat %s", line)
	}
	memory, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(memory)) {
		if strings.HasPrefix(line, "Mem") {
			fmt.Printf("guest: used %s", line)
		}
	}
	if err := errors.Join(daemon.Process.Signal(unix.SIGTERM), daemon.Wait()); err != nil {
		return err
	}
	fmt.Println("guest: containerd stopped")
	said, err := os.ReadFile(log.Name())
	for line := range strings.Lines(string(said)) {
		if regexp.MustCompile(`level=(error|fatal)|level=warning.*deprecat`).MatchString(line) {
			fmt.Printf("guest: log %s", line)
		}
	}
	return err
}

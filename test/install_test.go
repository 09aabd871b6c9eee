//go:build linux

package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// A loop is a block device, and the file behind it.
type loop struct {
	device, file string // no device if it was detached
}

// newLoop makes a device of size bytes, all zeros, that is gone when the test ends.
func newLoop(t testing.TB, size int64, flags ...string) *loop {
	t.Helper()
	return attach(t, sparse(t, size), flags...)
}

// sparse makes a file of size bytes, all zeros.
func sparse(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

// attach makes a device of a file. All may be in use by other tests.
func attach(t testing.TB, file string, flags ...string) *loop {
	t.Helper()
	oracle.Root(t)
	losetup := oracle.Tool(t, "losetup")
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		out, err := exec.Command(losetup, append(flags, "--find", "--show", file)...).CombinedOutput()
		if err == nil {
			l := &loop{strings.TrimSpace(string(out)), file}
			t.Cleanup(func() { l.detach(t) })
			return l
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("losetup: %v\n%s", err, out)
		}
	}
}

// detach leaves the file alone, and the device to others.
func (l *loop) detach(t testing.TB) {
	t.Helper()
	if l.device != "" {
		run(t, oracle.Tool(t, "losetup"), "--detach", l.device)
		l.device = ""
	}
}

// allocated is how many bytes of the file are no hole.
func (l *loop) allocated(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(l.file, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// digest is of the blocks that are not zeros, with their places.
func (l *loop) digest(t *testing.T) string {
	t.Helper()
	run(t, oracle.Tool(t, "sync"), l.device, l.file)
	f, err := os.Open(l.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	block, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; at += int64(len(block)) {
		if at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			return fmt.Sprintf("%x", h.Sum(nil))
		}
		if err != nil {
			t.Fatal(err)
		}
		at = at / int64(len(block)) * int64(len(block))
		n, err := f.ReadAt(block, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(block[:n], zero[:n]) {
			fmt.Fprintf(h, "%d %x\n", at, block[:n])
		}
	}
}

// holds wants the configuration on STATE, to the byte.
func (l *loop) holds(t *testing.T, config string) {
	t.Helper()
	holdsConfig(t, l.file, 512, config)
}

// machineNamed is a machine configuration.
func machineNamed(name string) string {
	return "apiVersion: v1alpha1\nkind: Hostname\nhostname: " + name + "\n"
}

func holdsConfig(t *testing.T, file string, sector int64, config string) {
	t.Helper()
	part := carve(t, file, readTable(t, file, sector).find(t, "STATE"))
	run(t, oracle.Tool(t, "e2fsck"), "-fn", part)
	if got := run(t, oracle.Tool(t, "debugfs"), "-R", "cat config.yaml", part); got != config {
		t.Errorf("the configuration on STATE is %q, want %q", got, config)
	}
}

// boots starts the disk with each of the firmwares, leaves it as it is, and wants
// the node to find its configuration.
func boots(t *testing.T, disk string, sector int, firmwares ...vm.Firmware) {
	t.Helper()
	t.Run("boots", func(t *testing.T) {
		for _, f := range firmwares {
			t.Run(string(f), func(t *testing.T) {
				t.Parallel()
				bus := vm.AHCI
				if sector != 512 {
					bus = vm.NVMe
				}
				ctx, m := start(t, vm.Config{Image: disk, Firmware: f, Bus: bus, SectorSize: sector, Snapshot: true})
				up := ready(t, ctx, m)
				for key, want := range map[string]string{"config": "state", "firmware": string(f), "slot": "A", "failed": "-"} {
					if up.fields[key] != want {
						t.Errorf("ready with %s=%s, want %s", key, up.fields[key], want)
					}
				}
			})
		}
	})
}

// install is the command that installs what there is for tests.
func (b *bench) install(args ...string) []string {
	return append([]string{"install", "--base", b.base, "--extension", b.extension}, args...)
}

// Onto a device, as root and without a container. What was there is refused
// first, then overwritten, and its traces are gone.
func TestInstallDevice(t *testing.T) {
	t.Parallel()
	b, disk := newBench(t), newLoop(t, 3<<30)
	run(t, oracle.Tool(t, "mke2fs"), "-q", "-t", "ext4", "-L", "precious", disk.device)
	before := disk.digest(t)
	config := b.file(t, "config.yaml", []byte(machineNamed("on-a-device")))
	install := b.install("--disk", disk.device, "--config", config)
	b.fails(t, refused, []string{disk.device + ": not empty: it holds ext4", `"precious"`, "use --force to overwrite it"}, install...)
	if disk.digest(t) != before {
		t.Error("the disk is not what it was before it was refused")
	}
	if out := b.succeeds(t, append(install, "--force")...); out != disk.device+": installed\n" {
		t.Errorf("install: %s", out)
	}
	holdsConfig(t, disk.file, 512, machineNamed("on-a-device"))
	if out := run(t, oracle.Tool(t, "wipefs"), "--no-act", "--output", "TYPE", "--noheadings", disk.file); strings.Contains(out, "ext4") {
		t.Errorf("wipefs: %s", out)
	}
	out := run(t, oracle.Tool(t, "sgdisk"), "-v", disk.file)
	if !strings.Contains(out, "No problems found") || sgdiskComplaint.MatchString(out) {
		t.Errorf("sgdisk -v: %s", out)
	}
	sound(t, disk.file)
	disk.detach(t)
	boots(t, disk.file, 512, vm.BIOS)
}

// Onto a file, by anybody. With the same instance the file is the same.
func TestInstallFile(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config := b.file(t, "config.yaml", []byte(machineNamed("on-a-file")))
	var sums []string
	var file string
	for range 2 {
		file = sparse(t, 512<<20)
		b.succeeds(t, b.install("--disk", file, "--config", config, "--instance", "0b0f1f57-6b43-4f4d-9a6c-6a4a2f1f0c11")...)
		sums = append(sums, digest(t, file))
	}
	if sums[0] != sums[1] {
		t.Error("the same installation makes two different disks")
	}
	other := sparse(t, 512<<20)
	b.succeeds(t, b.install("--disk", other, "--config", config)...)
	if ids := func(f string) string { return run(t, oracle.Tool(t, "blkid"), "-p", "-s", "PTUUID", "-o", "value", f) }; ids(file) == ids(other) {
		t.Error("two disks with the same identifier")
	}
	holdsConfig(t, file, 512, machineNamed("on-a-file"))
	sound(t, file)
	boots(t, file, 512, vm.UEFI)
}

// What is compressed for the installation stays until it is written, also where
// no cache is kept.
func TestInstallWithoutHome(t *testing.T) {
	b, file := newBench(t), sparse(t, 1<<30)
	cmd := b.command(b.install("--disk", file, "--progress", "none")...)
	cmd.Env = []string{"TMPDIR=" + b.dir}
	output(t, cmd)
	sound(t, file)
	b.empty(t)
}

// A base that is damaged costs nobody the disk.
func TestInstallDamagedBase(t *testing.T) {
	b, file := newBench(t), sparse(t, 1<<30)
	base := filepath.Join(t.TempDir(), "base")
	run(t, oracle.Tool(t, "cp"), "-r", b.base, base)
	var largest string
	var size int64
	blobs, err := filepath.Glob(filepath.Join(base, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range blobs {
		if fi, err := os.Stat(name); err != nil {
			t.Fatal(err)
		} else if fi.Size() > size {
			largest, size = name, fi.Size()
		}
	}
	overwrite(t, largest, size/2, 8)
	b.base = base
	b.fails(t, refused, []string{"kiln: base: "}, b.install("--disk", file)...)
	if n := (&loop{file: file}).allocated(t); n != 0 {
		t.Errorf("%d bytes were written", n)
	}
}

// Disks with sectors of 4096 bytes get a layout for these, which only UEFI boots.
func TestInstallLargeSectors(t *testing.T) {
	t.Parallel()
	b, disk := newBench(t), newLoop(t, 3<<30, "--sector-size", "4096")
	config := b.file(t, "config.yaml", []byte(machineNamed("large-sectors")))
	b.succeeds(t, b.install("--disk", disk.device, "--config", config)...)
	holdsConfig(t, disk.file, 4096, machineNamed("large-sectors"))
	var labels []string
	for _, p := range readTable(t, disk.file, 4096) {
		labels = append(labels, p.label)
	}
	if got := strings.Join(labels, " "); got != "EFI META STATE EPHEMERAL" {
		t.Errorf("partitions %s, want those for UEFI only", got)
	}
	disk.detach(t)
	boots(t, disk.file, 4096, vm.UEFI)
}

// What must not be overwritten is not, whatever was asked for.
func TestInstallRefuses(t *testing.T) {
	b := newBench(t)
	size := int64(500 << 20)
	refuses := func(t *testing.T, l *loop, code int, words []string, args ...string) {
		t.Helper()
		before := l.digest(t)
		b.fails(t, code, words, b.install(append(args, "--force")...)...)
		if l.digest(t) != before {
			t.Error("it was written nevertheless")
		}
	}
	t.Run("mounted", func(t *testing.T) {
		l, dir := newLoop(t, size), t.TempDir()
		run(t, oracle.Tool(t, "mke2fs"), "-q", "-t", "ext4", l.device)
		if err := unix.Mount(l.device, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, 0)
		refuses(t, l, refused, []string{l.device + ": mounted: ", " is mounted on " + dir + "; unmount it"}, "--disk", l.device)
	})
	t.Run("locked", func(t *testing.T) {
		l := newLoop(t, size)
		f, err := os.Open(l.device)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		refuses(t, l, refused, []string{l.device + ": in use by another program: another program holds a lock on it (flock)"}, "--disk", l.device)
	})
	t.Run("opened exclusively", func(t *testing.T) {
		l := newLoop(t, size)
		f, err := os.OpenFile(l.device, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		refuses(t, l, refused, []string{l.device + ": in use by another program: "}, "--disk", l.device)
	})
	t.Run("behind a loop device", func(t *testing.T) {
		l := newLoop(t, size)
		refuses(t, l, refused, []string{"is attached to " + l.device + "; detach it with losetup -d"}, "--disk", l.file)
	})
	t.Run("too small", func(t *testing.T) {
		l := newLoop(t, 64<<20)
		refuses(t, l, refused, []string{l.device + ": too small: 64.0 MiB (67108864 bytes); at least ", " bytes) is needed"}, "--disk", l.device)
	})
	t.Run("read-only", func(t *testing.T) {
		l := newLoop(t, size, "--read-only")
		refuses(t, l, refused, []string{l.device + ": read-only: the kernel does not allow writing"}, "--disk", l.device)
	})
	t.Run("selector", func(t *testing.T) {
		odd := size + 7<<20 // the tests of others have disks as well
		l, other := newLoop(t, odd), newLoop(t, odd)
		same := fmt.Sprintf("transport == 'loop' && size == %d", odd)
		refuses(t, l, usage, []string{"more than one disk matches " + same, l.device, other.device, "add to it"}, "--disk-selector", same)
		refuses(t, l, notFound, []string{"no disk matches size < 1KB; there are:", l.device}, "--disk-selector", "size < 1KB")
		refuses(t, l, usage, []string{"--disk-selector: disk selector, column 1: ", "sise"}, "--disk-selector", "sise > 1")
		refuses(t, l, usage, []string{"which disk? give --disk or --disk-selector", "'kiln disks' lists what there is"})
		refuses(t, l, usage, []string{"which disk?"}, "--disk", l.device, "--disk-selector", same)
		one := fmt.Sprintf("%s && name == %q", same, filepath.Base(l.device))
		if out := b.succeeds(t, b.install("--disk-selector", one, "--plan")...); !strings.Contains(out, l.device) {
			t.Errorf("plan: %s", out)
		}
	})
	t.Run("partition", func(t *testing.T) {
		l := newLoop(t, size)
		b.fails(t, notFound, []string{"/dev/none: file does not exist; 'kiln disks' lists the disks"}, b.install("--disk", "/dev/none")...)
		b.fails(t, refused, []string{"/dev/null: not a disk: "}, b.install("--disk", "/dev/null")...)
		refuses(t, l, usage, []string{`--verify "most", want full, quick or none`}, "--disk", l.device, "--verify", "most")
	})
}

// TestInstallKeeps installs over a system that has been used.
func TestInstallKeeps(t *testing.T) {
	t.Parallel()
	b, disk := newBench(t), newLoop(t, 2<<30)
	b.succeeds(t, b.install("--disk", disk.device, "--config", b.file(t, "config.yaml", []byte(machineNamed("first"))))...)
	disk.detach(t)
	ctx, m := start(t, vm.Config{Image: disk.file, Firmware: vm.UEFI})
	ready(t, ctx, m)
	shutdown(t, ctx, m)
	m.Stop()
	disk = attach(t, disk.file)

	debugfs := oracle.Tool(t, "debugfs")
	kept := map[string]string{"STATE": "identity\n", "EPHEMERAL": strings.Repeat("containers\n", 1000)}
	at := readTable(t, disk.file, 512)
	place := func(label string) string { return fmt.Sprintf("%s?offset=%d", disk.device, at.find(t, label).start) }
	for label, content := range kept {
		run(t, debugfs, "-w", "-R", "write "+b.file(t, "kept", []byte(content))+" kept", place(label))
	}

	// Nothing of it without --force, and a configuration cannot be where it is
	// to be kept.
	b.fails(t, refused, []string{"not empty"}, b.install("--disk", disk.device, "--keep", "STATE,EPHEMERAL")...)
	b.fails(t, usage, []string{"--config ", " and --keep STATE: the configuration is what is kept there; leave out one of the two"},
		b.install("--disk", disk.device, "--keep", "STATE", "--config", b.file(t, "c", []byte("x: y\n")), "--force")...)
	b.fails(t, refused, []string{"cannot keep the partition DATA: the disk has none; leave it out"}, b.install("--disk", disk.device, "--keep", "DATA", "--force")...)

	b.succeeds(t, b.install("--disk", disk.device, "--keep", "STATE,EPHEMERAL", "--kernel-arg", "installed=again", "--force")...)
	if got := readTable(t, disk.file, 512); fmt.Sprint(got) != fmt.Sprint(at) {
		t.Errorf("partitions are\n%v, want\n%v", got, at)
	}
	sound(t, disk.file)
	for label, content := range kept {
		run(t, oracle.Tool(t, "e2fsck"), "-fn", carve(t, disk.file, at.find(t, label)))
		if got := run(t, debugfs, "-R", "cat kept", place(label)); got != content {
			t.Errorf("%s: %d bytes %.20q, want %d", label, len(got), got, len(content))
		}
	}
	holdsConfig(t, disk.file, 512, machineNamed("first"))
	if out := b.succeeds(t, "inspect", disk.file); strings.Count(out, "installed=again") != 2 {
		t.Errorf("the argument of the new system is not in both boot entries:\n%s", out)
	}
	disk.detach(t)
	boots(t, disk.file, 512, vm.BIOS)
}

// An installation that is interrupted leaves a disk that is clearly none, and can
// be run again. strace makes every write
// to the disk take two seconds.
func TestInstallInterrupted(t *testing.T) {
	b, disk := newBench(t), newLoop(t, 1<<30)
	install := b.install("--disk", disk.device)
	strace := oracle.Tool(t, "strace")
	cmd := b.command(append(install, "--progress", "json")...)
	// -D: the tracer is the child, and the program the process that is waited for.
	cmd.Args = append([]string{strace, "-D", "-f", "-qq", "-o", os.DevNull, "-P", disk.device, "-e", "signal=none", "-e", "trace=pwrite64",
		"-e", "inject=pwrite64:delay_enter=2000000"}, cmd.Args...)
	cmd.Path = strace
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := json.NewDecoder(stderr)
	var text bytes.Buffer
	for {
		var event struct{ Event string }
		if err := lines.Decode(&event); err != nil {
			rest, _ := io.ReadAll(io.MultiReader(lines.Buffered(), stderr))
			t.Fatalf("no progress: %v\n%s", err, rest)
		}
		if event.Event == "progress" {
			break
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(&text, io.MultiReader(lines.Buffered(), stderr)); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != interrupted {
		t.Errorf("%v, want exit code %d", err, interrupted)
	}
	for _, want := range []string{"kiln: " + disk.device + ": ", "the disk has no partition table now and does not boot; run the same command again to finish"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("message without %q:\n%s", want, text.String())
		}
	}
	if disk.allocated(t) == 0 {
		t.Error("it was interrupted before anything was written")
	}
	probe := exec.Command(oracle.Tool(t, "blkid"), "--probe", disk.file)
	if out, err := probe.CombinedOutput(); probe.ProcessState.ExitCode() != 2 {
		t.Errorf("blkid finds %s, %v; want nothing", out, err)
	}
	b.empty(t)
	b.succeeds(t, install...)
	sound(t, disk.file)
}

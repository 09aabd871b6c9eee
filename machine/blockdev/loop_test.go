package blockdev

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// attach makes a loop device of a file. All may be in use by other tests.
func attach(t *testing.T, file string, flags ...string) string {
	t.Helper()
	losetup := oracle.Tool(t, "losetup")
	for try := 0; ; try++ {
		out, err := exec.Command(losetup, append(flags, "-f", "--show", file)...).CombinedOutput()
		if err == nil {
			dev := strings.TrimSpace(string(out))
			t.Cleanup(func() {
				if out, err := exec.Command(losetup, "-d", dev).CombinedOutput(); err != nil {
					t.Errorf("losetup -d %s: %v\n%s", dev, err, out)
				}
			})
			return dev
		}
		if try == 100 {
			t.Fatalf("losetup: %v\n%s", err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func resolved(t *testing.T, path string) *Device {
	t.Helper()
	d, err := Local().Resolve(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Local().Inspect(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// lockFails tries to lock for a moment.
func lockFails(t *testing.T, d *Device, why error, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	target, err := Local().Lock(ctx, d)
	if err == nil {
		target.Close()
	}
	if !errors.Is(err, why) || !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %q", err, text)
	}
}

// TestLoop goes the whole way of a disk that is overwritten.
func TestLoop(t *testing.T) {
	oracle.Root(t)
	file := sparse(t, 4<<20)
	run(t, "sgdisk", "-n", "1:2048:+1M", "-c", "1:DATA", file)
	dev := attach(t, file, "-b", "512")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	d := resolved(t, link)
	if d.Path != dev || d.Kind != Loop || d.Transport != "loop" || d.Size != 4<<20 || d.Sector != 512 || d.ReadOnly || d.Backing != file || d.Fingerprint.DiskSeq == 0 {
		t.Errorf("got %+v", d)
	}
	if err := d.Check(4 << 20); err != nil {
		t.Error(err)
	}
	if err := d.Check(4<<20 + 1); !errors.Is(err, ErrTooSmall) {
		t.Errorf("got %v", err)
	}
	if err := d.Occupied(); err == nil || !strings.Contains(err.Error(), "it holds a GPT with 1 partition: 1 DATA; use --force") {
		t.Errorf("got %v", err)
	}

	// The file behind it is not free.
	f := resolved(t, file)
	if err := f.Check(0); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "disk.raw is attached to "+dev+"; detach it with losetup -d") {
		t.Errorf("got %v", err)
	}
	lockFails(t, f, ErrInUse, "disk.raw is attached to "+dev)

	target, err := Local().Lock(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if target.Size() != 4<<20 {
		t.Errorf("size %d", target.Size())
	}
	// Others see it as taken: by O_EXCL, and by the lock that udev asks for.
	if other := resolved(t, dev); len(other.Users) != 1 || other.Users[0].Use != Exclusive {
		t.Errorf("users %v", other.Users)
	}
	lockFails(t, d, ErrInUse, "or a partition of it, is mounted or opened exclusively, maybe outside of this container")
	if out, err := exec.Command(oracle.Tool(t, "flock"), "-s", "-n", dev, "true").CombinedOutput(); err == nil {
		t.Errorf("a shared lock is possible: %s", out)
	}
	checkErase(t, target)
	if err := target.Reread(); err != nil {
		t.Error(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(oracle.Tool(t, "flock"), "-s", "-n", dev, "true").CombinedOutput(); err != nil {
		t.Errorf("still locked: %v %s", err, out)
	}
	lockFails(t, d, ErrChanged, "its first or last MiB was written")
}

func TestMounted(t *testing.T) {
	oracle.Root(t)
	file := sparse(t, 8<<20)
	mkfs(t, file, 0, 8)
	dev := attach(t, file)
	before := resolved(t, dev)
	dir := filepath.Join(t.TempDir(), "a place")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dev, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	d := resolved(t, dev)
	if err := d.Check(0); !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), filepath.Base(dev)+" is mounted on "+dir+"; unmount it") {
		t.Errorf("got %v", err)
	}
	// Mounted after the plan was made, or out of sight: O_EXCL finds out.
	lockFails(t, before, ErrInUse, "is mounted or opened exclusively")
	blind := newTree(t)
	if err := os.Symlink("/sys/class/block/"+filepath.Base(dev), filepath.Join(blind.class(), filepath.Base(dev))); err != nil {
		t.Fatal(err)
	}
	h := Host{Sys: blind.Sys, Dev: "/dev", Proc: blind.Proc}
	d, err := h.Resolve(dev)
	if err == nil {
		err = h.Inspect(d)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(0); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "mounted where this one cannot see it") {
		t.Errorf("got %v", err)
	}
}

func TestFlockHeld(t *testing.T) {
	oracle.Root(t)
	dev := attach(t, sparse(t, 4<<20))
	d := resolved(t, dev)
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	lockFails(t, d, ErrInUse, "another program holds a lock on it (flock); see 'fuser -v "+dev+"'")

	// A lock that is held for a moment, as by udev, is waited for.
	time.AfterFunc(200*time.Millisecond, func() { f.Close() })
	target, err := Local().Lock(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	target.Close()
}

func TestReadOnlyLoop(t *testing.T) {
	oracle.Root(t)
	dev := attach(t, sparse(t, 4<<20), "-r")
	d := resolved(t, dev)
	if err := d.Check(0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("got %v", err)
	}
	lockFails(t, d, ErrReadOnly, dev+": read-only: ")
}

// TestReplaced: another disk under the same name, with the same bytes.
func TestReplaced(t *testing.T) {
	oracle.Root(t)
	file := sparse(t, 4<<20)
	d := resolved(t, attach(t, file))
	other := resolved(t, attach(t, file))
	d.Path, d.Number = other.Path, other.Number
	lockFails(t, d, ErrChanged, "another disk or medium has its name (disk sequence number ")

	d.Number = "8:0"
	lockFails(t, d, ErrChanged, "it is the device "+other.Number+" and was 8:0")
}

// TestPartitionNodes: the kernel's partitions follow the table, and a
// partition that is in use stays.
func TestPartitionNodes(t *testing.T) {
	oracle.Root(t)
	file := sparse(t, 16<<20)
	run(t, "sgdisk", "-n", "1:2048:+1M", "-n", "2:+0:+2M", "-n", "3:+0:+1M", file)
	dev := attach(t, file, "-P")
	name := filepath.Base(dev)
	h := Local()
	lock := func() *Target {
		t.Helper()
		d := resolved(t, dev)
		target, err := h.Lock(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	target := lock()
	var part *os.File
	var err error
	t.Cleanup(func() { // partitions outlive a loop device
		part.Close()
		target.Close()
		target := lock()
		defer target.Close()
		nodes, err := h.nodes(name)
		if err != nil {
			t.Error(err)
		}
		for _, n := range nodes {
			if err := target.tell(unix.BLKPG_DEL_PARTITION, n); err != nil {
				t.Error(err)
			}
		}
	})
	check := func(want ...node) {
		t.Helper()
		got, err := h.nodes(name)
		if err != nil || len(got) != len(want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
	}
	if err := target.adjust(); err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	check(node{1, 1 * mib, 1 * mib}, node{2, 2 * mib, 2 * mib}, node{3, 4 * mib, 1 * mib})
	target.Close()

	// Partitions resolve to what they are.
	if err := resolved(t, dev+"p2").Check(0); !errors.Is(err, ErrNotDisk) || !strings.Contains(err.Error(), dev+"p2: not a disk: it is a partition of "+name) {
		t.Errorf("got %v", err)
	}
	// A partition claimed by others keeps the disk from being locked.
	if part, err = os.OpenFile(dev+"p2", os.O_RDONLY|unix.O_EXCL, 0); err != nil {
		t.Fatal(err)
	}
	lockFails(t, resolved(t, dev), ErrInUse, "or a partition of it, is mounted or opened exclusively")
	part.Close()

	// Opened, but not claimed: a new table without 1, with another 3.
	target = lock()
	if part, err = os.Open(dev + "p2"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "new.raw")
	if err := os.WriteFile(changed, b, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "-d", "1", "-d", "3", "-n", "3:20480:+1M", changed)
	f, err := os.Open(changed)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.NewOffsetWriter(target, 0), f); err != nil {
		t.Fatal(err)
	}
	if err := target.Reread(); err != nil {
		t.Fatal(err)
	}
	check(node{2, 2 * mib, 2 * mib}, node{3, 10 * mib, 1 * mib})

	// Gone from the table, but still opened: the kernel keeps it.
	if err := target.Zero(t.Context(), 0, mib); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "-d", "2", changed)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.NewOffsetWriter(target, 0), f); err != nil {
		t.Fatal(err)
	}
	want := dev + ": the kernel keeps the old partitions until the next boot: removing partition 2: device or resource busy"
	if err := target.Reread(); !errors.Is(err, ErrStale) || !errors.Is(err, unix.EBUSY) || err.Error() != want {
		t.Errorf("got %v", err)
	}
	part.Close()
	if err := target.adjust(); err != nil {
		t.Fatal(err)
	}
	check(node{3, 10 * mib, 1 * mib})
	target.Close()
}

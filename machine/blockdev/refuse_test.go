package blockdev

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRefusals(t *testing.T) {
	h := server(t)
	h.add("virtual/block/md0", "9:0", 1*tb, "md/level raid1")
	h.add("virtual/block/dm-0", "253:0", 1*tb)
	h.add("virtual/block/bcache0", "252:8", 1*tb)
	h.add("virtual/block/mtdblock0", "31:0", 8<<20)
	h.write(h.Sys+"/devices/platform/host9/session1/target9:0:0/9:0:0:0/block/sdd/holders/md0", "")
	h.appendTo("self/mountinfo", `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw`)
	h.appendTo("self/mountinfo", `28 27 8:1 / /srv rw - xfs /dev/sda1 rw`)
	h.appendTo("self/mountinfo", `29 27 8:2 / /srv/b rw - xfs /dev/sda2 rw`)
	h.appendTo("swaps", "/dev/nvme0n1p1 partition 100 0 -2")
	devices := h.list()
	devices["sde"].Users = []User{{Use: Exclusive, Device: "sde"}}
	for _, c := range []struct {
		name    string
		minimum int64
		why     error
		want    string
	}{
		{"sda", 0, ErrMounted, "DEV/sda: mounted: sda1 is mounted on /srv; unmount it\nDEV/sda: mounted: sda2 is mounted on /srv/b; unmount it"},
		{"nvme0n1", 0, ErrSwap, "DEV/nvme0n1: in use as swap space: nvme0n1p1 is swap space in use; run swapoff"},
		{"sdd", 0, ErrMember, "DEV/sdd: part of an active device: sdd is part of the RAID set md0 (raid1); stop that device first"},
		{"vda", 0, ErrRoot, "DEV/vda: the running root disk: vda holds the root of the running system; boot from something else, or name another disk"},
		{"sde", 0, ErrInUse, "DEV/sde: in use by another program: sde is in use by another program, or mounted where this one cannot see it; stop the program that uses it"},
		{"xvda", 0, ErrReadOnly, "DEV/xvda: read-only: the kernel does not allow writing; see 'blockdev --getro' and the switch on the medium"},
		{"xvda", 21 * gb, ErrTooSmall, "DEV/xvda: read-only: the kernel does not allow writing; see 'blockdev --getro' and the switch on the medium\n" +
			"DEV/xvda: too small: 18.6 GiB (20000000000 bytes); at least 19.6 GiB (21000000000 bytes) is needed"},
		{"loop0", 1 << 20, ErrTooSmall, "DEV/loop0: too small: it has no medium or no space; at least 1.00 MiB is needed"},
		{"sda1", 0, ErrNotDisk, "DEV/sda1: not a disk: it is a partition of sda; name the whole disk"},
		{"sr0", 0, ErrNotDisk, "DEV/sr0: not a disk: it is a CD or DVD drive; 'kiln disks' lists the disks"},
		{"zram0", 0, ErrNotDisk, "DEV/zram0: not a disk: it is compressed memory, lost at shutdown; 'kiln disks' lists the disks"},
		{"ram0", 0, ErrNotDisk, "DEV/ram0: not a disk: it is memory, lost at shutdown; 'kiln disks' lists the disks"},
		{"fd0", 0, ErrNotDisk, "DEV/fd0: not a disk: it is a floppy disk; 'kiln disks' lists the disks"},
		{"md0", 0, ErrNotDisk, "DEV/md0: not a disk: it is made of other devices by md; 'kiln disks' lists the disks"},
		{"dm-0", 0, ErrNotDisk, "DEV/dm-0: not a disk: it is made of other devices by the device mapper; 'kiln disks' lists the disks"},
		{"bcache0", 0, ErrNotDisk, "DEV/bcache0: not a disk: it is made of other devices by bcache; 'kiln disks' lists the disks"},
		{"mmcblk0boot0", 0, ErrNotDisk, "DEV/mmcblk0boot0: not a disk: it is a boot area beside the disk; 'kiln disks' lists the disks"},
		{"mtdblock0", 0, ErrNotDisk, "DEV/mtdblock0: not a disk: it is raw flash memory; 'kiln disks' lists the disks"},
	} {
		err := devices[c.name].Check(c.minimum)
		if err == nil || strings.ReplaceAll(err.Error(), h.Dev, "DEV") != c.want {
			t.Errorf("%s: got\n%v\nwant\n%s", c.name, err, c.want)
		}
		var r *Refusal
		if !errors.Is(err, c.why) || !errors.Is(err, ErrRefused) || !errors.As(err, &r) || r.Path != devices[c.name].Path {
			t.Errorf("%s: %v is not %v", c.name, err, c.why)
		}
	}
	for _, name := range []string{"sdb", "sdc", "nvme10n1", "mmcblk0", "loop2"} {
		if err := devices[name].Check(devices[name].Size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.Lock(t.Context(), devices["sr0"]); !errors.Is(err, ErrNotDisk) {
		t.Errorf("Lock: got %v", err)
	}
}

func TestResolve(t *testing.T) {
	h := server(t)
	for path, want := range map[string]string{
		"sda": "sda", "disk/by-id/wwn-0x5000c500b1234567": "sda", "disk/by-id/ata-ST4000DM004-2CV1_ZFN12345-part1": "sda1", "loop2": "loop2",
	} {
		d, err := h.Resolve(filepath.Join(h.Dev, path))
		if err != nil || d.Name != want {
			t.Errorf("%s: got %v, %v", path, d, err)
		}
	}
	h.write(filepath.Join(h.Dev, "sdz"), "from dd")
	for path, want := range map[string]string{
		h.Dev + "/sdx":                "DEV/sdx: file does not exist; 'kiln disks' lists the disks",
		h.Dev + "/disk/by-id/nothing": "DEV/disk/by-id/nothing: file does not exist; 'kiln disks' lists the disks",
		h.Dev:                         "DEV: not a disk: it has the mode drwxr-xr-x; want a block device or a regular file",
		"/dev/null":                   "/dev/null: not a disk: it has the mode Dcrw-rw-rw-; want a block device or a regular file",
		h.Dev + "/sdz":                "DEV/sdz: not a disk: it is a regular file among the device nodes, from a program that wrote to a device that was not there; remove it",
	} {
		_, err := h.Resolve(path)
		if err == nil || strings.ReplaceAll(err.Error(), h.Dev, "DEV") != want {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotDisk) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFile(t *testing.T) {
	file := sparse(t, 4<<20)
	h := newTree(t)
	d := inspected(t, file)
	if d.Kind != File || d.Size != 4<<20 || d.Name != "disk.raw" || d.Number != "" {
		t.Errorf("got %+v", d)
	}
	target, err := h.Lock(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()

	// Locked: not twice, and not by others.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	want := file + ": in use by another program: another program holds a lock on it (flock); see 'fuser -v " + file + "'; context deadline exceeded"
	if _, err := h.Lock(ctx, d); !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got %v", err)
	}

	if _, err := target.WriteAt([]byte("data"), 2<<20); err != nil {
		t.Fatal(err)
	}
	checkErase(t, target)
	if err := target.Reread(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o444); err != nil {
		t.Fatal(err)
	}
	d, err = h.Resolve(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(0); !errors.Is(err, ErrReadOnly) || err.Error() != file+": read-only: nobody may write the file; run 'chmod u+w'" {
		t.Errorf("got %v", err)
	}
}

// checkErase fills a target of 4 MiB and erases parts of it.
func checkErase(t *testing.T, target *Target) {
	t.Helper()
	fill := make([]byte, 4<<20)
	for i := range fill {
		fill[i] = 0xaa
	}
	if _, err := target.WriteAt(fill, 0); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, r := range [][2]int64{{0, 4096}, {1<<20 + 1, 4097}, {4<<20 - 512, 512}, {2 << 20, 1 << 20}, {100, 0}} {
		if err := target.Zero(ctx, r[0], r[1]); err != nil {
			t.Error(err)
		}
		clear(fill[r[0]:][:r[1]])
	}
	got := make([]byte, 4<<20)
	if _, err := target.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != fill[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], fill[i])
		}
	}
	if err := target.Discard(ctx, 0, 4<<20); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	for _, r := range [][2]int64{{-1, 1}, {0, 4<<20 + 1}, {4 << 20, 1}, {1 << 62, 1 << 62}} {
		if err := target.Zero(ctx, r[0], r[1]); err == nil || !strings.Contains(err.Error(), "are not within its 4194304 bytes") {
			t.Errorf("Zero%v: %v", r, err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := target.Zero(cancelled, 0, 4096); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestChanged(t *testing.T) {
	file := sparse(t, 4<<20)
	h := newTree(t)
	for _, c := range []struct {
		change func(f string)
		want   string
	}{
		{func(f string) { put(t, f, 0, []byte{1}) }, "its first or last MiB was written"},
		{func(f string) { put(t, f, 4<<20-1, []byte{1}) }, "its first or last MiB was written"},
		{func(f string) { os.Truncate(f, 5<<20) }, "it has 5242880 bytes and had 4194304"},
	} {
		d := inspected(t, file)
		c.change(file)
		_, err := h.Lock(t.Context(), d)
		if want := file + ": changed since the plan was made: " + c.want + "; make a new plan"; !errors.Is(err, ErrChanged) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	// What a fingerprint does not cover does not matter, nor what is not there.
	d := inspected(t, file)
	put(t, file, 2<<20, []byte{1})
	if target, err := h.Lock(t.Context(), d); err != nil {
		t.Error(err)
	} else {
		target.Close()
	}
	d.Fingerprint.DiskSeq = 8
	if _, err := h.Lock(t.Context(), d); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "another disk or medium has its name (disk sequence number 0, was 8)") {
		t.Errorf("got %v", err)
	}
	d.Fingerprint = nil
	if target, err := h.Lock(t.Context(), d); err != nil || target.Size() != 5<<20 {
		t.Error(err)
	} else {
		target.Close()
	}
	// The file gave way to something else.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Lock(t.Context(), d); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "it was a file and has now the mode prw-r--r--") {
		t.Errorf("got %v", err)
	}
}

// TestUnprivileged: facts are for everybody, contents are not.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("SKIPPED: root may read everything")
	}
	h := server(t)
	d := h.list()["sda"]
	if err := os.Chmod(d.Path, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Inspect(d); !errors.Is(err, fs.ErrPermission) || !strings.HasSuffix(err.Error(), "permission denied; run as root") {
		t.Errorf("Inspect: got %v", err)
	}
}

package devlinks

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/uevent"
)

// A disk is one of virtio with a file for its node.
func (tr tree) disk(name, seq string) device {
	tr.t.Helper()
	dir := pci + "/virtio-" + name + "/block/" + name
	tr.write(filepath.Join(tr.dev, name), "")
	return tr.device(dir, "block", "DEVTYPE=disk", "DISKSEQ="+seq, "DEVNAME="+name, "size=8", "serial=same")
}

func event(d device, action string) uevent.Event {
	return uevent.Event{"ACTION": action, "DEVPATH": strings.TrimPrefix(d.dir, d.root), "DEVNAME": d.name(), "SUBSYSTEM": "block"}
}

// A name is the device's that had it first, and the next one's when that goes.
func TestKeeper(t *testing.T) {
	tr := newTree(t)
	k := New(tr.sys, tr.dev)
	k.Fault = func(err error) {
		if !strings.Contains(err.Error(), "not a device node") { // files, as nobody here is root
			t.Error(err)
		}
	}
	settle := func() {
		t.Helper()
		if !k.Settle(time.Minute) {
			t.Fatal("links are not there after a minute")
		}
	}
	leads := func(link, want string) {
		t.Helper()
		got, err := os.Readlink(filepath.Join(tr.dev, "disk", link))
		if want == "" && !os.IsNotExist(err) || want != "" && got != "../../"+want {
			t.Errorf("%s leads to %q, %v; want %q", link, got, err, want)
		}
	}
	a, b := tr.disk("vda", "1"), tr.disk("vdb", "2")
	k.Present(a.dir, uevent.Event{"DEVNAME": "vda"})
	settle()
	k.Handle(event(b, "add"))
	settle()
	leads("by-id/virtio-same", "vda")
	leads("by-diskseq/1", "vda")
	leads("by-diskseq/2", "vdb")

	// The medium of a is another.
	tr.write(filepath.Join(a.dir, "uevent"), "DEVTYPE=disk\nDISKSEQ=3\n")
	tr.write(filepath.Join(a.dir, "serial"), "other\n")
	k.Handle(event(a, "change"))
	settle()
	leads("by-diskseq/1", "")
	leads("by-diskseq/3", "vda")
	leads("by-id/virtio-other", "vda")
	leads("by-id/virtio-same", "vdb")

	k.Handle(event(a, "remove"))
	leads("by-diskseq/3", "")
	leads("by-id/virtio-other", "")
	leads("by-id/virtio-same", "vdb")
	k.Handle(event(a, "add"))
	k.Handle(event(b, "remove"))
	if err := os.RemoveAll(a.dir); err != nil {
		t.Fatal(err)
	}
	k.Prune()
	settle()
	if entries, err := os.ReadDir(filepath.Join(tr.dev, "disk")); err == nil && len(entries) > 0 {
		t.Errorf("%v are left of no devices", entries)
	}
}

// A device that does not answer does not keep others from their names, and has none
// when it answers after it has gone.
func TestKeeperStuck(t *testing.T) {
	tr := newTree(t)
	k := New(tr.sys, tr.dev)
	a, b := tr.disk("vda", "1"), tr.disk("vdb", "2")
	stuck := filepath.Join(tr.dev, "vda")
	if err := os.Remove(stuck); err != nil {
		t.Fatal(err)
	}
	for range readers {
		k.slots <- struct{}{} // all are at work
	}
	k.Handle(event(a, "add"))
	k.Handle(event(b, "add"))
	if k.Settle(10 * time.Millisecond) {
		t.Error("settled, while devices are being read")
	}
	k.Handle(event(a, "remove"))
	for range readers {
		<-k.slots
	}
	if !k.Settle(time.Minute) {
		t.Fatal("not settled")
	}
	if _, err := os.Lstat(filepath.Join(tr.dev, "disk/by-diskseq/1")); !os.IsNotExist(err) {
		t.Errorf("what has gone has a name: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(tr.dev, "disk/by-diskseq/2")); err != nil {
		t.Error(err)
	}
}

// What a program writes onto a device is noticed when it closes it.
func TestWatch(t *testing.T) {
	tr := newTree(t)
	k := New(tr.sys, tr.dev)
	if err := k.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := tr.disk("vda", "1")
	part := tr.device(pci+"/virtio-vda/block/vda/vda3", "block", "DEVTYPE=partition", "partition=3", "DEVNAME=vda3")
	k.Handle(event(d, "add"))
	k.Handle(event(part, "add"))
	if !k.Settle(time.Minute) {
		t.Fatal("not settled")
	}
	data := make([]byte, 1<<20)
	binary.LittleEndian.PutUint32(data[440:], 0xdeadbe0f)
	data[510], data[511] = 0x55, 0xaa
	copy(data[65536+64:], "_BHRfS_M")
	copy(data[65536+299:], "written")
	tr.write(filepath.Join(tr.dev, "vda"), string(data))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, err1 := os.Lstat(filepath.Join(tr.dev, "disk/by-label/written"))
		_, err2 := os.Lstat(filepath.Join(tr.dev, "disk/by-partuuid/deadbe0f-03"))
		if err1 == nil && err2 == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err1, err2)
		}
	}
}

// What is on a device is named as blkid has it, which is where udev gets it from.
func TestFileSystems(t *testing.T) {
	blkid := oracle.Tool(t, "blkid")
	for name, command := range map[string][]string{
		"ext4":     {"mke2fs", "-q", "-t", "ext4", "-L", "a b/c"},
		"vfat":     {"mkfs.vfat", "-n", "EFI"},
		"xfs":      {"mkfs.xfs", "-q", "-L", "data.1"},
		"swap":     {"mkswap", "-q", "-L", "swäp"},
		"squashfs": nil,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fs")
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(512 << 20); err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if command != nil {
				if out, err := exec.Command(oracle.Tool(t, command[0]), append(command[1:], file)...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", command, err, out)
				}
			} else if out, err := exec.Command(oracle.Tool(t, "mksquashfs"), t.TempDir(), file, "-noappend", "-quiet").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := exec.Command(blkid, "-p", "-o", "udev", file).Output()
			if err != nil {
				t.Fatal(err)
			}
			size, err := f.Seek(0, 2)
			if err != nil {
				t.Fatal(err)
			}
			id, label := fileSystem(&medium{ReaderAt: f, size: size})
			for key, got := range map[string]string{"ID_FS_UUID_ENC": Encode(id), "ID_FS_LABEL_ENC": Encode(label)} {
				want := ""
				for line := range strings.Lines(string(out)) {
					if v, ok := strings.CutPrefix(line, key+"="); ok {
						want = strings.TrimSuffix(v, "\n")
					}
				}
				if got != want {
					t.Errorf("%s is %q, blkid says %q", key, got, want)
				}
			}
		})
	}
}

func TestPartitions(t *testing.T) {
	tr := newTree(t)
	file := filepath.Join(tr.dev, "vda")
	disk := tr.disk("vda", "1")
	part := tr.device(pci+"/virtio-vda/block/vda/vda3", "block", "DEVTYPE=partition", "partition=3")
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	const guid = "0B0F1F57-6B43-4F4D-9A6C-6A4A2F1F0C11"
	if out, err := exec.Command(oracle.Tool(t, "sgdisk"), "-n", "3:2048:+1M", "-c", "3:my data", "-u", "3:"+guid, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names := []string{"by-id/virtio-same-part3"}
	tr.has(disk, "by-id/virtio-same", "by-diskseq/1")
	tr.has(part, append(names, `by-partlabel/my\x20data`, "by-partuuid/"+strings.ToLower(guid))...)

	// The table of old.
	mbr := make([]byte, 1<<20)
	binary.LittleEndian.PutUint32(mbr[440:], 0xdeadbe0f)
	mbr[510], mbr[511] = 0x55, 0xaa
	tr.write(file, string(mbr))
	tr.has(part, append(names, "by-partuuid/deadbe0f-03")...)
}

func TestPermissions(t *testing.T) {
	tr := newTree(t)
	tr.device(pci+"/host0/target0:0:0/0:0:0:0", "scsi", "DEVTYPE=scsi_device", "type=5")
	const scsi = pci + "/host0/target0:0:0/0:0:0:0/"
	for _, c := range []struct {
		dir, subsystem string
		want           permission
	}{
		{scsi + "block/sr0", "block", permission{CDROM, 0o660}},
		{scsi + "scsi_generic/sg0", "scsi_generic", permission{CDROM, 0o660}},
		{"virtual/block/loop0", "block", permission{Disk, 0o660}},
		{"virtual/misc/loop-control", "misc", permission{Disk, 0o660}},
		{"virtual/misc/kvm", "misc", permission{KVM, 0o660}},
		{"virtual/misc/tun", "misc", permission{Root, 0o666}},
		{"virtual/tty/tty1", "tty", permission{TTY, 0o620}},
		{"virtual/tty/ptmx", "tty", permission{TTY, 0o666}},
		{"virtual/mem/null", "mem", permission{}},
		{"virtual/misc/cpu_dma_latency", "misc", permission{}},
		{"pnp0/tty/ttyS0", "tty", permission{}},
	} {
		d := tr.device(c.dir, c.subsystem)
		if got, ok := permissionOf(d, c.subsystem); got != c.want || ok != (c.want != permission{}) {
			t.Errorf("%s: %+v, %t; want %+v", c.dir, got, ok, c.want)
		}
	}
}

// Only nodes that the kernel made are touched.
func TestPermitDevices(t *testing.T) {
	tr := newTree(t)
	k := New(tr.sys, tr.dev)
	d := tr.device("virtual/misc/kvm", "misc", "DEVNAME=kvm")
	if err := k.permit(d, "misc", uevent.Event{"DEVNAME": "kvm"}); err != nil {
		t.Errorf("without a node: %v", err)
	}
	tr.link("/etc/passwd", filepath.Join(tr.dev, "kvm"))
	if err := k.permit(d, "misc", uevent.Event{"DEVNAME": "kvm"}); err == nil || !strings.Contains(err.Error(), "not a device node") {
		t.Errorf("a link: %v", err)
	}
}

package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A tree is a machine made of files.
type tree struct {
	Host
	t testing.TB
}

func newTree(t testing.TB) tree {
	root := t.TempDir()
	h := tree{Host{filepath.Join(root, "sys"), filepath.Join(root, "dev"), filepath.Join(root, "proc")}, t}
	h.write(filepath.Join(h.Sys, "class/block/.keep"), "")
	os.Remove(filepath.Join(h.Sys, "class/block/.keep"))
	h.write(filepath.Join(h.Dev, "null"), "")
	h.write(filepath.Join(h.Proc, "self/mountinfo"), "22 27 0:21 / /proc rw,relatime - proc proc rw\n")
	h.write(filepath.Join(h.Proc, "swaps"), "Filename Type Size Used Priority\n")
	return h
}

func (h tree) write(path, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// add adds a device: way is its directory below /sys/devices, attrs are lines
// of "file value". The node is a sparse file.
func (h tree) add(way, number string, size int64, attrs ...string) {
	h.t.Helper()
	name := filepath.Base(way)
	dir := filepath.Join(h.Sys, "devices", way)
	defaults := []string{"dev " + number, fmt.Sprintf("size %d", size/512), "ro 0", "removable 0", "uevent DEVNAME=" + strings.ReplaceAll(name, "!", "/")}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "queue")); err != nil {
		defaults = append(defaults, "queue/logical_block_size 512", "queue/physical_block_size 4096", "queue/rotational 0")
	}
	for _, a := range append(defaults, attrs...) {
		file, value, _ := strings.Cut(a, " ")
		h.write(filepath.Join(dir, file), value+"\n")
	}
	if err := os.Symlink(dir, filepath.Join(h.class(), name)); err != nil {
		h.t.Fatal(err)
	}
	node := filepath.Join(h.Dev, strings.ReplaceAll(name, "!", "/"))
	h.write(node, "")
	if err := os.Truncate(node, size); err != nil {
		h.t.Fatal(err)
	}
}

// appendTo adds a line to a file of /proc.
func (h tree) appendTo(file, line string) {
	h.t.Helper()
	path := filepath.Join(h.Proc, file)
	old, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(path, string(old)+line+"\n")
}

func (h tree) link(path, target string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(h.Dev, path)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(h.Dev, path)); err != nil {
		h.t.Fatal(err)
	}
}

func (h tree) list() map[string]*Device {
	h.t.Helper()
	devices, err := h.List()
	if err != nil {
		h.t.Fatal(err)
	}
	m := map[string]*Device{}
	for _, d := range devices {
		m[d.Name] = d
	}
	return m
}

const (
	gb = 1000 * 1000 * 1000
	tb = 1000 * gb
)

// server is a machine with many kinds of disks.
func server(t testing.TB) tree {
	h := newTree(t)
	h.add("pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1", "259:0", 500*gb, "device/model Samsung SSD 980 PRO ",
		"device/serial S5GX123   ", "wwid eui.0025385b11", "queue/physical_block_size 512")
	h.add("pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0/nvme0n1/nvme0n1p1", "259:1", 1*gb, "partition 1", "start 2048")
	h.add("pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme10/nvme10n1", "259:5", 2*tb, "device/model Samsung SSD 980 PRO",
		"device/serial S5GX999", "queue/logical_block_size 4096")
	h.add("virtual/nvme-subsystem/nvme-subsys0/nvme0c0n1", "259:9", 0, "hidden 1")
	h.add("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", "8:0", 4*tb, "device/model ST4000DM004-2CV1",
		"device/vpd_pg80 \x00\x80\x00\x14            ZFN12345", "device/wwid naa.5000c500b1234567", "device/type 0", "queue/rotational 1")
	h.add("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1", "8:1", 1*tb, "partition 1", "start 2048")
	h.add("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda2", "8:2", 1*tb, "partition 2", "start 1953125000")
	h.add("pci0000:00/0000:00:14.0/usb2/2-3/2-3:1.0/host6/target6:0:0/6:0:0:0/block/sdb", "8:16", 32*gb, "removable 1",
		"device/model Ultra Fit", "device/type 0")
	h.write(filepath.Join(h.Sys, "devices/pci0000:00/0000:00:14.0/usb2/2-3/idVendor"), "0781\n")
	h.write(filepath.Join(h.Sys, "devices/pci0000:00/0000:00:14.0/usb2/2-3/serial"), "4C530001\n")
	h.add("pci0000:00/0000:02:00.0/host7/port-7:0/end_device-7:0/target7:0:0/7:0:0:0/block/sdaa", "65:160", 8*tb, "device/model HUH728080AL5200")
	h.add("pci0000:00/0000:02:00.0/host8/rport-8:0-1/target8:0:0/8:0:0:0/block/sdc", "8:32", 8*tb)
	h.add("platform/host9/session1/target9:0:0/9:0:0:0/block/sdd", "8:48", 8*tb)
	h.add("pci0000:00/0000:00:05.0/virtio2/host10/target10:0:0/10:0:0:0/block/sde", "8:64", 10*gb)
	h.add("pci0000:00/0000:00:02.0/virtio1/block/vda", "254:0", 20*gb, "serial kiln-disk-1")
	h.add("vbd-51712/block/xvda", "202:0", 20*gb, "ro 1")
	h.add("platform/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "179:0", 16*gb, "device/name DG4016", "device/serial 0x1234")
	h.add("platform/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0boot0", "179:8", 4<<20, "ro 1")
	h.add("pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sr0", "11:0", 700<<20, "removable 1", "device/type 5")
	h.add("virtual/block/loop0", "7:0", 0)
	h.add("virtual/block/loop1", "7:1", 100<<20, "ro 1", "loop/backing_file /var/lib/snapd/snaps/core.snap")
	h.add("virtual/block/loop2", "7:2", 100<<20, "loop/backing_file /tmp/disk.img")
	h.add("virtual/block/zram0", "252:0", 1*gb)
	h.add("virtual/block/ram0", "1:0", 1<<20)
	h.add("virtual/block/fd0", "2:0", 0)
	h.link("disk/by-id/ata-ST4000DM004-2CV1_ZFN12345", "../../sda")
	h.link("disk/by-id/wwn-0x5000c500b1234567", "../../sda")
	h.link("disk/by-id/ata-ST4000DM004-2CV1_ZFN12345-part1", "../../sda1")
	h.link("disk/by-path/pci-0000:00:1f.2-ata-1", "../../sda")
	h.link("disk/by-id/nothing", "../../gone")
	return h
}

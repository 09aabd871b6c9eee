package blockdev

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestList(t *testing.T) {
	h := server(t)
	devices, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range devices {
		got = append(got, strings.Join([]string{d.Name, string(d.Kind), d.Transport, d.Model, d.Serial, d.WWN}, "|"))
	}
	want := []string{
		"fd0|floppy||||", "loop0|loop|loop|||", "loop1|loop|loop|||", "loop2|loop|loop|||",
		"mmcblk0|disk|mmc|DG4016|0x1234|", "mmcblk0boot0|boot area|mmc|||",
		"nvme0n1|disk|nvme|Samsung SSD 980 PRO|S5GX123|eui.0025385b11",
		"nvme0n1p1|partition|nvme|Samsung SSD 980 PRO|S5GX123|eui.0025385b11",
		"nvme10n1|disk|nvme|Samsung SSD 980 PRO|S5GX999|", "ram0|ram||||",
		"sda|disk|sata|ST4000DM004-2CV1|ZFN12345|naa.5000c500b1234567",
		"sda1|partition|sata|ST4000DM004-2CV1|ZFN12345|naa.5000c500b1234567",
		"sda2|partition|sata|ST4000DM004-2CV1|ZFN12345|naa.5000c500b1234567",
		"sdb|disk|usb|Ultra Fit|4C530001|", "sdc|disk|fc|||", "sdd|disk|iscsi|||", "sde|disk|scsi|||",
		"sdaa|disk|sas|HUH728080AL5200||", "sr0|cd|sata|||", "vda|disk|virtio||kiln-disk-1|",
		"xvda|disk|xen|||", "zram0|zram||||",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	var names []string
	for _, d := range Candidates(devices) {
		names = append(names, d.Name)
	}
	if want := []string{"loop2", "mmcblk0", "nvme0n1", "nvme10n1", "sda", "sdb", "sdc", "sdd", "sde", "sdaa", "vda", "xvda"}; !slices.Equal(names, want) {
		t.Errorf("candidates %v, want %v", names, want)
	}
}

func TestDeviceFacts(t *testing.T) {
	h := server(t)
	d := h.list()["sda"]
	want := &Device{Name: "sda", Path: h.Dev + "/sda", Kind: Disk, Size: 4 * tb, Sector: 512, Physical: 4096,
		Model: "ST4000DM004-2CV1", Serial: "ZFN12345", WWN: "naa.5000c500b1234567", Transport: "sata",
		BusPath: "/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/", Rotational: true, Number: "8:0",
		Links: []string{h.Dev + "/disk/by-id/ata-ST4000DM004-2CV1_ZFN12345", h.Dev + "/disk/by-id/wwn-0x5000c500b1234567",
			h.Dev + "/disk/by-path/pci-0000:00:1f.2-ata-1"}}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v\nwant %+v", d, want)
	}
	if ids := d.IDs(); !slices.Equal(ids, []string{"ata-ST4000DM004-2CV1_ZFN12345", "wwn-0x5000c500b1234567"}) {
		t.Errorf("IDs %v", ids)
	}
	if got := h.list()["nvme10n1"]; got.Sector != 4096 || got.BusPath != "/pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme10/" {
		t.Errorf("got %+v", got)
	}
	if got := h.list()["sda2"]; got.Parent != "sda" || got.Sector != 512 || !got.Rotational {
		t.Errorf("got %+v", got)
	}
	if got := h.list()["vda"].Facts(); got != h.Dev+`/vda size=20GB transport="virtio" serial="kiln-disk-1"` {
		t.Errorf("facts %s", got)
	}
	if b, err := json.Marshal(d); err != nil || !strings.Contains(string(b), `"bus_path":"/pci0000:00/`) {
		t.Errorf("%s, %v", b, err)
	}
}

// TestDamagedSysfs: what the kernel does not write must not be believed, nor
// stop the others from being listed.
func TestDamagedSysfs(t *testing.T) {
	h := newTree(t)
	h.add("virtual/block/sda", "8:0", 1*gb, "size 99999999999999999999", "uevent DEVNAME=../../etc/passwd", "queue/logical_block_size -1")
	h.add("virtual/block/cciss!c0d0", "104:0", 1*gb)
	got := h.list()
	if d := got["sda"]; d.Size != 0 || d.Path != h.Dev+"/sda" || d.Sector != 0 {
		t.Errorf("got %+v", d)
	}
	if d := got["cciss!c0d0"]; d.Path != h.Dev+"/cciss/c0d0" || d.Kind != Disk {
		t.Errorf("got %+v", d)
	}
}

func TestUsers(t *testing.T) {
	h := server(t)
	const way = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/"
	h.add("virtual/block/dm-0", "253:0", 1*tb, "dm/name vg-root", "dm/uuid LVM-abc")
	h.add("virtual/block/dm-1", "253:1", 1*tb, "dm/name crypt", "dm/uuid CRYPT-LUKS2-abc")
	h.add("virtual/block/dm-2", "253:2", 1*tb, "dm/name mpatha", "dm/uuid mpath-3600")
	h.add("virtual/block/dm-3", "253:3", 1*tb, "dm/name linear")
	h.add("virtual/block/md0", "9:0", 1*tb, "md/level raid1")
	h.add("virtual/block/bcache0", "252:8", 1*tb)
	h.link("mapper/vg-root", "../dm-0")
	for holder, below := range map[string]string{"dm-0": way + "sda2", "dm-1": "virtual/block/dm-0", "bcache0": "pci0000:00/0000:02:00.0/host8/rport-8:0-1/target8:0:0/8:0:0:0/block/sdc",
		"md0": "platform/host9/session1/target9:0:0/9:0:0:0/block/sdd", "dm-2": "pci0000:00/0000:02:00.0/host7/port-7:0/end_device-7:0/target7:0:0/7:0:0:0/block/sdaa",
		"dm-3": "pci0000:00/0000:00:05.0/virtio2/host10/target10:0:0/10:0:0:0/block/sde"} {
		h.write(h.Sys+"/devices/"+below+"/holders/"+holder, "")
	}
	h.appendTo("self/mountinfo", `27 1 253:1 / / rw,relatime - ext4 /dev/mapper/crypt rw`)
	h.appendTo("self/mountinfo", `28 27 8:1 / /my\040data rw - xfs /dev/sda1 rw`)
	h.appendTo("self/mountinfo", `29 27 8:1 /sub /again rw - xfs /dev/sda1 rw`)
	h.appendTo("self/mountinfo", `30 27 0:44 / /pool rw - btrfs /dev/nvme0n1p1 rw`)
	h.write(h.Proc+"/1/mountinfo", "40 1 179:0 / /host rw - ext4 /dev/mmcblk0 rw\n")
	h.appendTo("swaps", "/dev/nvme10n1 partition 100 0 -2")
	h.appendTo("swaps", "/dev/zram0 partition 100 0 100")
	h.appendTo("swaps", "/swapfile file 100 0 -3")

	devices := h.list()
	for name, want := range map[string]string{
		"sda": "dm-1 holds the root of the running system; sda1 is mounted on /my data; sda1 is mounted on /again; " +
			"sda2 is part of the LVM volume vg-root (dm-0); dm-0 is part of the encrypted volume crypt (dm-1)",
		"sda1":     "sda1 is mounted on /my data; sda1 is mounted on /again",
		"nvme0n1":  "nvme0n1p1 is mounted on /pool",
		"nvme10n1": "nvme10n1 is swap space in use",
		"mmcblk0":  "mmcblk0 is mounted on /host",
		"sdd":      "sdd is part of the RAID set md0 (raid1)",
		"sdc":      "sdc is part of bcache0",
		"sdaa":     "sdaa is part of the multipath device mpatha (dm-2)",
		"sde":      "sde is part of the device mapper device linear (dm-3)",
		"vda":      "",
	} {
		var got []string
		for _, u := range devices[name].Users {
			got = append(got, u.String())
		}
		if s := strings.Join(got, "; "); s != want {
			t.Errorf("%s: got %s\nwant %s", name, s, want)
		}
	}
}

func TestBrokenMountinfo(t *testing.T) {
	h := server(t)
	h.appendTo("self/mountinfo", "nonsense")
	if _, err := h.List(); err == nil || !strings.Contains(err.Error(), `mountinfo: unexpected line "nonsense`) {
		t.Errorf("got %v", err)
	}
}

package blockdev

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// typeCD is the type of CD drives in SCSI.
const typeCD = "5"

// kindOf tells what a device is by its name, which is the driver's.
func kindOf(name string, a attributes) Kind {
	for _, k := range []struct {
		prefix string
		kind   Kind
	}{
		{"loop", Loop}, {"sr", CD}, {"fd", Floppy}, {"zram", ZRAM}, {"ram", RAM}, {"dm-", Mapper}, {"md", RAID},
		{"bcache", BCache}, {"mtdblock", Flash}, {"ubiblock", Flash},
	} {
		if rest, ok := strings.CutPrefix(name, k.prefix); ok && (strings.HasPrefix(rest, "_") || number(rest) != "") {
			return k.kind
		}
	}
	if strings.HasPrefix(name, "mmcblk") && (strings.Contains(name, "boot") || strings.Contains(name, "rpmb")) {
		return BootArea
	}
	if a.text("device/type") == typeCD {
		return CD
	}
	return Disk
}

// identify fills in what names the disk whose directory in sysfs is a.
func (h Host) identify(d *Device, a attributes) {
	name := filepath.Base(string(a))
	sys, err := filepath.EvalSymlinks(h.Sys)
	if err != nil {
		sys = h.Sys
	}
	way, ok := strings.CutPrefix(string(a), filepath.Join(sys, "devices"))
	if !ok {
		way = "/" + name
	}
	d.BusPath = strings.TrimSuffix(strings.TrimSuffix(way, name), "block/")
	d.Transport = transport(name, way)
	d.Model = clean(cmp.Or(a.text("device/model"), a.text("device/name")))
	d.WWN = clean(cmp.Or(a.text("wwid"), a.text("device/wwid")))
	d.Serial = clean(cmp.Or(a.text("serial"), a.text("device/serial"), vitalProductData(a)))
	if d.Serial == "" && d.Transport == "usb" {
		d.Serial = usbSerial(a)
	}
}

// transport tells how a disk is connected, by its name and its way over the
// buses.
func transport(name, way string) string {
	for _, t := range []struct{ prefix, transport string }{
		{"nvme", "nvme"}, {"vd", "virtio"}, {"xvd", "xen"}, {"mmcblk", "mmc"}, {"loop", "loop"},
		{"nbd", "nbd"}, {"rbd", "rbd"}, {"pmem", "pmem"},
	} {
		if strings.HasPrefix(name, t.prefix) {
			return t.transport
		}
	}
	for _, t := range []struct{ part, transport string }{
		{"/usb", "usb"}, {"/session", "iscsi"}, {"/rport-", "fc"}, {"/end_device-", "sas"}, {"/ata", "sata"},
		{"/host", "scsi"}, // parallel SCSI, RAID controllers, virtio-scsi, Hyper-V
	} {
		if strings.Contains(way, t.part) {
			return t.transport
		}
	}
	return ""
}

// vitalProductData returns the serial number that a SCSI disk gives in page
// 0x80: 4 bytes of header, then text.
func vitalProductData(a attributes) string {
	b, err := os.ReadFile(filepath.Join(string(a), "device/vpd_pg80"))
	if err != nil || len(b) < 4 {
		return ""
	}
	return strings.Trim(string(b[4:]), " \n\x00")
}

// usbSerial returns the serial number of the USB device that a disk is in.
func usbSerial(a attributes) string {
	for dir := string(a); len(dir) > 1; dir = filepath.Dir(dir) {
		if usb := attributes(dir); usb.text("idVendor") != "" {
			return clean(usb.text("serial"))
		}
	}
	return ""
}

// nodeNumber returns the number of a device node, major:minor, or "".
func nodeNumber(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return formatNumber(st.Rdev)
}

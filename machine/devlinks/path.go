package devlinks

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// A way is how a disk is reached over the buses, from the disk upwards.
type way struct {
	path   string // as pci-0000:00:04.0-ata-1.0
	compat string // of old, with ATA's port only: pci-0000:00:04.0-ata-1
	// A name is of use if a bus is known to number what is on it always in the same
	// order, and if that leads to something that has an address.
	transport, parent bool
}

func (w *way) add(part, compat string) {
	if w.path != "" {
		w.path = "-" + w.path
	}
	w.path = part + w.path
	switch {
	case w.compat != "":
		w.compat = compat + "-" + w.compat
	case compat != part:
		w.compat = compat
	}
}

// wayTo returns the way to a disk, empty if there is none that lasts.
func wayTo(disk device) (path, compat string) {
	var w way
	if disk.subsystem() == "block" && strings.Contains(disk.dir, "/virtual/nvme-subsystem/") {
		// One of several controllers; its namespace leads over the first.
		controller, _, _ := strings.Cut(strings.TrimPrefix(disk.name(), "nvme"), "n")
		real, ok := disk.class("nvme", "nvme"+controller)
		if !ok {
			return "", ""
		}
		w.add("nvme-"+disk.attr("nsid"), "nvme-"+disk.attr("nsid"))
		w.transport = true
		disk = real.last("nvme")
	}
	for d, ok := disk.above(); ok; d, ok = d.above() {
		d = w.over(d, disk)
		if d.dir == "" {
			return "", ""
		}
	}
	if !w.transport || !w.parent {
		return "", ""
	}
	return w.path, w.compat
}

// over adds a device, and returns the topmost that belongs to it; an empty one if the
// way leads nowhere.
func (w *way) over(d, disk device) device {
	both := func(part string) { w.add(part, part) }
	switch s := d.subsystem(); s {
	case "scsi":
		if d.event()["DEVTYPE"] != "scsi_device" {
			return d
		}
		w.transport = true
		return w.overSCSI(d)
	case "usb":
		if t := d.event()["DEVTYPE"]; t == "usb_interface" || t == "usb_device" {
			if _, port, ok := strings.Cut(d.name(), "-"); ok {
				w.parent, w.transport = true, true
				both("usb-0:" + port)
				return d.last(s)
			}
		}
	case "nvme":
		if nsid := disk.attr("nsid"); nsid != "" && w.path == "" {
			w.parent, w.transport = true, true
			both("nvme-" + nsid)
			return d.last(s)
		}
	case "virtio":
		w.transport = true
		return d.last(s)
	case "pci", "xen":
		w.parent = true
		both(s + "-" + d.name())
		return d.last(s)
	case "platform", "amba", "acpi":
		w.parent = true
		w.transport = w.transport || s == "platform"
		both(s + "-" + d.name())
		return d.last(s)
	case "vmbus":
		w.parent = true
	}
	return d
}

// overSCSI adds a device of one of the many buses that look like SCSI.
func (w *way) overSCSI(d device) device {
	both := func(format string, args ...any) {
		part := fmt.Sprintf(format, args...)
		w.add(part, part)
	}
	var host, bus, target, lun int
	if _, err := fmt.Sscanf(d.name(), "%d:%d:%d:%d", &host, &bus, &target, &lun); err != nil {
		return device{}
	}
	dir := strings.TrimPrefix(d.dir, d.root)
	switch {
	case strings.Contains(dir, "/rport-"):
		t, ok := d.find("scsi", "scsi_target")
		port, known := d.class("fc_transport", t.name())
		if !ok || !known {
			return device{}
		}
		w.parent = true
		both("fc-%s-%s", port.attr("port_name"), lunName(lun))
		return d
	case strings.Contains(dir, "/end_device-"):
		part := sasPort(d, lunName(lun))
		if part == "" {
			return device{}
		}
		w.parent = true
		both("%s", part)
		return d
	case strings.Contains(dir, "/session"):
		part := iSCSISession(d, lunName(lun))
		if part == "" {
			return device{}
		}
		w.parent = true
		both("%s", part)
		return d
	}
	h, ok := d.find("scsi", "scsi_host")
	if !ok {
		return device{}
	}
	above, _ := h.above()
	switch {
	case strings.Contains(dir, "/ata"):
		port, ok := d.class("ata_port", above.name())
		if !ok {
			return device{}
		}
		number := port.attr("port_no")
		part := fmt.Sprintf("ata-%s.%d", number, target)
		if bus != 0 { // behind a port multiplier
			part = fmt.Sprintf("ata-%s.%d.0", number, bus)
		}
		w.add(part, "ata-"+number)
	case strings.Contains(dir, "/vmbus_"), strings.Contains(dir, "/VMBUS"):
		guid := above.attr("device_id")
		if !strings.HasPrefix(guid, "{") || !strings.HasSuffix(guid, "}") {
			return device{}
		}
		both("vmbus-%s-%s", strings.ReplaceAll(strings.Trim(guid, "{}"), "-", ""), lunName(lun))
	default:
		both("scsi-%d:%d:%d:%d", host-firstHost(above.dir), bus, target, lun)
	}
	return h
}

// firstHost returns the lowest number of the SCSI hosts of an adapter: numbers are
// given as hosts come, but an adapter's in their order.
func firstHost(adapter string) int {
	first := -1
	entries, err := os.ReadDir(adapter)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "host")
		if n, err := strconv.Atoi(number); ok && err == nil && (first < 0 || n < first) {
			first = n
		}
	}
	return max(first, 0)
}

// lunName returns the name of a logical unit number. Those above 255 are in the form
// of SAM's 8 bytes.
func lunName(n int) string {
	if n < 256 {
		return fmt.Sprintf("lun-%d", n)
	}
	return fmt.Sprintf("lun-0x%04x%04x00000000", n&0xffff, n>>16&0xffff)
}

// sasPort returns the name of the port that a SAS disk is at: by the phy of the
// expander or adapter if it has one, by its own address if it has several.
func sasPort(d device, lun string) string {
	target, ok := d.find("scsi", "scsi_target")
	if !ok {
		return ""
	}
	end, ok := target.above()
	if !ok {
		return ""
	}
	address, ok := d.class("sas_device", end.name())
	if !ok {
		return ""
	}
	port, ok := end.above()
	if !ok {
		return ""
	}
	if sas, ok := d.class("sas_port", port.name()); !ok || sas.attr("num_phys") != "1" {
		return fmt.Sprintf("sas-%s-%s", address.attr("sas_address"), lun)
	}
	phy := address.attr("phy_identifier")
	if at, ok := port.above(); ok {
		if expander, ok := d.class("sas_device", at.name()); ok {
			return fmt.Sprintf("sas-exp%s-phy%s-%s", expander.attr("sas_address"), phy, lun)
		}
	}
	return fmt.Sprintf("sas-phy%s-%s", phy, lun)
}

// iSCSISession returns the name of the target of an iSCSI session.
func iSCSISession(d device, lun string) string {
	session, ok := d.above()
	for ; ok && !strings.HasPrefix(session.name(), "session"); session, ok = session.above() {
	}
	if !ok {
		return ""
	}
	s, ok := d.class("iscsi_session", session.name())
	if !ok {
		return ""
	}
	c, ok := d.class("iscsi_connection", "connection"+strings.TrimPrefix(session.name(), "session")+":0")
	if !ok {
		return ""
	}
	return fmt.Sprintf("ip-%s:%s-iscsi-%s-%s", c.attr("persistent_address"), c.attr("persistent_port"), s.attr("targetname"), lun)
}

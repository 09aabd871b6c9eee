package devlinks

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/machine/blockdev/signature"
)

// A medium is what a device node reads as.
type medium struct {
	io.ReaderAt
	size     int64
	identify func() []byte // data of ATA's IDENTIFY DEVICE, nil if the driver has none
}

// named are the kernel's names of the devices that get links. Others have names of
// their own already, or are nothing to keep data on.
var named = []string{
	"loop*", "mmcblk*[0-9]", "msblk*[0-9]", "mspblk*[0-9]", "nvme*n*", "sd*", "sr*", "vd*", "xvd*", "bcache*", "cciss*", "dasd*", "pmem*", "nbd*", "zd*",
}

// isNamed reports whether the device of the kernel's name gets links.
func isNamed(kernel string) bool {
	for _, p := range named {
		if ok, _ := path.Match(p, kernel); ok {
			return true
		}
	}
	return false
}

// links returns the names of the links to a block device, below /dev/disk. open opens
// the node of that name; what cannot be read has fewer links.
func links(d device, open func(name string) (*medium, func(), error)) []string {
	if !isNamed(d.name()) {
		return nil
	}
	disk, suffix, whole := d, "", true
	number := d.attr("partition")
	if number != "" {
		up, ok := d.above()
		if !ok {
			return nil
		}
		disk, suffix, whole = up, "-part"+number, false
	}
	if size := d.attr("size"); size == "0" && strings.HasPrefix(d.name(), "loop") {
		return nil // of no file
	}
	var all []string
	add := func(dir, name, suffix string) {
		if name != "" && name != "." && name != ".." && len(name)+len(suffix) <= maxName {
			all = append(all, dir+"/"+name+suffix)
		}
	}
	table, closeTable, err := open(disk.name())
	if err == nil {
		defer closeTable()
	} else {
		table = nil
	}
	for _, name := range ids(disk, table) {
		add("by-id", name, suffix)
	}
	p, compat := wayTo(disk)
	boot := strings.HasPrefix(d.name(), "mmcblk") && strings.Contains(d.name(), "boot")
	switch {
	case p == "":
	case boot:
		add("by-path", replace(p), "-boot"+d.name()[len(d.name())-1:])
	default:
		add("by-path", replace(p), suffix)
		add("by-path", replace(compat), suffixIf(compat != "", suffix))
		if strings.HasPrefix(disk.name(), "vd") && strings.HasPrefix(p, "pci-") {
			add("by-path", "virtio-"+replace(p), suffix)
		}
	}
	if whole {
		add("by-diskseq", d.event()["DISKSEQ"], "")
	}
	if table != nil && !whole {
		id, label := entry(table, number)
		add("by-partuuid", Encode(id), "")
		add("by-partlabel", Encode(label), "")
	}
	content := table
	if !whole {
		var closeContent func()
		if content, closeContent, err = open(d.name()); err != nil {
			return all
		}
		defer closeContent()
	}
	if content != nil && !boot {
		id, label := fileSystem(content)
		add("by-uuid", Encode(id), "")
		add("by-label", Encode(label), "")
	}
	return all
}

// maxName is how long a name may be, in bytes; what makes the link needs two of 255.
const maxName = 253

func suffixIf(ok bool, suffix string) string {
	if ok {
		return suffix
	}
	return ""
}

// ids returns the names in by-id, without that of a partition.
func ids(disk device, m *medium) (names []string) {
	add := func(bus, id string) {
		if id = replace(id); id != "" {
			names = append(names, bus+"-"+id)
		}
	}
	switch name := disk.name(); {
	case strings.HasPrefix(name, "nvme"):
		add("nvme", disk.attr("wwid"))
		model, serial, namespace := replace(disk.nearest("model")), replace(disk.nearest("serial")), disk.nearest("nsid")
		if model != "" && serial != "" {
			add("nvme", model+"_"+serial)
			if namespace != "" {
				add("nvme", model+"_"+serial+"_"+namespace)
			}
		}
	case strings.HasPrefix(name, "vd"):
		add("virtio", disk.nearest("serial"))
	case strings.HasPrefix(name, "sd"), strings.HasPrefix(name, "sr"):
		id, ok := scsiNamed(disk, m)
		if !ok {
			break
		}
		if id.serial != "" {
			names = append(names, id.bus+"-"+id.serial)
		}
		if id.wwn != "" {
			names = append(names, "wwn-"+id.wwn)
		}
	case strings.HasPrefix(name, "pmem"):
		add("pmem", disk.nearest("uuid"))
	case strings.HasPrefix(name, "mmcblk"):
		card, ok := disk.find("mmc", "")
		if ok && !strings.ContainsAny(name[len("mmcblk"):], "br") && card.attr("name") != "" && card.attr("serial") != "" {
			add("mmc", card.attr("name")+"_"+card.attr("serial"))
		}
	}
	return names
}

// scsiNamed identifies a disk or CD drive behind SCSI's layer: by what ATA says, then
// USB, then SCSI.
func scsiNamed(disk device, m *medium) (identity, bool) {
	scsi, ok := disk.find("scsi", "scsi_device")
	if !ok {
		return identity{}, false
	}
	ask := func() []byte { return nil }
	if m != nil && m.identify != nil {
		ask = m.identify
	}
	level := scsi.attr("scsi_level")
	if scsi.attr("vendor") == "ATA" || scsi.attr("type") == "5" && len(level) == 1 && level >= "6" {
		if id, ok := ataIdentity(identify(scsi, ask)); ok {
			return id, true
		}
	}
	if id, ok := usbIdentity(disk); ok {
		return id, true
	}
	return scsiIdentity(scsi)
}

// entry returns the identifier and the label of a partition in the table of its disk.
// The one of an MBR is made of the disk's number, which has 4 bytes at 440.
func entry(disk *medium, number string) (id, label string) {
	var n int
	if _, err := fmt.Sscan(number, &n); err != nil || n < 1 {
		return "", ""
	}
	t, err := gpt.Read(disk, disk.size)
	switch {
	case err == nil:
		if n > len(t.Partitions) || t.Partitions[n-1].Size == 0 {
			return "", ""
		}
		return t.Partitions[n-1].ID.String(), t.Partitions[n-1].Name
	case errors.Is(err, gpt.ErrNone):
		b := make([]byte, 512)
		if _, err := disk.ReadAt(b, 0); err != nil || b[510] != 0x55 || b[511] != 0xaa {
			return "", ""
		}
		if disk := uint32(b[440]) | uint32(b[441])<<8 | uint32(b[442])<<16 | uint32(b[443])<<24; disk != 0 {
			return fmt.Sprintf("%08x-%02x", disk, n), ""
		}
	}
	return "", ""
}

// fileSystem returns the identifier and the label of what a device holds, if that is
// one thing and not a part of something else, a RAID set for example.
func fileSystem(m *medium) (id, label string) {
	found, err := signature.Detect(m, m.size)
	if err != nil || len(found) != 1 {
		return "", ""
	}
	switch s := found[0]; s.Type {
	case "linux_raid_member", "LVM2_member", "ddf_raid_member", "isw_raid_member":
		return "", ""
	default:
		return s.UUID, s.Label
	}
}

package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// guestManaged is the tools version of guests that see to their tools
// themselves.
const guestManaged = 1<<31 - 1

// descriptor returns the text of an image whose one extent is the file itself.
func (o Options) descriptor(capacity uint64, createType string) []byte {
	id := o.ContentID
	if binary.BigEndian.Uint32(id[12:]) >= noParent-1 { // no parent; a disk of zeros
		id[12] &= 0x7f
	}
	access := "RW"
	if createType == streamOptimized {
		access = "RDONLY"
	}
	adapter := o.Adapter
	if adapter == "" || adapter == PVSCSI {
		adapter = LSILogic
	}
	tools := o.ToolsVersion
	if tools == 0 {
		tools = guestManaged
	}
	c, h, s := chs(capacity, adapter)
	b := fmt.Appendf(nil, `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=%08x
createType="%s"

# Extent description
%s %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "%s"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.longContentID = "%x"
ddb.toolsVersion = "%d"
`, id[12:], uint32(noParent), createType, access, capacity, o.Name, adapter, c, h, s, id, tools)
	if o.UUID != [16]byte{} {
		u := o.UUID
		b = fmt.Appendf(b, "ddb.uuid = \"60 00 C2 9%x % x-% x\"\n", u[3]&0xf, u[4:8], u[8:])
	}
	// Of no use since ESX 4, but looked for.
	return append(b, "ddb.virtualHWVersion = \"4\"\n"...)
}

// chs is the geometry of a disk: that of ATA for IDE, else that of the BIOS of
// SCSI controllers, whose heads depend on the size.
func chs(capacity uint64, adapter Adapter) (cylinders, heads, sectors uint64) {
	const gib = 1 << 30 / sector
	most := uint64(65535)
	switch {
	case adapter == IDE:
		most, heads, sectors = 16383, 16, 63
	case capacity < gib:
		heads, sectors = 64, 32
	case capacity < 2*gib:
		heads, sectors = 128, 32
	default:
		heads, sectors = 255, 63
	}
	return min(most, max(1, capacity/(heads*sectors))), heads, sectors
}

// Bounds of descriptors that are read.
const (
	maxDescriptor = 1 << 20
	maxExtentRows = 1 << 14
)

// descriptor is what matters of a text that has been read.
type descriptor struct {
	createType string
	extents    []extentRow
}

// extentRow is a line of a descriptor: so many sectors of the disk.
type extentRow struct {
	sectors uint64
	kind    string // FLAT, SPARSE, ZERO, …
	name    string
	offset  uint64 // of the data in a flat file, in sectors
}

// parseDescriptor refuses disks that are not whole, or not readable.
func parseDescriptor(text []byte) (*descriptor, error) {
	// The space for it is padded with zeros.
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	d := &descriptor{}
	parent := uint64(noParent)
	version := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if row, ok, err := parseExtent(line); err != nil {
			return nil, err
		} else if ok {
			if d.extents = append(d.extents, row); len(d.extents) > maxExtentRows {
				return nil, fmt.Errorf("%w: more than %d extents", ErrUnsupported, maxExtentRows)
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%w: line %.80q of the descriptor", ErrCorrupt, line)
		}
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"`)
		switch lower := strings.ToLower(key); {
		case lower == "version":
			version = value
		case lower == "createtype":
			d.createType = value
		case lower == "parentcid":
			var err error
			if parent, err = strconv.ParseUint(value, 16, 32); err != nil {
				return nil, fmt.Errorf("%w: parentCID %.80q", ErrCorrupt, value)
			}
		case strings.HasPrefix(lower, "encryption."):
			return nil, fmt.Errorf("%w: it is encrypted", ErrUnsupported)
		}
	}
	switch {
	case version == "":
		return nil, fmt.Errorf("%w: the descriptor has no version", ErrCorrupt)
	case parent != noParent:
		return nil, fmt.Errorf("%w: it only has what differs from a parent (CID %08x); consolidate its snapshots, or merge them with qemu-img convert",
			ErrUnsupported, parent)
	case d.createType == "":
		return nil, fmt.Errorf("%w: the descriptor has no createType", ErrCorrupt)
	}
	return d, nil
}

// parseExtent reads a line like
//
//	RW 4192256 SPARSE "disk-s001.vmdk"
//
// and reports whether it is one.
func parseExtent(line string) (row extentRow, ok bool, err error) {
	access, rest, _ := strings.Cut(line, " ")
	switch access {
	case "RW", "RDONLY":
	case "NOACCESS":
		return row, true, fmt.Errorf("%w: an extent without access (%.80q)", ErrUnsupported, line)
	default:
		return row, false, nil
	}
	bad := fmt.Errorf("%w: extent %.80q", ErrCorrupt, line)
	count, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if row.sectors, err = strconv.ParseUint(count, 10, 53); err != nil {
		return row, true, bad
	}
	row.kind, rest, _ = strings.Cut(strings.TrimSpace(rest), " ")
	if rest = strings.TrimSpace(rest); row.kind == "ZERO" {
		return row, true, nil
	}
	if !strings.HasPrefix(rest, `"`) {
		return row, true, bad
	}
	row.name, rest, ok = strings.Cut(rest[1:], `"`)
	if !ok || row.name == "" {
		return row, true, bad
	}
	if rest = strings.TrimSpace(rest); rest != "" {
		if row.offset, err = strconv.ParseUint(rest, 10, 53); err != nil {
			return row, true, bad
		}
	}
	return row, true, nil
}

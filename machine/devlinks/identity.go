package devlinks

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// An identity is what a disk says of itself.
type identity struct {
	bus    string // prefix of the name: ata, usb, scsi
	serial string
	wwn    string
}

// identifySize is the size of the data of ATA's command IDENTIFY DEVICE, in bytes. In
// page 0x89 of SCSI's vital product data they begin at 60 (SAT-3, ATA Information).
const (
	identifySize = 512
	identifyAt   = 60
)

// identify returns the data of IDENTIFY DEVICE of a disk behind SCSI's layer, which
// ask gets from the driver if sysfs does not have them.
func identify(scsi device, ask func() []byte) []byte {
	if page := scsi.raw("vpd_pg89"); len(page) >= identifyAt+identifySize {
		return page[identifyAt:][:identifySize]
	}
	return ask()
}

// ataIdentity reads the data of IDENTIFY DEVICE (ACS-4): 256 words, little-endian.
// Text has its characters swapped in each. Words 10 to 19 are the serial number, 27 to
// 46 the model, 108 to 111 the World Wide Name in the form NAA 5, from the high word to
// the low one.
func ataIdentity(data []byte) (id identity, ok bool) {
	if len(data) < identifySize {
		return id, false
	}
	text := func(from, to int) string {
		var b strings.Builder
		for i := 2 * from; i < 2*to; i += 2 {
			b.WriteByte(data[i+1])
			b.WriteByte(data[i])
		}
		s, _, _ := strings.Cut(b.String(), "\x00")
		return replace(s)
	}
	model, serial := text(27, 47), text(10, 20)
	if model == "" {
		return id, false
	}
	id = identity{bus: "ata", serial: model}
	if serial != "" {
		id.serial += "_" + serial
	}
	if binary.LittleEndian.Uint16(data[2*108:])>>12 == 5 {
		id.wwn = "0x"
		for w := 108; w < 112; w++ {
			id.wwn += fmt.Sprintf("%04x", binary.LittleEndian.Uint16(data[2*w:]))
		}
	}
	return id, true
}

// usbIdentity tells a disk on USB by what its SCSI layer says and the serial number of
// the USB device.
func usbIdentity(disk device) (id identity, ok bool) {
	dev, ok := disk.find("usb", "usb_device")
	if !ok {
		return id, false
	}
	var vendor, model, instance string
	if scsi, ok := disk.find("scsi", "scsi_device"); ok {
		vendor, model = replace(scsi.attr("vendor")), replace(scsi.attr("model"))
		if _, after, ok := strings.Cut(scsi.name(), ":"); ok {
			_, instance, _ = strings.Cut(after, ":") // target:lun
		}
	}
	first := func(list ...string) string {
		for _, s := range list {
			if s != "" {
				return s
			}
		}
		return ""
	}
	id.bus = "usb"
	id.serial = first(vendor, replace(dev.attr("manufacturer")), dev.attr("idVendor")) + "_" + first(model, replace(dev.attr("product")), dev.attr("idProduct"))
	serial := dev.attr("serial")
	if strings.ContainsFunc(serial, func(r rune) bool { return r < ' ' || r > '\x7f' || r == ',' }) {
		serial = "" // as some write memory that is not initialised
	}
	if serial != "" {
		id.serial += "_" + replace(serial)
	}
	if instance != "" {
		id.serial += "-" + instance
	}
	return id, true
}

// Lengths of the texts of SCSI's INQUIRY, which are padded with spaces.
const (
	vendorLength = 8
	modelLength  = 16
)

// scsiIdentity reads pages 0x83 and 0x80 of the vital product data.
func scsiIdentity(scsi device) (id identity, ok bool) {
	prefix := fmt.Sprintf("%-*s%-*s", vendorLength, cut(scsi.attr("vendor"), vendorLength), modelLength, cut(scsi.attr("model"), modelLength))
	id.bus = "scsi"
	if serial, wwn, ok := designator(scsi.raw("vpd_pg83"), prefix); ok {
		id.serial = replace(serial)
		if wwn != "" {
			id.wwn = "0x" + wwn
		}
		return id, true
	}
	// 4 bytes of header, then the unit's serial number.
	if page := scsi.raw("vpd_pg80"); len(page) > 4 && page[1] == 0x80 {
		n := min(int(binary.BigEndian.Uint16(page[2:])), len(page)-4)
		if serial, _, _ := strings.Cut(string(page[4:4+n]), "\x00"); strings.TrimSpace(serial) != "" {
			id.serial = replace("S" + prefix + serial)
			return id, true
		}
	}
	return id, false
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// Types of designators, and how they are written.
const (
	vendorSpecific = 0
	t10Vendor      = 1
	eui64          = 2
	naa            = 3

	binaryCode = 1
	asciiCode  = 2
)

// designator finds the best of the designators of page 0x83 (SPC-4): 4 bytes of header,
// then each with
//
//	0  4 bits protocol, 4 bits code set
//	1  2 bits, 2 bits association (0: of the logical unit), 4 bits type
//	2  reserved
//	3  length in bytes of what follows
//
// The identifier begins with the digit of its type. prefix stands before one that is the
// vendor's own. A wwn is hexadecimal.
func designator(page []byte, prefix string) (serial, wwn string, ok bool) {
	if len(page) < 4 || page[1] != 0x83 {
		return "", "", false
	}
	page = page[4:][:min(int(binary.BigEndian.Uint16(page[2:])), len(page)-4)]
	type found struct {
		rank int
		text string
		wwn  string
	}
	best := found{rank: 1 << 8}
	for len(page) >= 4 {
		n := int(page[3])
		if len(page) < 4+n {
			break
		}
		code, association, kind, data := page[0]&0xf, page[1]>>4&3, page[1]&0xf, page[4:4+n]
		page = page[4+n:]
		if association != 0 || n == 0 || kind > naa || code != binaryCode && code != asciiCode {
			continue
		}
		f := found{text: string(data)}
		if code == binaryCode {
			f.text = hex.EncodeToString(data)
		}
		f.text, _, _ = strings.Cut(f.text, "\x00")
		switch kind {
		case naa: // extended first, then registered, then what is reserved
			f.rank = 20
			if format := data[0] >> 4; code == binaryCode && format == 6 {
				f.rank = 0
			} else if code == binaryCode && format == 5 {
				f.rank = 10
			}
			f.wwn = f.text
		case eui64:
			f.rank = 30
		case t10Vendor:
			f.rank = 40
		case vendorSpecific:
			f.rank = 50
			f.text = prefix + f.text
		}
		f.rank += int(code)
		f.text = fmt.Sprint(kind) + f.text
		if f.rank < best.rank {
			best = f
		}
	}
	return best.text, best.wwn, best.rank < 1<<8
}

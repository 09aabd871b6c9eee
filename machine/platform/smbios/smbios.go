// Package smbios reads what the firmware says a machine is: manufacturer,
// product, serial number, UUID.
//
// The tables are those of DMTF DSP0134, System Management BIOS Reference
// Specification 3.7. Linux shows them in /sys/firmware/dmi/tables: DMI has the
// structures, smbios_entry_point where they were found and the version. A
// structure is
//
//	0  type            1 byte
//	1  length          1 byte, of this header and the fields behind it, at least 4
//	2  handle          2 bytes, little-endian
//	4  fields
//	   strings         each ended by a zero; after the last one another zero,
//	                   and two zeros if there is none
//
// A field that is a string holds its number, from 1, or 0 for none. Type 127
// ends the table.
package smbios

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/uuid"
)

// Names in the directory /sys/firmware.
const (
	tableFile = "dmi/tables/DMI"
	entryFile = "dmi/tables/smbios_entry_point"
)

// maxTable bounds the table, in bytes. Those of large servers have some 40 KiB.
const maxTable = 4 << 20

// Types of structures.
const (
	typeSystem  = 1
	typeChassis = 3
	typeEnd     = 127
)

// ErrNone is wrapped by Read's error for a machine without SMBIOS, as many of
// those with a device tree are.
var ErrNone = errors.New("the firmware has no SMBIOS tables")

// A System is what the tables say about a machine. What they do not say is "".
type System struct {
	Manufacturer string
	Product      string
	Version      string
	Serial       string
	SKU          string
	Family       string
	UUID         string // in small letters; "" if the firmware has none
	AssetTag     string // of the chassis
}

// Read reads the tables below firmware, which is /sys/firmware.
func Read(firmware fs.FS) (*System, error) {
	table, err := fs.ReadFile(firmware, tableFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", tableFile, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	entry, err := fs.ReadFile(firmware, entryFile)
	if err != nil {
		return nil, err
	}
	major, minor, err := version(entry)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", entryFile, err)
	}
	s, err := Parse(table, major, minor)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tableFile, err)
	}
	return s, nil
}

// version returns the version of the specification that an entry point names.
func version(entry []byte) (major, minor byte, err error) {
	switch {
	case bytes.HasPrefix(entry, []byte("_SM3_")) && len(entry) >= 9:
		return entry[7], entry[8], nil
	case bytes.HasPrefix(entry, []byte("_SM_")) && len(entry) >= 8:
		return entry[6], entry[7], nil
	case bytes.HasPrefix(entry, []byte("_DMI_")) && len(entry) >= 15:
		return entry[14] >> 4, entry[14] & 0xf, nil
	}
	return 0, 0, fmt.Errorf("found %.16q, want _SM_, _SM3_ or _DMI_ and a version", entry)
}

// Parse reads the structures of a table made for that version of the
// specification. A structure that is not whole is an error.
func Parse(table []byte, major, minor byte) (*System, error) {
	if len(table) > maxTable {
		return nil, fmt.Errorf("the table has %d bytes, want at most %d", len(table), maxTable)
	}
	var s System
	var system, chassis bool // seen: the first of each is the machine's
	for at := 0; at < len(table); {
		rest := table[at:]
		if len(rest) < 4 || rest[1] < 4 || len(rest) < int(rest[1]) {
			return nil, fmt.Errorf("structure at byte %d does not fit the table of %d bytes", at, len(table))
		}
		fields := rest[:rest[1]]
		n := bytes.Index(rest[len(fields):], []byte{0, 0})
		if n < 0 {
			return nil, fmt.Errorf("strings of the structure at byte %d have no end", at)
		}
		text := rest[len(fields) : len(fields)+n]
		at += len(fields) + n + 2
		str := func(offset int) string { return str(fields, text, offset) }
		switch {
		case fields[0] == typeEnd:
			return &s, nil
		case fields[0] == typeSystem && !system:
			system = true
			s.Manufacturer, s.Product, s.Version, s.Serial = str(4), str(5), str(6), str(7)
			s.SKU, s.Family = str(25), str(26)
			if len(fields) >= 24 {
				s.UUID = formatUUID([16]byte(fields[8:24]), major, minor)
			}
		case fields[0] == typeChassis && !chassis:
			chassis = true
			s.AssetTag = str(8)
		}
	}
	return &s, nil
}

// str returns the string whose number is in the field at offset.
func str(fields, text []byte, offset int) string {
	if offset >= len(fields) || fields[offset] == 0 {
		return ""
	}
	for range fields[offset] - 1 {
		i := bytes.IndexByte(text, 0)
		if i < 0 {
			return ""
		}
		text = text[i+1:]
	}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return strings.TrimSpace(string(text))
}

// formatUUID writes a UUID as text. Since version 2.6 its first three fields are
// little-endian. All zeros is none and all ones one that is not set.
func formatUUID(b [16]byte, major, minor byte) string {
	if b == ([16]byte{}) || b == [16]byte(bytes.Repeat([]byte{0xff}, 16)) {
		return ""
	}
	if major > 2 || major == 2 && minor >= 6 {
		binary.BigEndian.PutUint32(b[0:], binary.LittleEndian.Uint32(b[0:]))
		binary.BigEndian.PutUint16(b[4:], binary.LittleEndian.Uint16(b[4:]))
		binary.BigEndian.PutUint16(b[6:], binary.LittleEndian.Uint16(b[6:]))
	}
	return uuid.UUID(b).String()
}

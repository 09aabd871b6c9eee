package efi

import "encoding/binary"

// Active is the attribute of a LoadOption that the firmware boots on its own.
const Active = 1 << 0

// LoadOption is the value of a boot entry, an EFI_LOAD_OPTION (UEFI specification
// 2.10, section 3.1.3). It is stored as
//
//	attributes    u32
//	size          u16, of all paths together
//	description   UTF-16, ended by a zero
//	paths         device paths
//	data          the rest
type LoadOption struct {
	Attributes  uint32
	Description string // what the firmware's menu shows
	// Paths begin with that of the program; what further ones mean is up to who
	// made the entry.
	Paths []DevicePath
	Data  []byte // for the program
}

// Encode returns the value of the variable.
func (o *LoadOption) Encode() ([]byte, error) {
	if len(o.Paths) == 0 {
		return nil, invalid("a boot entry without a path")
	}
	var paths []byte
	var err error
	for _, p := range o.Paths {
		if paths, err = p.appendTo(paths); err != nil {
			return nil, err
		}
	}
	if len(paths) > 0xffff {
		return nil, invalid("a boot entry with paths of %d bytes, want at most 65535", len(paths))
	}
	b := binary.LittleEndian.AppendUint32(nil, o.Attributes)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(paths)))
	if b, err = appendString(b, o.Description); err != nil {
		return nil, err
	}
	return append(append(b, paths...), o.Data...), nil
}

// DecodeLoadOption decodes the value of the variable of a boot entry. The result
// refers to data.
func DecodeLoadOption(data []byte) (*LoadOption, error) {
	const header = 6
	if len(data) < header {
		return nil, invalid("a boot entry of %d bytes, want at least %d", len(data), header)
	}
	o := &LoadOption{Attributes: binary.LittleEndian.Uint32(data)}
	size := int(binary.LittleEndian.Uint16(data[4:]))
	description, rest, ended := cutString(data[header:])
	if !ended {
		return nil, invalid("a boot entry whose description has no end")
	}
	if size == 0 || size > len(rest) {
		return nil, invalid("a boot entry with paths of %d bytes, of which %d are there", size, len(rest))
	}
	o.Description, o.Data = description, rest[size:]
	for paths := rest[:size]; len(paths) > 0; {
		p, rest, err := cutPath(paths)
		if err != nil {
			return nil, err
		}
		o.Paths, paths = append(o.Paths, p), rest
	}
	return o, nil
}

package module

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// object is an ELF relocatable file in memory. It finds a handful of sections
// by name; debug/elf would build every section and symbol of the file first.
type object struct {
	data    []byte
	order   binary.ByteOrder
	is64    bool
	machine elf.Machine
	headers []byte // the section header table
	entry   int    // size of one header in bytes
	names   []byte // the section name table, ends in a NUL
}

// openObject checks the file header and finds the section table. Its errors
// say what was found and wanted, not in which file.
func openObject(data []byte) (*object, error) {
	if len(data) < elf.EI_NIDENT || string(data[:4]) != elf.ELFMAG {
		return nil, fmt.Errorf("found %s, wanted an ELF file", describe(data))
	}
	o := &object{data: data}
	switch class := elf.Class(data[elf.EI_CLASS]); class {
	case elf.ELFCLASS32:
		o.entry = 40
	case elf.ELFCLASS64:
		o.is64, o.entry = true, 64
	default:
		return nil, fmt.Errorf("found ELF class %v, wanted 32 or 64 bits", class)
	}
	switch enc := elf.Data(data[elf.EI_DATA]); enc {
	case elf.ELFDATA2LSB:
		o.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		o.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("found ELF byte order %v, wanted little or big endian", enc)
	}

	// The fields behind e_version differ in size.
	headerSize, offset, tail := 52, uint64(0), 46
	if o.is64 {
		headerSize, tail = 64, 58
	}
	if len(data) < headerSize {
		return nil, fmt.Errorf("found %d bytes, wanted an ELF header of %d", len(data), headerSize)
	}
	if o.is64 {
		offset = o.order.Uint64(data[40:])
	} else {
		offset = uint64(o.order.Uint32(data[32:]))
	}
	if typ := elf.Type(o.order.Uint16(data[16:])); typ != elf.ET_REL {
		return nil, fmt.Errorf("found ELF type %v, wanted %v (relocatable)", typ, elf.ET_REL)
	}
	o.machine = elf.Machine(o.order.Uint16(data[18:]))
	size := int(o.order.Uint16(data[tail:]))
	count := uint64(o.order.Uint16(data[tail+2:]))
	namesIndex := int(o.order.Uint16(data[tail+4:]))
	if size != o.entry {
		return nil, fmt.Errorf("found section headers of %d bytes, wanted %d", size, o.entry)
	}
	length := count * uint64(size)
	if offset > uint64(len(data)) || length > uint64(len(data))-offset {
		return nil, fmt.Errorf("truncated: found %d bytes, wanted %d section headers at %d", len(data), count, offset)
	}
	o.headers = data[offset : offset+length]
	names, ok := o.section(namesIndex)
	if !ok || len(names) == 0 || names[len(names)-1] != 0 {
		return nil, fmt.Errorf("found no section names in section %d of %d", namesIndex, count)
	}
	o.names = names
	return o, nil
}

// describe names what data looks like, for errors.
func describe(data []byte) string {
	switch {
	case len(data) == 0:
		return "an empty file"
	case bytes.Count(data, []byte{0}) == len(data):
		return fmt.Sprintf("%d zero bytes", len(data))
	case bytes.HasPrefix(data, []byte("version https://git-lfs")):
		return "a Git LFS pointer"
	}
	return fmt.Sprintf("%q", data[:min(len(data), 8)])
}

// sectionHeader returns the header of section i and whether there is one.
func (o *object) sectionHeader(i int) ([]byte, bool) {
	if i <= 0 || i >= len(o.headers)/o.entry {
		return nil, false
	}
	return o.headers[i*o.entry : (i+1)*o.entry], true
}

// section returns the content of section i. There is none if it takes no room
// in the file or lies outside of it.
func (o *object) section(i int) ([]byte, bool) {
	h, ok := o.sectionHeader(i)
	if !ok || elf.SectionType(o.order.Uint32(h[4:])) == elf.SHT_NOBITS {
		return nil, false
	}
	var offset, size uint64
	if o.is64 {
		offset, size = o.order.Uint64(h[24:]), o.order.Uint64(h[32:])
	} else {
		offset, size = uint64(o.order.Uint32(h[16:])), uint64(o.order.Uint32(h[20:]))
	}
	if offset > uint64(len(o.data)) || size > uint64(len(o.data))-offset {
		return nil, false
	}
	return o.data[offset : offset+size], true
}

// sectionName returns the name of section i, nil if it has none.
func (o *object) sectionName(i int) []byte {
	h, ok := o.sectionHeader(i)
	if !ok {
		return nil
	}
	return cString(o.names, o.order.Uint32(h))
}

// find returns the contents of the first sections of these names, nil for the
// ones that are missing.
func (o *object) find(names ...string) [][]byte {
	found := make([][]byte, len(names))
	for i := 1; i < len(o.headers)/o.entry; i++ {
		name := o.sectionName(i)
		for j, want := range names {
			if found[j] == nil && string(name) == want {
				found[j], _ = o.section(i)
			}
		}
	}
	return found
}

// cString returns the string at offset in a table of NUL-terminated strings,
// without its NUL. It is nil if it lies outside of the table.
func cString(table []byte, offset uint32) []byte {
	if uint64(offset) >= uint64(len(table)) {
		return nil
	}
	s := table[offset:]
	if end := bytes.IndexByte(s, 0); end >= 0 {
		s = s[:end]
	}
	return s
}

// symbol is one entry of the symbol table.
type symbol struct {
	name    uint32 // offset in the string table
	info    byte
	section uint16
	value   uint64
}

// symbolSize returns the size in bytes of an entry of the symbol table.
func (o *object) symbolSize() int {
	if o.is64 {
		return elf.Sym64Size
	}
	return elf.Sym32Size
}

// symbol decodes the entry of the symbol table that b starts with.
func (o *object) symbol(b []byte) symbol {
	if o.is64 {
		return symbol{o.order.Uint32(b), b[4], o.order.Uint16(b[6:]), o.order.Uint64(b[8:])}
	}
	return symbol{o.order.Uint32(b), b[12], o.order.Uint16(b[14:]), uint64(o.order.Uint32(b[4:]))}
}

package module

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Strip returns the module in data, an ELF file, without its debug information:
// what 'strip --strip-debug' takes away but for the symbols of source files. A
// signature is lost, as the file is no longer what was signed. data itself is
// returned if there is nothing to take.
//
// The sections stay, without content, so that nothing that refers to a section
// by its number has to change.
func Strip(data []byte) ([]byte, error) {
	const (
		ehdrSize, shdrSize = 64, 64
		shoff              = 0x28 // of the header's field with the offset of the section headers
	)
	if len(data) < ehdrSize || string(data[:4]) != elf.ELFMAG || data[4] != byte(elf.ELFCLASS64) || data[5] != byte(elf.ELFDATA2LSB) {
		return nil, fmt.Errorf("%w: not a 64-bit little-endian ELF file", ErrFormat)
	}
	le := binary.LittleEndian
	size := uint64(len(data))
	at, n, names := le.Uint64(data[shoff:]), uint64(le.Uint16(data[0x3c:])), uint64(le.Uint16(data[0x3e:]))
	if le.Uint16(data[0x3a:]) != shdrSize || at > size || n*shdrSize > size-at || names >= n {
		return nil, fmt.Errorf("%w: %d section headers at %d in a file of %d bytes", ErrFormat, n, at, size)
	}
	headers := slices.Clone(data[at : at+n*shdrSize])
	type section struct{ hdr, content []byte }
	sections := make([]section, n)
	for i := range sections {
		h := headers[i*shdrSize:][:shdrSize]
		sections[i].hdr = h
		if elf.SectionType(le.Uint32(h[4:])) == elf.SHT_NOBITS {
			continue
		}
		off, length := le.Uint64(h[0x18:]), le.Uint64(h[0x20:])
		if off > size || length > size-off {
			return nil, fmt.Errorf("%w: section %d has %d bytes at %d in a file of %d", ErrFormat, i, length, off, size)
		}
		sections[i].content = data[off : off+length]
	}
	taken := false
	for i := range sections {
		name := string(cString(sections[names].content, le.Uint32(sections[i].hdr)))
		name = strings.TrimPrefix(strings.TrimPrefix(name, ".rela"), ".rel")
		if len(sections[i].content) > 0 && (strings.HasPrefix(name, ".debug_") || name == ".gdb_index") {
			le.PutUint64(sections[i].hdr[0x20:], 0)
			sections[i].content = nil
			taken = true
		}
	}
	if !taken {
		return data, nil
	}
	out := make([]byte, ehdrSize, len(data))
	copy(out, data)
	for _, s := range sections {
		align := le.Uint64(s.hdr[0x30:])
		if align > 1<<16 || align&(align-1) != 0 {
			return nil, fmt.Errorf("%w: a section is aligned to %d", ErrFormat, align)
		}
		if elf.SectionType(le.Uint32(s.hdr[4:])) == elf.SHT_NULL {
			continue
		}
		if uint64(len(out))+align > size+1<<20 {
			return nil, fmt.Errorf("%w: its sections are aligned beyond reason", ErrFormat)
		}
		out = pad(out, align)
		le.PutUint64(s.hdr[0x18:], uint64(len(out)))
		out = append(out, s.content...)
	}
	out = pad(out, 8)
	le.PutUint64(out[shoff:], uint64(len(out)))
	return append(out, headers...), nil
}

func pad(b []byte, align uint64) []byte {
	if align == 0 {
		return b
	}
	return append(b, make([]byte, (align-uint64(len(b))%align)%align)...)
}

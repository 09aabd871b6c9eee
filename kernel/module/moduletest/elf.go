// Package moduletest writes kernel modules without code for tests: ELF files
// with the sections that package module, depmod(8) and modinfo(8) read.
package moduletest

import (
	"debug/elf"
	"encoding/binary"
	"strings"

	"github.com/kilnhq/kiln/kernel/module"
)

// ELF returns a 64-bit little-endian module with the facts of info, laid out as
// the kernel's build does. Exports have CRCs if one of them is not 0.
func ELF(info *module.Info) []byte {
	w := &writer{names: []byte{0}, strtab: []byte{0}}
	w.section("", elf.SHT_NULL, 0, nil)

	w.section(".modinfo", elf.SHT_PROGBITS, 0, modinfo(info))

	// Sections of exports; entries of 12 bytes as with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS.
	var ksymtabStrings, versions []byte
	tables := map[bool][]byte{}
	crcs := map[bool][]byte{}
	for _, e := range info.Exports {
		tables[e.GPL] = append(tables[e.GPL], make([]byte, 12)...)
		crcs[e.GPL] = binary.LittleEndian.AppendUint32(crcs[e.GPL], e.CRC)
	}
	index := map[string]uint16{}
	for _, gpl := range []bool{false, true} {
		suffix := ""
		if gpl {
			suffix = "_gpl"
		}
		if len(tables[gpl]) == 0 {
			continue
		}
		index["ksymtab"+suffix] = w.section("__ksymtab"+suffix, elf.SHT_PROGBITS, 0, tables[gpl])
		if info.Versioned() {
			index["kcrctab"+suffix] = w.section("__kcrctab"+suffix, elf.SHT_PROGBITS, 0, crcs[gpl])
		}
	}
	w.symtab = make([]byte, elf.Sym64Size)
	stringsIndex := uint16(len(w.headers))
	position := map[bool]uint64{}
	for _, e := range info.Exports {
		suffix := ""
		if e.GPL {
			suffix = "_gpl"
		}
		nameAt := len(ksymtabStrings)
		ksymtabStrings = append(ksymtabStrings, e.Name+"\x00"+e.Namespace+"\x00"...)
		w.symbol("__kstrtab_"+e.Name, elf.STB_LOCAL, stringsIndex, uint64(nameAt))
		w.symbol("__kstrtabns_"+e.Name, elf.STB_LOCAL, stringsIndex, uint64(nameAt+len(e.Name)+1))
		w.symbol("__ksymtab_"+e.Name, elf.STB_LOCAL, index["ksymtab"+suffix], position[e.GPL]*12)
		if info.Versioned() {
			w.symbol("__crc_"+e.Name, elf.STB_LOCAL, index["kcrctab"+suffix], position[e.GPL]*4)
		}
		position[e.GPL]++
	}
	locals := len(w.symtab) / elf.Sym64Size
	if ksymtabStrings != nil {
		w.section("__ksymtab_strings", elf.SHT_PROGBITS, 0, ksymtabStrings)
	}
	for _, m := range info.Imports {
		if m.CRC != 0 {
			entry := make([]byte, 64)
			binary.LittleEndian.PutUint64(entry, uint64(m.CRC))
			copy(entry[8:], m.Name)
			versions = append(versions, entry...)
		}
		if m.Name == "module_layout" {
			continue // has a version, is no symbol
		}
		bind := elf.STB_GLOBAL
		if m.Weak {
			bind = elf.STB_WEAK
		}
		w.symbol(m.Name, bind, 0, 0)
	}
	if versions != nil {
		w.section("__versions", elf.SHT_PROGBITS, 0, versions)
	}
	for _, e := range info.Exports {
		w.symbol(e.Name, elf.STB_GLOBAL, 1, 0)
	}

	strtabIndex := uint32(len(w.headers) + 1)
	w.section(".symtab", elf.SHT_SYMTAB, strtabIndex, w.symtab)
	w.headers[len(w.headers)-1].Info = uint32(locals)
	w.headers[len(w.headers)-1].Entsize = elf.Sym64Size
	w.section(".strtab", elf.SHT_STRTAB, 0, w.strtab)
	out := w.file(info.Machine)
	if info.Signed {
		out = append(out, "~Module signature appended~\n"...)
	}
	return out
}

func modinfo(i *module.Info) []byte {
	var b []byte
	add := func(key, value string) { b = append(b, key+"="+value+"\x00"...) }
	optional := func(key, value string) {
		if value != "" {
			add(key, value)
		}
	}
	optional("version", i.Version)
	optional("description", i.Description)
	optional("license", i.License)
	for _, v := range i.ImportNS {
		add("import_ns", v)
	}
	for _, v := range i.Firmware {
		add("firmware", v)
	}
	for _, v := range i.Softdeps {
		add("softdep", v)
	}
	for _, v := range i.Weakdeps {
		add("weakdep", v)
	}
	for _, p := range i.Parameters {
		if p.Type != "" {
			add("parmtype", p.Name+":"+p.Type)
		}
		add("parm", p.Name+":a parameter")
	}
	for _, v := range i.Aliases {
		add("alias", v)
	}
	add("depends", strings.Join(i.Depends, ","))
	if i.Intree {
		add("intree", "Y")
	}
	optional("name", i.Name)
	optional("vermagic", i.Vermagic)
	return b
}

type writer struct {
	headers []elf.Section64
	content [][]byte
	names   []byte
	symtab  []byte
	strtab  []byte
}

func (w *writer) section(name string, typ elf.SectionType, link uint32, content []byte) uint16 {
	h := elf.Section64{Name: uint32(len(w.names)), Type: uint32(typ), Link: link, Size: uint64(len(content)), Addralign: 1}
	if name == "" {
		h.Name = 0
		h.Addralign = 0
	} else {
		w.names = append(w.names, name+"\x00"...)
	}
	w.headers = append(w.headers, h)
	w.content = append(w.content, content)
	return uint16(len(w.headers) - 1)
}

func (w *writer) symbol(name string, bind elf.SymBind, section uint16, value uint64) {
	s := binary.LittleEndian.AppendUint32(nil, uint32(len(w.strtab)))
	s = append(s, elf.ST_INFO(bind, elf.STT_NOTYPE), 0)
	s = binary.LittleEndian.AppendUint16(s, section)
	s = binary.LittleEndian.AppendUint64(s, value)
	s = binary.LittleEndian.AppendUint64(s, 0)
	w.symtab = append(w.symtab, s...)
	w.strtab = append(w.strtab, name+"\x00"...)
}

func (w *writer) file(machine elf.Machine) []byte {
	w.section(".shstrtab", elf.SHT_STRTAB, 0, nil)
	last := len(w.headers) - 1
	w.content[last] = w.names
	w.headers[last].Size = uint64(len(w.names))

	out := make([]byte, 64)
	for i := range w.headers[1:] {
		w.headers[i+1].Off = uint64(len(out))
		out = append(out, w.content[i+1]...)
	}
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	header := elf.Header64{
		Ident:     [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:      uint16(elf.ET_REL),
		Machine:   uint16(machine),
		Version:   uint32(elf.EV_CURRENT),
		Shoff:     uint64(len(out)),
		Ehsize:    64,
		Shentsize: 64,
		Shnum:     uint16(len(w.headers)),
		Shstrndx:  uint16(last),
	}
	for _, h := range w.headers {
		out, _ = binary.Append(out, binary.LittleEndian, h)
	}
	b, _ := binary.Append(nil, binary.LittleEndian, header)
	copy(out, b)
	return out
}

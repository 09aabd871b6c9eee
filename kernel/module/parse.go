package module

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"
)

// MaxSize is the size in bytes to which Parse decompresses a module at most.
// The largest module of a distribution's kernel has 30 MB; out-of-tree modules
// with debug information have up to 400 MB.
const MaxSize = 512 << 20

// maxSymbol is the longest name of a symbol the kernel accepts (KSYM_NAME_LEN).
const maxSymbol = 511

// signatureMarker is the end of a module with a signature (CONFIG_MODULE_SIG).
const signatureMarker = "~Module signature appended~\n"

// Parse returns the facts of the module in data, the file as it is on disk.
// The compression is known by its magic number, not by the path's suffix; path
// gives the module's name if .modinfo does not, and stands for it in errors.
// The Info keeps no reference to data.
func Parse(path string, data []byte) (*Info, error) {
	return new(Parser).Parse(path, data)
}

// Parser parses modules one after another and reuses its buffers. The zero
// value is ready to use; it is not safe for concurrent use.
type Parser struct {
	dec decompressor
}

// Parse is like the function Parse.
func (p *Parser) Parse(path string, data []byte) (*Info, error) {
	data, err := p.dec.decompress(data, MaxSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err := parse(path, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrFormat, err)
	}
	return info, nil
}

func parse(path string, data []byte) (*Info, error) {
	o, err := openObject(data)
	if err != nil {
		return nil, err
	}
	sections := o.find(".modinfo", ".symtab", ".strtab", "__versions", "__ksymtab_strings")
	modinfo, symtab, strtab, versions, ksymtabStrings :=
		sections[0], sections[1], sections[2], sections[3], sections[4]
	if modinfo == nil {
		return nil, fmt.Errorf("found no section .modinfo; is it an object file that was not linked as a module?")
	}

	info := &Info{
		Name:    Name(path),
		Machine: o.machine,
		Signed:  bytes.HasSuffix(data, []byte(signatureMarker)),
	}
	info.readModinfo(modinfo)

	s := symbolReader{object: o, strtab: strtab, room: len(data)}
	if err := s.readVersions(versions); err != nil {
		return nil, err
	}
	if err := s.readSymbols(symtab); err != nil {
		return nil, err
	}
	info.Imports = s.allImports()
	info.Exports = s.allExports(ksymtabStrings)
	return info, nil
}

// readModinfo reads the strings of .modinfo.
func (i *Info) readModinfo(section []byte) {
	parameters := map[string]int{} // name -> index
	parameter := func(name string) *Parameter {
		n, ok := parameters[name]
		if !ok {
			n = len(i.Parameters)
			parameters[name] = n
			i.Parameters = append(i.Parameters, Parameter{Name: name})
		}
		return &i.Parameters[n]
	}
	for len(section) > 0 {
		var field []byte
		if end := bytes.IndexByte(section, 0); end >= 0 {
			field, section = section[:end], section[end+1:]
		} else {
			field, section = section, nil
		}
		if len(field) == 0 {
			continue
		}
		k, v, _ := bytes.Cut(field, []byte("="))
		value := func() string { return strings.ToValidUTF8(string(v), "\uFFFD") }
		switch string(k) {
		case "name":
			if len(v) > 0 {
				i.Name = Fold(value())
			}
		case "vermagic":
			i.Vermagic = value()
		case "license":
			i.License = value()
		case "version":
			i.Version = value()
		case "description":
			i.Description = value()
		case "intree":
			i.Intree = string(v) == "Y"
		case "depends":
			for _, name := range strings.Split(value(), ",") {
				if name != "" {
					i.Depends = append(i.Depends, Fold(name))
				}
			}
		case "alias":
			i.Aliases = append(i.Aliases, value())
		case "softdep":
			i.Softdeps = append(i.Softdeps, value())
		case "weakdep":
			i.Weakdeps = append(i.Weakdeps, value())
		case "firmware":
			i.Firmware = append(i.Firmware, value())
		case "import_ns":
			i.ImportNS = append(i.ImportNS, value())
		case "parm":
			name, _, _ := strings.Cut(value(), ":")
			parameter(name)
		case "parmtype":
			name, typ, _ := strings.Cut(value(), ":")
			parameter(name).Type = typ
		}
	}
}

// symbolReader collects the imports and exports of a module.
type symbolReader struct {
	*object
	strtab []byte

	// room is how many bytes of names may yet be kept. Distinct names fit in
	// the file; a file whose symbols all share a long name could otherwise
	// make us allocate many times its size.
	room int

	versions     Imports        // the entries of __versions
	versionIndex map[string]int // by name
	used         []bool         // which versions belong to an undefined symbol

	imports Imports
	crcs    Exports           // from __crc_X
	entries []string          // X of the symbols __ksymtab_X
	gpl     map[string]bool   // X of those in __ksymtab_gpl
	spaces  map[string]string // X of __kstrtabns_X -> name space
}

// name returns a copy of a symbol's name.
func (s *symbolReader) name(b []byte) (string, error) {
	if len(b) > maxSymbol {
		return "", fmt.Errorf("found a symbol of more than %d bytes, %q…", maxSymbol, b[:20])
	}
	for _, c := range b {
		// '@' would begin a name space in encoded Exports.
		if c <= ' ' || c >= 0x7f || c == '@' {
			return "", fmt.Errorf("found a symbol %q, wanted printable ASCII without '@'", b)
		}
	}
	if s.room -= len(b); s.room < 0 {
		return "", fmt.Errorf("found more symbol names than the file has bytes")
	}
	return string(b), nil
}

func (s *symbolReader) readVersions(section []byte) error {
	const entrySize = 64
	if len(section)%entrySize != 0 {
		return fmt.Errorf("found a section __versions of %d bytes, wanted a multiple of %d", len(section), entrySize)
	}
	n := len(section) / entrySize
	s.versions = make(Imports, 0, n)
	s.versionIndex = make(map[string]int, n)
	for ; len(section) > 0; section = section[entrySize:] {
		// The CRC is an unsigned long, of which 32 bits are used.
		var crc uint32
		field := section[4:entrySize]
		if s.is64 {
			crc, field = uint32(s.order.Uint64(section)), section[8:entrySize]
		} else {
			crc = s.order.Uint32(section)
		}
		name, err := s.name(cString(field, 0))
		if err != nil {
			return err
		}
		if _, dup := s.versionIndex[name]; dup || name == "" {
			continue
		}
		s.versionIndex[name] = len(s.versions)
		s.versions = append(s.versions, Import{Name: name, CRC: crc})
	}
	s.used = make([]bool, len(s.versions))
	return nil
}

func (s *symbolReader) readSymbols(symtab []byte) error {
	size := s.symbolSize()
	if len(symtab)%size != 0 {
		return fmt.Errorf("found a section .symtab of %d bytes, wanted a multiple of %d", len(symtab), size)
	}
	if len(symtab) > 0 {
		symtab = symtab[size:] // the first is reserved
	}
	for ; len(symtab) > 0; symtab = symtab[size:] {
		sym := s.symbol(symtab)
		if uint64(sym.name) >= uint64(len(s.strtab)) {
			return fmt.Errorf("found a symbol's name at %d of %d bytes of .strtab", sym.name, len(s.strtab))
		}
		name := s.strtab[sym.name:]
		if sym.section == uint16(elf.SHN_UNDEF) && name[0] != 0 {
			if err := s.undefined(sym, name); err != nil {
				return err
			}
		}
		if name[0] == '_' && len(name) > 1 && name[1] == '_' {
			if err := s.special(sym, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// trim cuts the tail of a string table at the end of its first string, looking
// no further than the longest name.
func trim(b []byte) []byte {
	if end := bytes.IndexByte(b[:min(len(b), maxSymbol+1)], 0); end >= 0 {
		return b[:end]
	}
	return b
}

func (s *symbolReader) undefined(sym symbol, name []byte) error {
	name = trim(name)
	m := Import{Weak: elf.ST_BIND(sym.info) == elf.STB_WEAK}
	if n, ok := s.versionIndex[string(name)]; ok {
		m.Name, m.CRC = s.versions[n].Name, s.versions[n].CRC
		s.used[n] = true
	} else {
		var err error
		if m.Name, err = s.name(name); err != nil {
			return err
		}
	}
	s.imports = append(s.imports, m)
	return nil
}

// special handles the symbols that describe exports.
func (s *symbolReader) special(sym symbol, name []byte) error {
	if rest, ok := bytes.CutPrefix(name, []byte("__crc_")); ok {
		export, err := s.name(trim(rest))
		if err != nil || export == "" {
			return err
		}
		s.crcs = append(s.crcs, Export{Name: export, CRC: s.crc(sym)})
		return nil
	}
	if rest, ok := bytes.CutPrefix(name, []byte("__ksymtab_")); ok {
		section := string(s.sectionName(int(sym.section)))
		if !strings.HasPrefix(section, "__ksymtab") && !strings.HasPrefix(section, "___ksymtab") {
			return nil
		}
		export, err := s.name(trim(rest))
		if err != nil || export == "" {
			return err
		}
		s.entries = append(s.entries, export)
		// "__ksymtab_gpl", and "___ksymtab_gpl+name" before modules are linked
		if strings.Contains(section, "_gpl") {
			if s.gpl == nil {
				s.gpl = map[string]bool{}
			}
			s.gpl[export] = true
		}
		return nil
	}
	if rest, ok := bytes.CutPrefix(name, []byte("__kstrtabns_")); ok {
		strings, ok := s.section(int(sym.section))
		if !ok || sym.value >= uint64(len(strings)) || strings[sym.value] == 0 {
			return nil
		}
		space, err := s.name(trim(strings[sym.value:]))
		if err != nil {
			return err
		}
		export, err := s.name(trim(rest))
		if err != nil {
			return err
		}
		if s.spaces == nil {
			s.spaces = map[string]string{}
		}
		s.spaces[export] = space
	}
	return nil
}

// crc returns the value of a symbol __crc_X: its absolute value in older
// kernels, the place of 4 bytes in __kcrctab since 5.18.
func (s *symbolReader) crc(sym symbol) uint32 {
	if sym.section == uint16(elf.SHN_ABS) || sym.section == uint16(elf.SHN_UNDEF) {
		return uint32(sym.value)
	}
	section, ok := s.section(int(sym.section))
	if !ok || uint64(len(section)) < 4 || sym.value > uint64(len(section))-4 {
		return 0
	}
	return s.order.Uint32(section[sym.value:])
}

func (s *symbolReader) allImports() Imports {
	imports := s.imports
	for i, v := range s.versions {
		if !s.used[i] {
			imports = append(imports, v)
		}
	}
	return imports
}

// allExports returns the exports: by their CRCs or, in kernels without
// CONFIG_MODVERSIONS, by their __ksymtab entries or, where local symbols were
// stripped, by the strings those refer to.
func (s *symbolReader) allExports(ksymtabStrings []byte) Exports {
	exports := s.crcs
	if len(exports) == 0 {
		for _, name := range s.entries {
			exports = append(exports, Export{Name: name})
		}
	}
	if len(exports) == 0 {
		for _, b := range bytes.Split(ksymtabStrings, []byte{0}) {
			if len(b) == 0 {
				continue
			}
			if name, err := s.name(b); err == nil {
				exports = append(exports, Export{Name: name})
			}
		}
	}
	for i := range exports {
		e := &exports[i]
		e.GPL = s.gpl[e.Name]
		e.Namespace = s.spaces[e.Name]
	}
	return exports
}

package closure

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Bounds on what is read of a file.
const (
	maxInterp  = 4096     // bytes of an interpreter's path
	maxDynamic = 1 << 16  // entries of a dynamic section
	maxStrings = 32 << 20 // bytes of a dynamic string table
	maxNeeds   = 1 << 16  // version needs
)

// binaryFile is what a program loader looks at in an executable or a shared
// object. All of it is found through program headers, as the loader finds it;
// section headers may be stripped.
type binaryFile struct {
	machine elf.Machine
	class   elf.Class
	interp  string   // "" if there is none
	needed  []string // DT_NEEDED
	rpath   []string // DT_RPATH and DT_RUNPATH, split at colons
	glibc   string   // a GLIBC_ version that is needed, or ""
}

// errNotELF is returned by readELF for a file that is no executable or shared
// object.
var errNotELF = errors.New("not an ELF executable or shared object")

func isELF(c tree.Content) bool {
	magic := make([]byte, 4)
	n, _ := c.ReadAt(magic, 0)
	return n == 4 && string(magic) == elf.ELFMAG
}

func readELF(c tree.Content) (b *binaryFile, err error) {
	f, err := elf.NewFile(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		return nil, err
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, errNotELF
	}
	b = &binaryFile{machine: f.Machine, class: f.Class}
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			if p.Filesz > maxInterp {
				return nil, fmt.Errorf("an interpreter path of %d bytes", p.Filesz)
			}
			path := make([]byte, p.Filesz)
			if err := readFull(p, path, 0); err != nil {
				return nil, fmt.Errorf("interpreter path: %w", err)
			}
			b.interp = strings.TrimRight(string(path), "\x00")
		case elf.PT_DYNAMIC:
			if err := b.readDynamic(f, p); err != nil {
				return nil, fmt.Errorf("dynamic section: %w", err)
			}
		}
	}
	return b, nil
}

func (b *binaryFile) readDynamic(f *elf.File, p *elf.Prog) error {
	word := 8
	if f.Class == elf.ELFCLASS32 {
		word = 4
	}
	if p.Filesz > uint64(maxDynamic*2*word) {
		return fmt.Errorf("%d bytes", p.Filesz)
	}
	data := make([]byte, p.Filesz)
	if err := readFull(p, data, 0); err != nil {
		return err
	}
	var needed, paths []uint64
	tags := map[elf.DynTag]uint64{}
	for ; len(data) >= 2*word; data = data[2*word:] {
		tag, val := elf.DynTag(number(f.ByteOrder, data[:word])), number(f.ByteOrder, data[word:2*word])
		if tag == elf.DT_NULL {
			break
		}
		switch tag {
		case elf.DT_NEEDED:
			needed = append(needed, val)
		case elf.DT_RPATH, elf.DT_RUNPATH:
			paths = append(paths, val)
		default:
			tags[tag] = val
		}
	}
	if len(needed) == 0 && len(paths) == 0 && tags[elf.DT_VERNEED] == 0 {
		return nil
	}
	size := tags[elf.DT_STRSZ]
	if size > maxStrings {
		return fmt.Errorf("a string table of %d bytes", size)
	}
	text, err := memory(f, tags[elf.DT_STRTAB], size)
	if err != nil {
		return fmt.Errorf("string table: %w", err)
	}
	for _, off := range needed {
		s, err := cstring(text, off)
		if err != nil {
			return err
		}
		b.needed = append(b.needed, s)
	}
	for _, off := range paths {
		s, err := cstring(text, off)
		if err != nil {
			return err
		}
		b.rpath = append(b.rpath, strings.Split(s, ":")...)
	}
	return b.readVersions(f, tags[elf.DT_VERNEED], tags[elf.DT_VERNEEDNUM], text)
}

// readVersions looks for GLIBC_ among the symbol versions needed: a list of
// Verneed records, 16 bytes each, with a list of Vernaux records, 16 bytes
// each. Both are the same for 32 and 64 bit.
func (b *binaryFile) readVersions(f *elf.File, addr, count uint64, text []byte) error {
	left := maxNeeds
	for range count {
		rec, err := memory(f, addr, 16)
		if err != nil {
			return fmt.Errorf("version needs: %w", err)
		}
		aux := addr + uint64(f.ByteOrder.Uint32(rec[8:]))
		for range f.ByteOrder.Uint16(rec[2:]) {
			if left--; left < 0 {
				return fmt.Errorf("more than %d version needs", maxNeeds)
			}
			need, err := memory(f, aux, 16)
			if err != nil {
				return fmt.Errorf("version needs: %w", err)
			}
			name, err := cstring(text, uint64(f.ByteOrder.Uint32(need[8:])))
			if err != nil {
				return err
			}
			if strings.HasPrefix(name, "GLIBC_") && b.glibc == "" {
				b.glibc = name
			}
			aux += uint64(f.ByteOrder.Uint32(need[12:]))
		}
		next := uint64(f.ByteOrder.Uint32(rec[12:]))
		if left--; next == 0 || left < 0 {
			break
		}
		addr += next
	}
	return nil
}

// memory returns n bytes that the loader would map at addr.
func memory(f *elf.File, addr, n uint64) ([]byte, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < p.Filesz && n <= p.Filesz-(addr-p.Vaddr) {
			b := make([]byte, n)
			return b, readFull(p, b, int64(addr-p.Vaddr))
		}
	}
	return nil, fmt.Errorf("address %#x with %d bytes is in no segment", addr, n)
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		return err
	}
	return nil
}

func number(order binary.ByteOrder, b []byte) uint64 {
	if len(b) == 4 {
		return uint64(order.Uint32(b))
	}
	return order.Uint64(b)
}

func cstring(text []byte, off uint64) (string, error) {
	if off < uint64(len(text)) {
		if s, _, ok := strings.Cut(string(text[off:min(uint64(len(text)), off+4097)]), "\x00"); ok {
			return s, nil
		}
	}
	return "", fmt.Errorf("no string at %d in a table of %d bytes", off, len(text))
}

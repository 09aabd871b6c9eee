package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrFormat is wrapped by the errors for a file that is not the kind of PE file
// it has to be.
var ErrFormat = errors.New("not a usable PE file")

// Offsets of the fields that are read or changed, from the beginning of the
// structure they are in. All numbers are little-endian.
const (
	dosNewHeader = 0x3C // u32, file offset of the PE signature

	// From the PE signature: "PE\0\0", then the COFF header.
	coffMachine      = 4  // u16
	coffSections     = 6  // u16
	coffSymbolTable  = 12 // u32, file offset
	coffSymbols      = 16 // u32
	coffOptionalSize = 20 // u16
	coffSize         = 24 // with the signature

	// From the optional header, which is always of the PE32+ kind.
	optMagic            = 0  // u16, 0x20B
	optInitializedData  = 8  // u32
	optSectionAlignment = 32 // u32
	optFileAlignment    = 36 // u32
	optImageSize        = 56 // u32
	optHeadersSize      = 60 // u32
	optCheckSum         = 64 // u32
	optDirectories      = 108
	optDirectoryTable   = 112 // 8 bytes each: address u32, size u32
	dirSecurity         = 4   // the only one whose address is a file offset
	dirDebug            = 6

	// From a section header.
	secName            = 0  // 8 bytes, padded with NUL
	secVirtualSize     = 8  // u32
	secVirtualAddress  = 12 // u32
	secRawSize         = 16 // u32
	secRawOffset       = 20 // u32
	secRelocations     = 24 // u32, file offset; u32 file offset of line numbers
	secCounts          = 32 // u16 relocations, u16 line numbers
	secCharacteristics = 36 // u32
	sectionHeaderSize  = 40

	debugEntrySize = 28
	debugRawOffset = 24 // u32, file offset
)

const (
	machineAMD64 = 0x8664
	machineARM64 = 0xAA64

	magicPE32Plus = 0x20B

	// maxHeaders bounds what is read as headers: 65,535 sections fit.
	maxHeaders = 4 << 20
)

var le = binary.LittleEndian

// header is the decoded head of a PE32+ file.
type header struct {
	raw      []byte // the file up to the end of the section table
	pe       int    // offset of the PE signature
	opt      int    // offset of the optional header
	table    int    // offset of the section table
	dirs     int    // entries in the data directory
	sections []sectionHeader
}

type sectionHeader struct {
	name                         string
	virtualSize, virtualAddress  uint32
	rawSize, rawOffset           uint32
	characteristics, relocations uint32
}

func (h *header) machine() uint16          { return le.Uint16(h.raw[h.pe+coffMachine:]) }
func (h *header) sectionAlignment() uint32 { return le.Uint32(h.raw[h.opt+optSectionAlignment:]) }
func (h *header) fileAlignment() uint32    { return le.Uint32(h.raw[h.opt+optFileAlignment:]) }
func (h *header) headersSize() uint32      { return le.Uint32(h.raw[h.opt+optHeadersSize:]) }

// directory returns the address and size in entry i of the data directory.
func (h *header) directory(i int) (address, size uint32) {
	if i >= h.dirs {
		return 0, 0
	}
	e := h.raw[h.opt+optDirectoryTable+8*i:]
	return le.Uint32(e), le.Uint32(e[4:])
}

// arch names the machine as GOARCH does.
func arch(machine uint16) string {
	switch machine {
	case machineAMD64:
		return "amd64"
	case machineARM64:
		return "arm64"
	}
	return fmt.Sprintf("machine 0x%04x", machine)
}

// readHeader reads the headers of the PE file of size bytes in r.
func readHeader(r io.ReaderAt, size int64) (*header, error) {
	dos := make([]byte, dosNewHeader+4)
	if size < int64(len(dos)) {
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrFormat, size)
	}
	if err := readFull(r, dos, 0); err != nil {
		return nil, err
	}
	if string(dos[:2]) != "MZ" {
		return nil, fmt.Errorf("%w: begins with %q, want \"MZ\"", ErrFormat, dos[:2])
	}
	pe := int64(le.Uint32(dos[dosNewHeader:]))
	if pe < int64(len(dos)) || pe > maxHeaders || pe+coffSize > size {
		return nil, fmt.Errorf("%w: PE header at %d in a file of %d bytes", ErrFormat, pe, size)
	}
	coff := make([]byte, coffSize)
	if err := readFull(r, coff, pe); err != nil {
		return nil, err
	}
	if string(coff[:4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("%w: signature %q at %d, want \"PE\\x00\\x00\"", ErrFormat, coff[:4], pe)
	}
	optSize := int64(le.Uint16(coff[coffOptionalSize:]))
	if optSize < optDirectoryTable {
		return nil, fmt.Errorf("%w: optional header of %d bytes, want at least %d", ErrFormat, optSize, optDirectoryTable)
	}
	n := int64(le.Uint16(coff[coffSections:]))
	h := &header{pe: int(pe), opt: int(pe) + coffSize, table: int(pe + coffSize + optSize)}
	end := int64(h.table) + n*sectionHeaderSize
	if end > size {
		return nil, fmt.Errorf("%w: table of %d sections ends at %d in a file of %d bytes", ErrFormat, n, end, size)
	}
	h.raw = make([]byte, end)
	if err := readFull(r, h.raw, 0); err != nil {
		return nil, err
	}
	if m := le.Uint16(h.raw[h.opt+optMagic:]); m != magicPE32Plus {
		return nil, fmt.Errorf("%w: optional header magic 0x%x, want 0x%x (PE32+)", ErrFormat, m, magicPE32Plus)
	}
	h.dirs = int(min(le.Uint32(h.raw[h.opt+optDirectories:]), uint32(optSize-optDirectoryTable)/8))
	for i := range int(n) {
		s := h.raw[h.table+i*sectionHeaderSize:][:sectionHeaderSize]
		h.sections = append(h.sections, sectionHeader{
			name:            sectionName(s),
			virtualSize:     le.Uint32(s[secVirtualSize:]),
			virtualAddress:  le.Uint32(s[secVirtualAddress:]),
			rawSize:         le.Uint32(s[secRawSize:]),
			rawOffset:       le.Uint32(s[secRawOffset:]),
			relocations:     le.Uint32(s[secRelocations:]),
			characteristics: le.Uint32(s[secCharacteristics:]),
		})
	}
	return h, nil
}

func sectionName(s []byte) string {
	name, _, _ := bytes.Cut(s[secName:secName+8], []byte{0})
	return strings.ToValidUTF8(string(name), "?")
}

// readFull fills p from offset off of r.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

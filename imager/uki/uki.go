// Package uki assembles and reads Unified Kernel Images.
//
// A Unified Kernel Image is one UEFI program that holds all that a machine needs
// to boot: systemd-stub, a PE32+ file, to which sections were appended. The
// stub finds .linux, .initrd, .cmdline and others by name in its own image and
// starts the kernel. Because it is one file, one signature covers everything.
// The names are those of the UAPI Group's "Unified Kernel Image" specification;
// the file format is Microsoft's "PE Format".
//
// Appending a section means writing one 40-byte section header after the last
// one, and the content after the last section's content. Addresses in memory
// are multiples of 4 KiB, offsets in the file of the stub's FileAlignment
// (512 bytes), and between the contents there is nothing, as a signature
// requires it. The content of .sbat alone, which every stub has already, is
// lengthened in its place.
package uki

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
)

// Section is a named piece of an image, such as the kernel in ".linux".
type Section struct {
	Name    string // at most 8 bytes
	Content extent.Source
}

// ErrSection is wrapped by the errors for sections that cannot be appended.
var ErrSection = errors.New("cannot add section")

const (
	pageSize = 4096 // least alignment of an appended section in memory

	// Characteristics of appended sections.
	initializedDataRead = 0x40000040
	codeExecuteRead     = 0x60000020

	maxSections = 96 // more, the PE loaders of some firmware refuse
)

// Build returns the image made of the stub, which is systemd-stub for amd64 or
// arm64, with the sections appended in their order. Contents are not read or
// copied, the image refers to them.
//
// A section of the same name may occur again only after a ".profile" section,
// which begins another profile of the image. The stub must not change as long
// as the image is used. A section ".sbat" has lines that are added to those of
// the stub; that of systemd 257 has room for some 250 bytes.
//
// The field CheckSum of the image is 0, because the right value would need all
// contents to be read; UEFI firmware does not look at it.
func Build(stub []byte, sections []Section) (*extent.Map, error) {
	h, err := readHeader(bytes.NewReader(stub), int64(len(stub)))
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	body, err := checkStub(h, stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	if stub, sections, err = extendSBAT(h, stub, sections); err != nil {
		return nil, err
	}
	if err := checkSections(h, sections); err != nil {
		return nil, err
	}
	head, shift, err := makeRoom(h, stub[:body.start], len(sections), body.memoryStart)
	if err != nil {
		return nil, err
	}
	if shift > 0 {
		// A stub of a few KiB is the only content that is ever copied.
		stub = bytes.Clone(stub)
		if err := moveDebug(h, stub, shift); err != nil {
			return nil, fmt.Errorf("stub: %w", err)
		}
	}

	fileAlign := int64(h.fileAlignment())
	memoryAlign := max(int64(h.sectionAlignment()), pageSize)
	raw := extent.Align(body.end+shift, fileAlign)
	address := extent.Align(body.memoryEnd, memoryAlign)
	var added int64
	offsets := make([]int64, len(sections))
	for i, s := range sections {
		n := s.Content.Size()
		if max(raw, address)+extent.Align(n, memoryAlign) > math.MaxUint32 {
			return nil, fmt.Errorf("%w %s: with its %d bytes the image reaches 4 GiB, the limit of the format", ErrSection, s.Name, n)
		}
		// The next one begins on a page of the file, so that another file system can
		// point to it.
		rawSize := extent.Align(raw+n, max(fileAlign, pageSize)) - raw
		e := head[h.table+(len(h.sections)+i)*sectionHeaderSize:][:sectionHeaderSize]
		copy(e[secName:], s.Name)
		le.PutUint32(e[secVirtualSize:], uint32(n))
		le.PutUint32(e[secVirtualAddress:], uint32(address))
		le.PutUint32(e[secRawSize:], uint32(rawSize))
		le.PutUint32(e[secRawOffset:], uint32(raw))
		le.PutUint32(e[secCharacteristics:], characteristics(s.Name))
		offsets[i] = raw
		raw += rawSize
		added += rawSize
		address = extent.Align(address+n, memoryAlign)
	}

	le.PutUint16(head[h.pe+coffSections:], uint16(len(h.sections)+len(sections)))
	le.PutUint32(head[h.pe+coffSymbolTable:], 0)
	le.PutUint32(head[h.pe+coffSymbols:], 0)
	le.PutUint32(head[h.opt+optImageSize:], uint32(address))
	le.PutUint32(head[h.opt+optCheckSum:], 0)
	data := le.Uint32(head[h.opt+optInitializedData:])
	le.PutUint32(head[h.opt+optInitializedData:], data+uint32(added))

	image := extent.New(raw)
	if err := image.PutBytes(0, head); err != nil {
		return nil, err
	}
	if err := image.PutBytes(body.start+shift, stub[body.start:body.end]); err != nil {
		return nil, err
	}
	for i, s := range sections {
		if err := image.Put(offsets[i], s.Content); err != nil {
			return nil, fmt.Errorf("%w %s: %w", ErrSection, s.Name, err)
		}
	}
	return image, nil
}

// characteristics are what the PE loader makes of a section in memory.
func characteristics(name string) uint32 {
	if name == ".linux" {
		return codeExecuteRead
	}
	return initializedDataRead
}

// stubBody is where the sections of a stub lie.
type stubBody struct {
	start, end             int64 // in the file
	memoryStart, memoryEnd int64
}

// checkStub says whether h, the headers of stub, belong to a systemd-stub to
// which sections can be appended. What follows the last section (Debian's stub
// of systemd 252 carries COFF symbols there) is not part of the body: it would
// be a gap in the image.
func checkStub(h *header, stub []byte) (stubBody, error) {
	if m := h.machine(); m != machineAMD64 && m != machineARM64 {
		return stubBody{}, fmt.Errorf("%w: built for %s, want amd64 (0x%x) or arm64 (0x%x)", ErrFormat, arch(m), machineAMD64, machineARM64)
	}
	m, err := Read(bytes.NewReader(stub), int64(len(stub)))
	if err != nil {
		return stubBody{}, err
	}
	if info := m.LoaderInfo(); !strings.HasPrefix(info, "systemd-stub") {
		return stubBody{}, fmt.Errorf("%w: it says of itself in .sdmagic %q, want \"systemd-stub\" (the file is called linuxx64.efi.stub or linuxaa64.efi.stub)", ErrFormat, info)
	}
	if m.Signed {
		return stubBody{}, fmt.Errorf("%w: it is signed, which would not survive; use the unsigned stub", ErrFormat)
	}
	for _, a := range []struct {
		name  string
		value uint32
		least uint32
	}{
		{"FileAlignment", h.fileAlignment(), 512},
		{"SectionAlignment", h.sectionAlignment(), 512},
	} {
		if a.value&(a.value-1) != 0 || a.value < a.least || a.value > 64<<10 {
			return stubBody{}, fmt.Errorf("%w: %s is %d, want a power of two from %d to 65536", ErrFormat, a.name, a.value, a.least)
		}
	}
	b := stubBody{start: math.MaxInt64, memoryStart: math.MaxInt64}
	for _, s := range h.sections {
		if s.relocations != 0 {
			return stubBody{}, fmt.Errorf("%w: section %s has COFF relocations; it is an object file", ErrFormat, s.name)
		}
		b.memoryStart = min(b.memoryStart, int64(s.virtualAddress))
		b.memoryEnd = max(b.memoryEnd, int64(s.virtualAddress)+int64(max(s.virtualSize, s.rawSize)))
		if s.rawSize == 0 {
			continue
		}
		b.start = min(b.start, int64(s.rawOffset))
		b.end = max(b.end, int64(s.rawOffset)+int64(s.rawSize))
	}
	size := int64(h.headersSize())
	if b.end > int64(len(stub)) || b.memoryEnd > math.MaxUint32 {
		return stubBody{}, fmt.Errorf("%w: sections end at %d (memory: %d) in a file of %d bytes", ErrFormat, b.end, b.memoryEnd, len(stub))
	}
	if size < int64(len(h.raw)) || size > b.start || size > b.memoryStart || b.start%int64(h.fileAlignment()) != 0 {
		return stubBody{}, fmt.Errorf("%w: headers of %d bytes before sections at %d (memory: %d)", ErrFormat, size, b.start, b.memoryStart)
	}
	return b, nil
}

// repeatable says whether the specification lets one profile have several
// sections of that name, of which the stub chooses by the machine it runs on.
func repeatable(name string) bool { return name == ".dtbauto" || name == ".efifw" }

// checkSections refuses sections that the stub would not find or would confuse.
func checkSections(h *header, sections []Section) error {
	if n := len(h.sections) + len(sections); n > maxSections {
		return fmt.Errorf("%w: %d sections with those of the stub, the limit is %d", ErrSection, n, maxSections)
	}
	const inStub = "the stub has a section of that name"
	seen := map[string]string{}
	forget := func() {
		clear(seen)
		for _, s := range h.sections {
			seen[s.name] = inStub
		}
	}
	forget()
	for _, s := range sections {
		switch {
		case s.Name == "" || len(s.Name) > 8 || strings.Trim(s.Name, printable) != "":
			return fmt.Errorf("%w %q: a name has 1 to 8 letters, digits, dots or underscores", ErrSection, s.Name)
		case s.Content == nil || s.Content.Size() == 0:
			return fmt.Errorf("%w %s: it is empty; leave it out", ErrSection, s.Name)
		case s.Content.Size() < 0 || s.Content.Size() > math.MaxUint32:
			return fmt.Errorf("%w %s: %d bytes, the limit of the format is 4 GiB", ErrSection, s.Name, s.Content.Size())
		}
		if s.Name == ".profile" {
			forget()
		}
		if why := seen[s.Name]; why != "" && !repeatable(s.Name) {
			return fmt.Errorf("%w %s: %s", ErrSection, s.Name, why)
		}
		seen[s.Name] = "it is there twice in one profile"
	}
	return nil
}

const printable = "._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

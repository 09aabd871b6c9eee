package uki

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
)

const sbatName = ".sbat"

// extendSBAT adds the lines of the section .sbat among sections to those that the
// stub has: revocation data, see shim's SBAT.md, of which a file must not have
// two sections. They go into the room that alignment leaves behind its content.
// It returns a copy of the stub, the headers of which are in h then, and the other
// sections.
func extendSBAT(h *header, stub []byte, sections []Section) ([]byte, []Section, error) {
	at := slices.IndexFunc(sections, func(s Section) bool { return s.Name == sbatName })
	if at < 0 {
		return stub, sections, nil
	}
	n := slices.IndexFunc(h.sections, func(s sectionHeader) bool { return s.name == sbatName })
	if n < 0 {
		return stub, sections, nil // it is one like all others
	}
	lines := make([]byte, min(sections[at].Content.Size(), pageSize))
	if _, err := io.ReadFull(extent.Reader(sections[at].Content), lines); err != nil {
		return nil, nil, fmt.Errorf("%w %s: %w", ErrSection, sbatName, err)
	}
	s := h.sections[n]
	old := bytes.TrimRight(stub[s.rawOffset:][:min(s.virtualSize, s.rawSize)], "\x00")
	end := s.rawSize // or where the next section begins in memory
	for _, other := range h.sections {
		if other.virtualAddress > s.virtualAddress {
			end = min(end, other.virtualAddress-s.virtualAddress)
		}
	}
	if room := int(end) - len(old); len(lines) > room {
		return nil, nil, fmt.Errorf("%w %s: %d bytes, the stub has room for %d", ErrSection, sbatName, sections[at].Content.Size(), room)
	}
	stub = bytes.Clone(stub)
	size := uint32(len(old) + len(lines))
	copy(stub[s.rawOffset+uint32(len(old)):], lines)
	clear(stub[s.rawOffset+size : s.rawOffset+s.rawSize])
	h.sections[n].virtualSize = size
	for _, headers := range [][]byte{h.raw, stub} {
		le.PutUint32(headers[h.table+n*sectionHeaderSize+secVirtualSize:], size)
	}
	return stub, slices.Delete(slices.Clone(sections), at, at+1), nil
}

package uki

import (
	"bytes"
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
)

// makeRoom returns a copy of head, the bytes of a stub before its first
// section's content, with n free entries at the end of the section table.
// The headers must stay below limit, the address of the first section, as they
// are mapped at address 0.
//
// Where there are too few free entries, as in the stub of systemd 252 (7), the
// contents move back in the file by shift bytes, a multiple of FileAlignment,
// and their offsets in head are raised. Addresses in memory do not change.
func makeRoom(h *header, head []byte, n int, limit int64) (grown []byte, shift int64, err error) {
	want := int64(len(h.raw)) + int64(n)*sectionHeaderSize
	if want <= int64(h.headersSize()) {
		grown = bytes.Clone(head)
		clear(grown[len(h.raw):want])
		return grown, 0, nil
	}
	size := extent.Align(want, int64(h.fileAlignment()))
	if size > limit {
		return nil, 0, fmt.Errorf("%w: the stub has room for %d more sections, %d are wanted", ErrSection, (limit-int64(len(h.raw)))/sectionHeaderSize, n)
	}
	shift = max(0, size-int64(len(head)))
	grown = make([]byte, int64(len(head))+shift)
	copy(grown, h.raw)
	le.PutUint32(grown[h.opt+optHeadersSize:], uint32(size))
	for i, s := range h.sections {
		if s.rawSize > 0 {
			e := grown[h.table+i*sectionHeaderSize:]
			le.PutUint32(e[secRawOffset:], s.rawOffset+uint32(shift))
		}
	}
	return grown, shift, nil
}

// moveDebug adds shift to the file offsets in the debug directory of stub. It
// is the one structure inside the contents that holds file offsets.
func moveDebug(h *header, stub []byte, shift int64) error {
	address, size := h.directory(dirDebug)
	if size == 0 {
		return nil
	}
	for _, s := range h.sections {
		if address < s.virtualAddress || int64(address)+int64(size) > int64(s.virtualAddress)+int64(s.rawSize) {
			continue
		}
		dir := stub[int64(s.rawOffset)+int64(address-s.virtualAddress):][:size]
		for ; len(dir) >= debugEntrySize; dir = dir[debugEntrySize:] {
			if off := le.Uint32(dir[debugRawOffset:]); off != 0 {
				le.PutUint32(dir[debugRawOffset:], off+uint32(shift))
			}
		}
		return nil
	}
	return fmt.Errorf("%w: debug directory at address 0x%x is in no section", ErrFormat, address)
}

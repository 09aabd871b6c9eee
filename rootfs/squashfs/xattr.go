package squashfs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Limits of Linux, see xattr(7).
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

// xattrTable holds the different sets of extended attributes.
type xattrTable struct {
	list []xattrSet
	sets map[string]uint32 // encoded set to index in list
}

type xattrSet struct {
	encoded string
	count   uint32
	size    uint32 // of the full names, each with a NUL, and of the values, in bytes
}

// xattrPrefixes returns the name spaces that the format knows; the type of an
// attribute is the index.
func xattrPrefixes() []string { return []string{"user.", "trusted.", "security."} }

// add returns the index of a set, noIndex for an empty one.
func (t *xattrTable) add(xattrs map[string][]byte) (uint32, error) {
	if len(xattrs) == 0 {
		return noIndex, nil
	}
	le := binary.LittleEndian
	var p []byte
	set := xattrSet{count: uint32(len(xattrs))}
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		value := xattrs[name]
		kind := slices.IndexFunc(xattrPrefixes(), func(p string) bool { return strings.HasPrefix(name, p) })
		if kind < 0 {
			return 0, fmt.Errorf("extended attribute %q: want a name that begins with %s: %w", name, strings.Join(xattrPrefixes(), ", "), ErrUnsupported)
		}
		rest := strings.TrimPrefix(name, xattrPrefixes()[kind])
		if rest == "" || len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0 || len(value) > maxXattrValue {
			return 0, fmt.Errorf("extended attribute %q: name of %d bytes, value of %d: want at most %d and %d: %w",
				name, len(name), len(value), maxXattrName, maxXattrValue, ErrUnsupported)
		}
		p = le.AppendUint16(p, uint16(kind))
		p = le.AppendUint16(p, uint16(len(rest)))
		p = append(p, rest...)
		p = le.AppendUint32(p, uint32(len(value)))
		p = append(p, value...)
		set.size += uint32(len(name) + 1 + len(value))
	}
	set.encoded = string(p)
	i, ok := t.sets[set.encoded]
	if !ok {
		if len(t.list) == math.MaxUint32-1 {
			return 0, fmt.Errorf("more than %d sets of extended attributes: %w", len(t.list), ErrUnsupported)
		}
		i = uint32(len(t.list))
		t.list = append(t.list, set)
		t.sets[set.encoded] = i
	}
	return i, nil
}

// writeXattrs writes the sets, a table of where each begins, and a list of
// where that table's blocks are. It returns the position of the list.
func (o *output) writeXattrs(t *xattrTable, comp *compressor) int64 {
	le := binary.LittleEndian
	m := &metadata{comp: comp}
	var ids []byte
	for _, set := range t.list {
		ids = le.AppendUint64(ids, m.ref())
		ids = le.AppendUint32(ids, set.count)
		ids = le.AppendUint32(ids, set.size)
		m.write([]byte(set.encoded))
	}
	start := o.writeMetadata(m)
	head := le.AppendUint64(nil, uint64(start))
	head = le.AppendUint32(head, uint32(len(t.list)))
	head = le.AppendUint32(head, 0)
	return o.writeIndexed(comp, ids, head)
}

package depmod

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// A .bin file maps 7-bit ASCII keys to lists of values by a radix trie. All
// integers are 32 bits, big-endian.
//
//	magic 0xB007F457, version 0x00020001, offset of the root node
//
// A node stands for the keys that begin with the characters on its way from
// the root: one character for each step, then the node's own prefix. It is
//
//	prefix, NUL-terminated                              if it has flag 1<<31
//	first, last (bytes), offset of a child for each
//	character from first to last, 0 if there is none    if it has flag 1<<29
//	number of values, for each its priority and itself,
//	NUL-terminated                                      if it has flag 1<<30
//
// The flags are part of the node's offset. Children precede their parents in
// the file. The root never has a prefix. The values of a key are in ascending
// order of priority, and of equal ones the last inserted is the first.
const (
	trieMagic   = 0xB007F457
	trieVersion = 0x00020001

	triePrefix   = 1 << 31
	trieValues   = 1 << 30
	trieChildren = 1 << 29
	trieOffsets  = 1<<28 - 1
)

// trie collects the keys of a .bin file.
type trie struct {
	items []trieItem
}

type trieItem struct {
	key, value string
	priority   int32
	order      int32 // of insertion
}

// insert adds a value to a key.
func (t *trie) insert(key, value string, priority int) error {
	for _, s := range []string{key, value} {
		for i := 0; i < len(s); i++ {
			if s[i] == 0 || s[i] >= 0x80 {
				return fmt.Errorf("%q contains byte 0x%02x, wanted ASCII", s, s[i])
			}
		}
	}
	t.items = append(t.items, trieItem{key, value, int32(priority), int32(len(t.items))})
	return nil
}

// encode returns the file.
func (t *trie) encode() ([]byte, error) {
	slices.SortFunc(t.items, func(a, b trieItem) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(b.order, a.order))
	})
	size := 12
	for i := range t.items {
		size += len(t.items[i].key)/2 + len(t.items[i].value) + 24
	}
	w := trieWriter{out: make([]byte, 12, size)}
	root := w.node(t.items, 0, 0)
	if len(w.out) > trieOffsets {
		return nil, fmt.Errorf("found %d bytes of index, the format's limit is %d", len(w.out), trieOffsets)
	}
	binary.BigEndian.PutUint32(w.out[0:], trieMagic)
	binary.BigEndian.PutUint32(w.out[4:], trieVersion)
	binary.BigEndian.PutUint32(w.out[8:], root)
	return w.out, nil
}

type trieWriter struct {
	out     []byte
	offsets []uint32 // of the children of the nodes being written
}

// node writes the node of items, which are sorted and whose keys agree up to
// depth, after its children. Its prefix ends at the key's index end. It returns
// the node's offset with its flags.
func (w *trieWriter) node(items []trieItem, depth, end int) uint32 {
	n := 0 // items whose key ends here
	for n < len(items) && len(items[n].key) == end {
		n++
	}

	base := len(w.offsets)
	var first, last byte
	if rest := items[n:]; len(rest) > 0 {
		first, last = rest[0].key[end], rest[len(rest)-1].key[end]
		for range int(last) - int(first) + 1 {
			w.offsets = append(w.offsets, 0)
		}
		for len(rest) > 0 {
			c := rest[0].key[end]
			// Runs are short but for the first few levels.
			size := 1
			for size < len(rest) && rest[size].key[end] == c {
				size++
			}
			group := rest[:size]
			child := w.node(group, end+1, end+1+commonPrefix(group[0].key[end+1:], group[size-1].key[end+1:]))
			w.offsets[base+int(c-first)] = child
			rest = rest[size:]
		}
	}

	offset := uint32(len(w.out))
	if end > depth {
		w.out = append(w.out, items[0].key[depth:end]...)
		w.out = append(w.out, 0)
		offset |= triePrefix
	}
	if len(w.offsets) > base {
		w.out = append(w.out, first, last)
		for _, o := range w.offsets[base:] {
			w.out = binary.BigEndian.AppendUint32(w.out, o)
		}
		w.offsets = w.offsets[:base]
		offset |= trieChildren
	}
	if n > 0 {
		w.out = binary.BigEndian.AppendUint32(w.out, uint32(n))
		for i := range items[:n] {
			w.out = binary.BigEndian.AppendUint32(w.out, uint32(items[i].priority))
			w.out = append(w.out, items[i].value...)
			w.out = append(w.out, 0)
		}
		offset |= trieValues
	}
	return offset
}

// commonPrefix returns the length of the longest common prefix.
func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

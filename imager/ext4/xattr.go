package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Extended attributes are in the space an inode has left behind its fields
// and, when that is full, in one block. Both begin with a header and a list of
// entries that ends with four zero bytes, and are filled with values from the
// end:
//
//	 0  1  length of the name
//	 1  1  index of the name's prefix
//	 2  2  offset of the value
//	 4  4  inode of the value, 0 here
//	 8  4  length of the value
//	12  4  hash of name and value, 0 inside inodes
//	16  …  the name without its prefix, padded to 4 bytes
//
// Offsets count from the first entry inside inodes and from the header in
// blocks, where the entries are sorted.
const (
	attrMagic       = 0xea020000
	attrEntry       = 16
	attrBlockHeader = 32
	attrInodeStart  = 128 + extraSize // of the header of 4 bytes
	attrInodeRoom   = inodeSize - attrInodeStart - 4
	attrBlockRoom   = blockSize - attrBlockHeader
	attrEnd         = 4
)

// attrPrefixes are the prefixes of names and their indexes. Two of them, POSIX
// access control lists, are whole names.
var attrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"user.", 1},
	{aclAccess, 2},
	{aclDefault, 3},
	{"trusted.", 4},
	{"security.", 6},
}

// attrs are a file's extended attributes as they will be on disk.
type attrs struct {
	inode []byte // from the magic to the end of the inode; nil is none
	block []byte // its checksum missing; nil is none
}

type attr struct {
	index byte
	name  string
	value []byte
}

func (a attr) size() int { return attrEntry + pad4(len(a.name)) + pad4(len(a.value)) }

// encodeAttrs puts as much as fits into the inode and the rest into a block.
func encodeAttrs(xattrs map[string][]byte) (attrs, error) {
	list := make([]attr, 0, len(xattrs))
	for name, value := range xattrs {
		a, err := newAttr(name, value)
		if err != nil {
			return attrs{}, err
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	var inInode, inBlock []attr
	inodeRoom, blockRoom := attrInodeRoom-attrEnd, attrBlockRoom-attrEnd
	for _, a := range list {
		switch {
		case a.size() <= inodeRoom:
			inodeRoom -= a.size()
			inInode = append(inInode, a)
		case a.size() <= blockRoom:
			blockRoom -= a.size()
			inBlock = append(inBlock, a)
		default:
			return attrs{}, fmt.Errorf("%w: extended attributes of more than %d bytes", ErrUnsupported, attrBlockRoom-attrEnd)
		}
	}
	var out attrs
	if len(inInode) > 0 {
		out.inode = make([]byte, 4+attrInodeRoom)
		binary.LittleEndian.PutUint32(out.inode, attrMagic)
		putAttrs(out.inode[4:], 0, inInode, false)
	}
	if len(inBlock) > 0 {
		out.block = make([]byte, blockSize)
		binary.LittleEndian.PutUint32(out.block, attrMagic)
		binary.LittleEndian.PutUint32(out.block[4:], 1) // references
		binary.LittleEndian.PutUint32(out.block[8:], 1) // blocks
		hash := putAttrs(out.block, attrBlockHeader, inBlock, true)
		binary.LittleEndian.PutUint32(out.block[12:], hash)
	}
	return out, nil
}

func newAttr(name string, value []byte) (attr, error) {
	for _, p := range attrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && isACL(p.prefix) == (rest == "") {
			if isACL(p.prefix) {
				value, err := aclToDisk(value)
				return attr{p.index, "", value}, err
			}
			if len(rest) > 255 || strings.IndexByte(rest, 0) >= 0 {
				return attr{}, fmt.Errorf("%w: extended attribute name of %d bytes, at most 255 without NUL", ErrUnsupported, len(rest))
			}
			return attr{p.index, rest, value}, nil
		}
	}
	return attr{}, fmt.Errorf("%w: extended attribute %q, wanted a name in user., trusted. or security., or a POSIX access control list", ErrUnsupported, name)
}

// putAttrs writes entries from b[start] on and values from the end of b. It
// returns the hash over the hashes of the entries.
func putAttrs(b []byte, start int, list []attr, hashed bool) uint32 {
	var all uint32
	at, end := start, len(b)
	for _, a := range list {
		b[at], b[at+1] = byte(len(a.name)), a.index
		if len(a.value) > 0 {
			end -= pad4(len(a.value))
			binary.LittleEndian.PutUint16(b[at+2:], uint16(end))
			copy(b[end:], a.value)
		}
		binary.LittleEndian.PutUint32(b[at+8:], uint32(len(a.value)))
		copy(b[at+attrEntry:], a.name)
		if hashed {
			hash := attrHash(a.name, b[end:end+pad4(len(a.value))])
			binary.LittleEndian.PutUint32(b[at+12:], hash)
			all = all<<16 ^ all>>16 ^ hash
		}
		at += attrEntry + pad4(len(a.name))
	}
	return all
}

// attrHash is over the name's bytes and the padded value's words.
func attrHash(name string, value []byte) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}

// attrBlockChecksum returns the checksum of a block of attributes in which it is
// zero.
func attrBlockChecksum(b []byte, block int64, seed uint32) uint32 {
	return crc32c(crc32c(seed, binary.LittleEndian.AppendUint64(nil, uint64(block))), b)
}

func pad4(n int) int { return (n + 3) &^ 3 }

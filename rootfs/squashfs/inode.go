package squashfs

import (
	"encoding/binary"
	"fmt"
	"math"
)

// emptyListing is what the size of a directory counts on top of its listing:
// the "." and ".." that are not stored.
const emptyListing = 3

// encode returns the node's inode: the basic form, or the extended one where
// something does not fit into it. The root's parent gets the number after the
// last inode.
func (n *node) encode(list listing, inodes uint32) ([]byte, error) {
	le := binary.LittleEndian
	kind := n.kind
	ext := n.xattrs != noIndex
	var body []byte
	switch n.kind {
	case typeDir:
		size := list.size + emptyListing
		if size > math.MaxUint32 {
			return nil, fmt.Errorf("a directory of %d bytes: %w", size, ErrUnsupported)
		}
		parent := inodes + 1
		if n.parent != nil {
			parent = n.parent.number
		}
		if ext = ext || size > math.MaxUint16 || len(list.index) > 0; !ext {
			body = le.AppendUint32(body, uint32(list.block))
			body = le.AppendUint32(body, n.nlink)
			body = le.AppendUint16(body, uint16(size))
			body = le.AppendUint16(body, uint16(list.offset))
			body = le.AppendUint32(body, parent)
			break
		}
		body = le.AppendUint32(body, n.nlink)
		body = le.AppendUint32(body, uint32(size))
		body = le.AppendUint32(body, uint32(list.block))
		body = le.AppendUint32(body, parent)
		body = le.AppendUint16(body, uint16(len(list.index)))
		body = le.AppendUint16(body, uint16(list.offset))
		body = le.AppendUint32(body, n.xattrs)
		for _, i := range list.index {
			body = le.AppendUint32(body, uint32(i.position))
			body = le.AppendUint32(body, uint32(i.block))
			body = le.AppendUint32(body, uint32(len(i.name)-1))
			body = append(body, i.name...)
		}
	case typeFile:
		c := n.content
		switch {
		case c == nil:
			c = &content{fragment: noIndex}
		case c.same != nil:
			c = c.same
		}
		ext = ext || n.nlink > 1 || c.sparse > 0 || c.size > math.MaxUint32 || c.start > math.MaxUint32
		if !ext {
			body = le.AppendUint32(body, uint32(c.start))
			body = le.AppendUint32(body, c.fragment)
			body = le.AppendUint32(body, c.offset)
			body = le.AppendUint32(body, uint32(c.size))
		} else {
			body = le.AppendUint64(body, uint64(c.start))
			body = le.AppendUint64(body, uint64(c.size))
			body = le.AppendUint64(body, uint64(c.sparse))
			body = le.AppendUint32(body, n.nlink)
			body = le.AppendUint32(body, c.fragment)
			body = le.AppendUint32(body, c.offset)
			body = le.AppendUint32(body, n.xattrs)
		}
		for _, size := range c.blocks {
			body = le.AppendUint32(body, size)
		}
	case typeSymlink:
		body = le.AppendUint32(body, n.nlink)
		body = le.AppendUint32(body, uint32(len(n.Target)))
		body = append(body, n.Target...)
	case typeBlockDev, typeCharDev:
		body = le.AppendUint32(body, n.nlink)
		body = le.AppendUint32(body, n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
	case typeFifo, typeSocket:
		body = le.AppendUint32(body, n.nlink)
	}
	if ext {
		kind += extended
		if n.kind != typeDir && n.kind != typeFile {
			body = le.AppendUint32(body, n.xattrs)
		}
	}
	head := make([]byte, 0, 16+len(body))
	head = le.AppendUint16(head, kind)
	head = le.AppendUint16(head, n.mode())
	head = le.AppendUint16(head, n.uid)
	head = le.AppendUint16(head, n.gid)
	head = le.AppendUint32(head, uint32(min(max(n.ModTime, 0), math.MaxUint32)))
	head = le.AppendUint32(head, n.number)
	return append(head, body...), nil
}

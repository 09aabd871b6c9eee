package squashfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

const (
	metadataSize = 8 << 10 // of a metadata block before compression
	rawMetadata  = 1 << 15 // in its header: stored uncompressed
)

// metadata is a table in the making: a sequence of metadata blocks.
type metadata struct {
	comp   *compressor
	open   []byte  // of the last block, not compressed yet
	done   []byte  // the blocks before, compressed
	starts []int64 // positions of the blocks in done
}

// at returns the position of the next byte: of its block in the table, and of
// the byte in the uncompressed block.
func (m *metadata) at() (block int64, offset int) { return int64(len(m.done)), len(m.open) }

// ref returns the same as one number, as in a reference to an inode.
func (m *metadata) ref() uint64 { return uint64(len(m.done))<<16 | uint64(len(m.open)) }

func (m *metadata) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), metadataSize-len(m.open))
		m.open = append(m.open, p[:n]...)
		p = p[n:]
		if len(m.open) == metadataSize {
			m.flush()
		}
	}
}

// flush ends the last block.
func (m *metadata) flush() {
	if len(m.open) == 0 {
		return
	}
	m.starts = append(m.starts, int64(len(m.done)))
	p, header := m.comp.metadata(nil, m.open), uint16(0)
	if p == nil {
		p, header = m.open, rawMetadata
	}
	m.done = binary.LittleEndian.AppendUint16(m.done, header|uint16(len(p)))
	m.done = append(m.done, p...)
	m.open = m.open[:0]
}

// writeMetadata ends m, writes it, and returns where it begins.
func (o *output) writeMetadata(m *metadata) int64 {
	m.flush()
	start := o.pos
	o.write(m.done)
	return start
}

// writeIndexed writes a table that is found through a list of the positions of
// its metadata blocks, preceded by head. It returns where head begins.
func (o *output) writeIndexed(comp *compressor, table, head []byte) int64 {
	m := &metadata{comp: comp}
	m.write(table)
	base := o.writeMetadata(m)
	start := o.pos
	for _, s := range m.starts {
		head = binary.LittleEndian.AppendUint64(head, uint64(base+s))
	}
	o.write(head)
	return start
}

// writeTables writes everything behind the data blocks and notes it in sb. The
// kernel wants the tables in this order, without gaps.
func writeTables(ctx context.Context, out *output, sb *superblock, l *layout, frags []fragment, comp *compressor) error {
	inodes, dirs := &metadata{comp: comp}, &metadata{comp: comp}
	refs := make([]byte, 0, 8*len(l.nodes))
	for i, n := range l.nodes {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		var list listing
		if n.kind == typeDir {
			list = writeListing(dirs, n.children)
		}
		n.ref = inodes.ref()
		refs = binary.LittleEndian.AppendUint64(refs, n.ref)
		p, err := n.encode(list, uint32(len(l.nodes)))
		if err != nil {
			return fmt.Errorf("%s: %w", n.path, err)
		}
		inodes.write(p)
		if len(inodes.done) > math.MaxUint32 || len(dirs.done) > math.MaxUint32 {
			return fmt.Errorf("%s: inodes or directories of more than 4 GiB: %w", n.path, ErrUnsupported)
		}
		sb.Root = n.ref
	}
	sb.InodeTable = uint64(out.writeMetadata(inodes))
	sb.DirTable = uint64(out.writeMetadata(dirs))

	var table []byte
	for _, f := range frags {
		table = binary.LittleEndian.AppendUint64(table, uint64(f.start))
		table = binary.LittleEndian.AppendUint32(table, f.size)
		table = append(table, 0, 0, 0, 0)
	}
	sb.FragTable = uint64(out.writeIndexed(comp, table, nil))
	sb.ExportTable = uint64(out.writeIndexed(comp, refs, nil))

	table = table[:0]
	for _, id := range l.ids {
		table = binary.LittleEndian.AppendUint32(table, id)
	}
	sb.IDTable = uint64(out.writeIndexed(comp, table, nil))

	sb.XattrTable = none
	if len(l.xattrs.list) == 0 {
		sb.Flags |= flagNoXattrs
	} else {
		sb.XattrTable = uint64(out.writeXattrs(&l.xattrs, comp))
	}
	return out.err
}

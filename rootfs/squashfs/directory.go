package squashfs

import (
	"encoding/binary"
	"math"
)

// listing is where the names in a directory are.
type listing struct {
	block  int64 // position of its metadata block in the directory table
	offset int   // in that block
	size   int64 // in bytes
	index  []indexEntry
}

// indexEntry lets a reader begin in the middle of a large listing: at the
// header whose first name is the last one not after the name it looks for.
type indexEntry struct {
	position int64 // of the header in the listing
	block    int64 // of the header in the directory table
	name     string
}

const (
	headerSize = 12
	entrySize  = 8   // without the name
	maxRun     = 256 // entries behind one header
)

// writeListing writes the names in a directory. They come in runs behind a
// header with what the entries of the run share: the metadata block that holds
// their inodes and an inode number that theirs are relative to. About every
// 8 KiB a run begins that is in the index.
func writeListing(m *metadata, children []entry) listing {
	var l listing
	l.block, l.offset = m.at()
	indexed := int64(0) // position of the last run in the index; the first run needs no entry
	for len(children) > 0 {
		first := children[0]
		if l.size > 0 && l.size+headerSize+entrySize+int64(len(first.name))-indexed > metadataSize {
			if block, _ := m.at(); len(l.index) < math.MaxUint16 {
				l.index = append(l.index, indexEntry{l.size, block, first.name})
			}
			indexed = l.size
		}
		n, size := 0, int64(headerSize)
		for _, c := range children[:min(len(children), maxRun)] {
			delta := int64(c.number) - int64(first.number)
			grown := size + entrySize + int64(len(c.name))
			if c.ref>>16 != first.ref>>16 || delta < math.MinInt16 || delta > math.MaxInt16 ||
				n > 0 && l.size+grown-indexed > metadataSize {
				break
			}
			n, size = n+1, grown
		}
		writeRun(m, children[:n])
		children = children[n:]
		l.size += size
	}
	return l
}

func writeRun(m *metadata, run []entry) {
	le := binary.LittleEndian
	first := run[0]
	p := le.AppendUint32(nil, uint32(len(run)-1))
	p = le.AppendUint32(p, uint32(first.ref>>16))
	p = le.AppendUint32(p, first.number)
	for _, c := range run {
		p = le.AppendUint16(p, uint16(c.ref))
		p = le.AppendUint16(p, uint16(int16(int64(c.number)-int64(first.number))))
		p = le.AppendUint16(p, c.kind)
		p = le.AppendUint16(p, uint16(len(c.name)-1))
		p = append(p, c.name...)
	}
	m.write(p)
}

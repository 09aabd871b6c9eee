package ext4

import (
	"encoding/binary"
	"io"
	"io/fs"
	"sort"
	"sync"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// fileSize returns the size in an inode.
func fileSize(raw []byte) int64 {
	le := binary.LittleEndian
	return int64(le.Uint32(raw[4:])) | int64(le.Uint32(raw[108:]))<<32
}

// inode translates an inode.
func (x *reader) inode(ino uint32, raw []byte) (*tree.Inode, error) {
	le := binary.LittleEndian
	m := le.Uint16(raw)
	mode, err := fileMode(m)
	if err != nil {
		return nil, err
	}
	out := &tree.Inode{
		Mode:    mode,
		UID:     uint32(le.Uint16(raw[2:])) | uint32(le.Uint16(raw[120:]))<<16,
		GID:     uint32(le.Uint16(raw[24:])) | uint32(le.Uint16(raw[122:]))<<16,
		ModTime: int64(int32(le.Uint32(raw[16:]))),
	}
	if len(raw) > 128 && le.Uint16(raw[128:]) >= 12 {
		out.ModTime += int64(le.Uint32(raw[136:])&3) << 32
	}
	size := fileSize(raw)
	if size < 0 || size > x.blockSize<<32 {
		return nil, corrupt("inode %d: size %d", ino, size)
	}
	f := &content{reader: x, ino: ino, raw: raw, size: size}
	switch m & modeType {
	case modeRegular:
		if size > 0 {
			out.Content = f
		}
	case modeSymlink:
		if size == 0 || size > maxTarget {
			return nil, corrupt("symbolic link of %d bytes", size)
		}
		b := make([]byte, size)
		if le.Uint32(raw[32:])&flagExtents == 0 {
			if size > maxFastTarget {
				return nil, unsupported("symbolic link without extents")
			}
			copy(b, raw[blockMapAt:])
		} else if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
			return nil, err
		}
		out.Target = string(b)
	case modeChar, modeBlock:
		out.Major, out.Minor = device(raw[blockMapAt:])
	}
	if out.Xattrs, err = x.attrs(raw); err != nil {
		return nil, err
	}
	x.metaBytes += int64(len(out.Target))
	for name, value := range out.Xattrs {
		x.metaBytes += int64(len(name) + len(value))
	}
	if x.metaBytes > maxMetaBytes {
		return nil, corrupt("more than %d bytes of link targets and extended attributes", maxMetaBytes)
	}
	return out, nil
}

func fileMode(m uint16) (fs.FileMode, error) {
	out := fs.FileMode(m & 0o777)
	if m&0o4000 != 0 {
		out |= fs.ModeSetuid
	}
	if m&0o2000 != 0 {
		out |= fs.ModeSetgid
	}
	if m&0o1000 != 0 {
		out |= fs.ModeSticky
	}
	switch m & modeType {
	case modeFIFO:
		return out | fs.ModeNamedPipe, nil
	case modeChar:
		return out | fs.ModeDevice | fs.ModeCharDevice, nil
	case modeDir:
		return out | fs.ModeDir, nil
	case modeBlock:
		return out | fs.ModeDevice, nil
	case modeRegular:
		return out, nil
	case modeSymlink:
		return out | fs.ModeSymlink, nil
	case modeSocket:
		return out | fs.ModeSocket, nil
	}
	return 0, corrupt("mode %#o", m)
}

// device is the reverse of deviceMap.
func device(m []byte) (major, minor uint32) {
	if old := binary.LittleEndian.Uint32(m); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	n := binary.LittleEndian.Uint32(m[4:])
	return n >> 8 & maxMajor, n&0xff | n>>12&^0xff
}

// content is a file's content. Its extents are read when they are first needed.
type content struct {
	*reader
	ino  uint32
	raw  []byte
	size int64

	once  sync.Once
	runs  []mapping // ascending, not overlapping
	index []int64   // blocks of the extent tree
	err   error
}

// Size implements tree.Content.
func (c *content) Size() int64 { return c.size }

// ReadAt implements io.ReaderAt.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	c.once.Do(c.load)
	if c.err != nil {
		return 0, c.err
	}
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > c.size-off {
		p, eof = p[:c.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		at, rest := off+int64(n), p[n:]
		block, within := at/c.blockSize, at%c.blockSize
		i := sort.Search(len(c.runs), func(i int) bool { return c.runs[i].logical+c.runs[i].n > block })
		take := int64(len(rest))
		if i == len(c.runs) {
			clear(rest)
		} else if r := c.runs[i]; block < r.logical {
			take = min(take, r.logical*c.blockSize-at)
			clear(rest[:take])
		} else {
			take = min(take, (r.logical+r.n)*c.blockSize-at)
			if r.unwritten {
				clear(rest[:take])
			} else if err := c.readAt(rest[:take], (r.start+block-r.logical)*c.blockSize+within); err != nil {
				return n, err
			}
		}
		n += int(take)
	}
	return len(p), eof
}

func (c *content) load() {
	if binary.LittleEndian.Uint32(c.raw[32:])&flagExtents == 0 {
		if c.size > 0 {
			c.err = unsupported("inode %d has no extents (a file of ext2 or ext3)", c.ino)
		}
		return
	}
	nodes := 0
	c.err = c.extents(c.raw[blockMapAt:blockMapAt+blockMapSize], -1, &nodes)
}

// extents appends what a node of the extent tree maps. The height is -1 for the
// root, otherwise what its parent says.
func (c *content) extents(b []byte, height int, nodes *int) error {
	le := binary.LittleEndian
	entries, room, h := int(le.Uint16(b[2:])), int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extentMagic || entries > room || extentEntry*(room+1) > len(b) || h > maxHeight || height >= 0 && h != height {
		return corrupt("inode %d: extent tree node with magic number %#04x, %d entries in %d at height %d", c.ino, le.Uint16(b), entries, room, h)
	}
	if height >= 0 && c.verify {
		tail := extentEntry * (room + 1)
		if tail+4 > len(b) {
			return corrupt("inode %d: extent tree node without checksum", c.ino)
		}
		if sum := crc32c(c.inodeSeed(c.ino, c.raw), b[:tail]); sum != le.Uint32(b[tail:]) {
			return corrupt("inode %d: extent tree checksum %#08x, wanted %#08x", c.ino, le.Uint32(b[tail:]), sum)
		}
	}
	for i := range entries {
		e := b[extentEntry*(i+1):][:extentEntry]
		if h > 0 {
			if *nodes++; *nodes > maxTreeNodes {
				return corrupt("inode %d: more than %d extent tree nodes", c.ino, maxTreeNodes)
			}
			at := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
			below, err := c.block(at)
			if err != nil {
				return err
			}
			c.index = append(c.index, at)
			if err := c.extents(below, h-1, nodes); err != nil {
				return err
			}
			continue
		}
		r := mapping{logical: int64(le.Uint32(e)), run: run{int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:])), int64(le.Uint16(e[4:]))}}
		if r.n > maxExtent {
			r.n, r.unwritten = r.n-maxExtent, true
		}
		last := int64(0)
		if n := len(c.runs); n > 0 {
			last = c.runs[n-1].logical + c.runs[n-1].n
		}
		if r.n == 0 || r.logical < last || r.start <= 0 || r.start > c.blocks-r.n {
			return corrupt("inode %d: extent of %d blocks at %d of the file, %d of %d", c.ino, r.n, r.logical, r.start, c.blocks)
		}
		c.runs = append(c.runs, r)
	}
	return nil
}

// attrs returns the extended attributes of an inode.
func (x *reader) attrs(raw []byte) (map[string][]byte, error) {
	le := binary.LittleEndian
	out := map[string][]byte{}
	if len(raw) > 128 {
		if at := 128 + int(le.Uint16(raw[128:])); at <= len(raw)-8 && at%4 == 0 && le.Uint32(raw[at:]) == attrMagic {
			if err := readAttrs(out, raw[at+4:], 0); err != nil {
				return nil, err
			}
		}
	}
	if n := int64(le.Uint32(raw[104:])) | int64(le.Uint16(raw[118:]))<<32; n != 0 {
		b, err := x.block(n)
		if err != nil {
			return nil, err
		}
		if le.Uint32(b) != attrMagic || le.Uint32(b[8:]) != 1 {
			return nil, corrupt("block %d does not hold extended attributes", n)
		}
		if x.verify {
			sum := le.Uint32(b[16:])
			le.PutUint32(b[16:], 0)
			if want := attrBlockChecksum(b, n, x.seed); want != sum {
				return nil, corrupt("extended attributes in block %d: checksum %#08x, wanted %#08x", n, sum, want)
			}
		}
		if err := readAttrs(out, b, attrBlockHeader); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// readAttrs reads entries from b[at] on.
func readAttrs(out map[string][]byte, b []byte, at int) error {
	le := binary.LittleEndian
	for at+4 <= len(b) && le.Uint32(b[at:]) != 0 {
		if at+attrEntry > len(b) {
			return corrupt("extended attribute beyond its space")
		}
		e := b[at:]
		nameLen, off, size := int(e[0]), int(le.Uint16(e[2:])), int64(le.Uint32(e[8:]))
		if attrEntry+nameLen > len(e) || size > 0 && (off > len(b) || size > int64(len(b)-off)) {
			return corrupt("extended attribute with a name of %d bytes and %d bytes at %d", nameLen, size, off)
		}
		if le.Uint32(e[4:]) != 0 {
			return unsupported("extended attribute in inode %d", le.Uint32(e[4:]))
		}
		name, err := attrName(e[1], string(e[attrEntry:attrEntry+nameLen]))
		if err != nil {
			return err
		}
		if _, twice := out[name]; twice {
			return corrupt("extended attribute %q twice", name)
		}
		value := []byte{}
		if size > 0 {
			value = append(value, b[off:int64(off)+size]...)
		}
		if isACL(name) {
			if value, err = aclFromDisk(value); err != nil {
				return err
			}
		}
		out[name] = value
		at += attrEntry + pad4(nameLen)
	}
	return nil
}

func attrName(index byte, rest string) (string, error) {
	for _, p := range attrPrefixes {
		if p.index == index && isACL(p.prefix) == (rest == "") {
			return p.prefix + rest, nil
		}
	}
	return "", unsupported("extended attribute %q with prefix %d", rest, index)
}

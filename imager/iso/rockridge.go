package iso

import (
	"io/fs"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// An entry of the System Use Sharing Protocol is a signature of two letters,
// its size, version 1, and data. Those of Rock Ridge are PX (mode, links, owner,
// serial number), TF (times), NM (name), SL (target of a symbolic link) and PN
// (number of a device).
const (
	useHeader = 4
	maxUse    = 255
	useCE     = 28 // size of CE, which says where the entries go on

	nameMore      = 1 << 0 // of NM, SL and a component of SL: goes on in the next
	nameSelf      = 1 << 1
	nameParent    = 1 << 2
	nameRoot      = 1 << 3
	timeModified  = 1 << 1
	timeAccess    = 1 << 2
	timeAttribute = 1 << 3
	timeLong      = 1 << 7

	rockRidge = "IEEE_P1282" // RRIP 1.12
	about     = "THE IEEE P1282 PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	contact   = "PLEASE CONTACT THE IEEE STANDARDS DEPARTMENT, PISCATAWAY, NJ, USA FOR THE P1282 SPECIFICATION."
)

// use returns an entry.
func use(signature string, data ...byte) []byte {
	b := append([]byte(signature), byte(useHeader+len(data)), 1)
	return append(b, data...)
}

// dotEntries returns the entries of a directory's ".". Those of the root say
// that there are such entries at all, and that they are Rock Ridge's.
func (v *volume) dotEntries(d *dir) [][]byte {
	entries := v.inodeEntries(d.inode)
	if d.parent != d {
		return entries
	}
	er := append([]byte{byte(len(rockRidge)), byte(len(about)), byte(len(contact)), 1}, rockRidge+about+contact...)
	entries = append([][]byte{use("SP", 0xBE, 0xEF, 0)}, entries...)
	return append(entries, use("ER", er...))
}

// inodeEntries returns the entries for what an inode has without its name. The
// inode's type is one that kind knows.
func (v *volume) inodeEntries(ino *tree.Inode) [][]byte {
	px := make([]byte, 40)
	both32(px, posixMode(ino.Mode))
	both32(px[8:], v.links[ino])
	both32(px[16:], ino.UID)
	both32(px[24:], ino.GID)
	both32(px[32:], v.serials[ino])
	tf := []byte{timeModified | timeAccess | timeAttribute}
	date := shortDate(ino.ModTime)
	for range 3 {
		tf = append(tf, date[:]...)
	}
	return [][]byte{use("PX", px...), use("TF", tf...)}
}

// entries returns the entries for something in a directory.
func (v *volume) entries(name string, ino *tree.Inode) ([][]byte, error) {
	if _, err := kind(ino.Mode); err != nil {
		return nil, err
	}
	if len(name) > maxRockName {
		return nil, unsupported("a name of %d bytes, Linux reads at most %d", len(name), maxRockName)
	}
	entries := v.inodeEntries(ino)
	for part := name; part != ""; {
		n := min(len(part), maxUse-useHeader-1)
		var flags byte
		if n < len(part) {
			flags = nameMore
		}
		entries = append(entries, use("NM", append([]byte{flags}, part[:n]...)...))
		part = part[n:]
	}
	switch ino.Mode.Type() {
	case fs.ModeSymlink:
		if ino.Target == "" || len(ino.Target) > maxTarget || strings.IndexByte(ino.Target, 0) >= 0 {
			return nil, unsupported("a symbolic link to %q, want 1 to %d bytes without NUL", ino.Target, maxTarget)
		}
		entries = append(entries, target(ino.Target)...)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		pn := make([]byte, 16)
		both32(pn, ino.Major)
		both32(pn[8:], ino.Minor)
		entries = append(entries, use("PN", pn...))
	}
	return entries, nil
}

// maxRockName is the longest name that Linux reads; it cuts off longer ones.
const maxRockName = 253

// maxTarget is the longest target of a symbolic link that Linux can read.
const maxTarget = 4095

// target returns the entries for the target of a symbolic link. It is stored in
// components, each with flags and a size before it.
//
// Readers differ in whether there is a slash between the last component of an
// entry and the first of the next, unless that is the rest of a component. So
// every entry but the last ends in a component that goes on, if need be an empty
// one.
func target(s string) [][]byte {
	var entries [][]byte
	data := []byte{nameMore} // flags of the entry
	flush := func() {
		entries = append(entries, use("SL", data...))
		data = []byte{nameMore}
	}
	room := func() int { return maxUse - useHeader - len(data) - 2 }
	component := func(flags byte, text string) {
		for len(text) > room()-2 {
			n := min(len(text), max(room(), 0))
			data = append(append(data, nameMore, byte(n)), text[:n]...)
			text = text[n:]
			flush()
		}
		data = append(append(data, flags, byte(len(text))), text...)
	}
	if strings.HasPrefix(s, "/") {
		component(nameRoot, "")
		s = s[1:]
	}
	if s != "" {
		for part := range strings.SplitSeq(s, "/") {
			switch part {
			case ".":
				component(nameSelf, "")
			case "..":
				component(nameParent, "")
			default:
				component(0, part)
			}
		}
	}
	data[0] = 0
	flush()
	return entries
}

// continuation holds the entries for which directory records have no room. It
// begins at a sector; no list of entries lies in two.
type continuation struct {
	data  []byte
	lists [][2]int // where in data each list begins and ends
}

// pack returns the bytes to put behind a directory record of so many bytes: the
// entries, or those that fit and where in c the others are.
func (c *continuation) pack(entries [][]byte, record int) []byte {
	b := c.fill(entries, maxRecord-record)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	return b
}

// fill returns as many entries as fit in room bytes, and puts the others into c.
func (c *continuation) fill(entries [][]byte, room int) []byte {
	size := 0
	for _, e := range entries {
		size += len(e)
	}
	b := make([]byte, 0, min(size, room)+1)
	if size <= room {
		for _, e := range entries {
			b = append(b, e...)
		}
		return b
	}
	for len(b)+len(entries[0]) <= room-useCE {
		size -= len(entries[0])
		b = append(b, entries[0]...)
		entries = entries[1:]
	}
	size = min(size, SectorSize)
	if used := len(c.data) % SectorSize; used+size > SectorSize {
		c.data = append(c.data, make([]byte, SectorSize-used)...)
	}
	start := len(c.data)
	c.data = append(c.data, make([]byte, size)...) // before what comes after it
	list := c.fill(entries, size)
	copy(c.data[start:], list)
	c.lists = append(c.lists, [2]int{start, start + len(list)})
	ce := make([]byte, 24)
	both32(ce, uint32(start/SectorSize))
	both32(ce[8:], uint32(start%SectorSize))
	both32(ce[16:], uint32(len(list)))
	return append(b, use("CE", ce...)...)
}

// place makes c begin at a sector, as far as its own lists refer to it.
func (c *continuation) place(at int64) {
	for _, l := range c.lists {
		refer(c.data[l[0]:l[1]], at)
	}
}

// refer makes a list of entries refer to a continuation that begins at a sector.
func refer(b []byte, at int64) {
	for len(b) > useHeader && b[0] != 0 {
		if string(b[:2]) == "CE" {
			both32(b[useHeader:], le.Uint32(b[useHeader:])+uint32(at))
			return
		}
		b = b[b[2]:]
	}
}

// posixMode returns a mode as stat(2) has it.
func posixMode(m fs.FileMode) uint32 {
	mode, _ := kind(m)
	mode |= uint32(m.Perm())
	for _, bit := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&bit.mode != 0 {
			mode |= bit.bit
		}
	}
	return mode
}

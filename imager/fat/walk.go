package fat

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf16"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// walker builds the tree.
type walker struct {
	*reader
	fs       *FileSystem
	paths    int
	dirBytes int64
}

// found is a directory entry.
type found struct {
	name    string
	attr    byte
	cluster int64
	size    int64
	time    int64
}

// walk goes through the directories without recursion.
func (w *walker) walk() error {
	root, err := w.rootContent()
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	type dir struct {
		name    string
		content extent.Source
	}
	queue := []dir{{".", root}}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		entries, err := w.entries(d.content, d.name == ".")
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		for _, e := range entries {
			name := path.Join(d.name, e.name)
			ino, content, err := w.inode(e)
			if err == nil {
				if err = w.fs.Tree.Add(name, ino); err != nil {
					err = fmt.Errorf("%w: %w", ErrCorrupt, err)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if ino.Mode.IsDir() {
				queue = append(queue, dir{name, content})
			}
		}
	}
	return nil
}

func (w *walker) rootContent() (extent.Source, error) {
	if w.bits == 32 {
		return w.chain(w.root, -1, maxDirBytes)
	}
	return extent.Section(w.src, w.rootAt, w.rootSize)
}

// inode returns what an entry stands for and what a directory consists of.
func (w *walker) inode(e found) (*tree.Inode, extent.Source, error) {
	if w.paths++; w.paths > maxPaths {
		return nil, nil, corrupt("more than %d files", maxPaths)
	}
	if e.attr&attrDir != 0 {
		content, err := w.chain(e.cluster, -1, maxDirBytes)
		return &tree.Inode{Mode: fs.ModeDir | 0o755, ModTime: e.time}, content, err
	}
	ino := &tree.Inode{Mode: 0o644, ModTime: e.time}
	if e.attr&attrReadOnly != 0 {
		ino.Mode = 0o444
	}
	if e.size > 0 {
		content, err := w.chain(e.cluster, e.size, 0)
		if err != nil {
			return nil, nil, err
		}
		ino.Content = content
	}
	return ino, nil, nil
}

// entries returns what a directory holds, and sets the volume's label if it is
// in the root.
func (w *walker) entries(content extent.Source, isRoot bool) ([]found, error) {
	if w.dirBytes += content.Size(); w.dirBytes > maxDirsBytes {
		return nil, corrupt("directories of more than %d bytes", maxDirsBytes)
	}
	b := make([]byte, content.Size())
	if _, err := io.ReadFull(extent.Reader(content), b); err != nil && len(b) > 0 {
		if err == io.ErrUnexpectedEOF || err == io.EOF {
			return nil, corrupt("it is beyond the end of the image")
		}
		return nil, err
	}
	var out []found
	var long longName
	for ; len(b) >= entrySize && b[0] != entryEnd; b = b[entrySize:] {
		e := b[:entrySize]
		attr := e[atAttr] & attrMask
		switch {
		case e[0] == entryFree:
			long = longName{}
			continue
		case attr == attrLong:
			long.add(e)
			continue
		case attr&attrVolume != 0:
			if isRoot && w.fs.Label == "" {
				w.fs.Label = parseLabel(e[:11])
			}
			long = longName{}
			continue
		}
		name := long.take(shortName(e[:11]))
		if name == "" {
			name = decodeShort(e)
		}
		if name == "." || name == ".." {
			continue
		}
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return nil, corrupt("file name %q", name)
		}
		f := found{
			name: name, attr: attr, cluster: int64(le.Uint16(e[atClusterLow:])), size: int64(le.Uint32(e[atFileSize:])),
			time: stamp{date: le.Uint16(e[atWriteDate:]), time: le.Uint16(e[atWriteTime:])}.unix(),
		}
		if w.bits == 32 {
			f.cluster |= int64(le.Uint16(e[atClusterHigh:])&0x0FFF) << 16
		}
		out = append(out, f)
	}
	return out, nil
}

// longName collects the entries of a long name.
type longName struct {
	units [maxLong * longUnits]uint16
	parts int  // in all
	want  int  // number of the part that comes next, 0 if it is complete
	sum   byte // of the short name
}

func (l *longName) add(e []byte) {
	n := int(e[0] &^ longLast)
	switch {
	case e[0]&longLast != 0 && n >= 1 && n <= maxLong:
		*l = longName{parts: n, want: n, sum: e[atLongSum]}
	case l.parts == 0 || n == 0 || n != l.want || e[atLongSum] != l.sum:
		*l = longName{} // an orphan; drivers ignore it
		return
	}
	if l.parts == 0 {
		return
	}
	for i, at := range longPlaces {
		l.units[(n-1)*longUnits+i] = le.Uint16(e[at:])
	}
	l.want--
}

// take returns the long name that belongs to a short one, or "", and begins
// anew.
func (l *longName) take(s shortName) string {
	defer func() { *l = longName{} }()
	if l.parts == 0 || l.want != 0 || s.checksum() != l.sum {
		return ""
	}
	units := l.units[:l.parts*longUnits]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}

// decodeShort returns the short name of an entry, with the small letters that
// Windows NT and Linux see in it.
func decodeShort(e []byte) string {
	s := shortName(e[:11])
	if s[0] == entryKanji {
		s[0] = entryFree
	}
	base, ext := decodeBytes(bytes.TrimRight(s[:8], " ")), decodeBytes(bytes.TrimRight(s[8:], " "))
	if e[atCase]&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if e[atCase]&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext == "" {
		return base
	}
	return base + "." + ext
}

// page437 are the characters from 0x80 of code page 437, in which short names
// are encoded unless both sides agree on another one.
const page437 = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐" +
	"└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"

func decodeBytes(b []byte) string {
	high := []rune(page437)
	out := make([]rune, len(b))
	for i, c := range b {
		out[i] = rune(c)
		if c >= 0x80 {
			out[i] = high[c-0x80]
		}
	}
	return string(out)
}

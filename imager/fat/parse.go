package fat

import (
	"bytes"
	"strings"
	"unicode/utf16"
)

// found is a file or directory in a directory, which takes one or more slots:
// entries of 32 bytes, of which the last has the short name.
type found struct {
	name    string
	short   shortName
	attr    byte
	cluster int64
	size    int64
	time    int64
	first   int // slot
	last    int
}

// entryList is what the slots of a directory hold.
type entryList struct {
	entries []found
	orphans []int  // slots with parts of long names that belong to nothing
	end     int    // the first slot that was never used
	label   string // of the volume, "" if there is none
}

// parseEntries reads a directory. Its own entry and its parent's are left out.
func parseEntries(b []byte, bits int) (entryList, error) {
	l := entryList{end: len(b) / entrySize}
	var long longName
	first := 0 // of the slots that are parts of long
	orphans := func(last int) {
		for ; first < last; first++ {
			l.orphans = append(l.orphans, first)
		}
	}
	for i := range l.end {
		e := b[i*entrySize:][:entrySize]
		if e[0] == entryEnd {
			l.end = i
			break
		}
		attr := e[atAttr] & attrMask
		if e[0] != entryFree && attr == attrLong {
			if e[0]&longLast != 0 {
				orphans(i) // what came before is incomplete
			}
			if !long.add(e) {
				orphans(i + 1)
			}
			continue
		}
		name := ""
		if e[0] != entryFree && attr&attrVolume == 0 {
			name = long.take(shortName(e[:11]))
		}
		long = longName{}
		if name == "" {
			orphans(i)
		}
		f := found{
			name: name, short: shortName(e[:11]), attr: attr, first: first, last: i,
			cluster: int64(le.Uint16(e[atClusterLow:])), size: int64(le.Uint32(e[atFileSize:])),
			time: stamp{date: le.Uint16(e[atWriteDate:]), time: le.Uint16(e[atWriteTime:])}.unix(),
		}
		first = i + 1
		switch {
		case e[0] == entryFree:
			continue
		case attr&attrVolume != 0:
			if l.label == "" {
				l.label = parseLabel(e[:11])
			}
			continue
		case name == "":
			f.name = decodeShort(e)
		}
		if f.name == "." || f.name == ".." {
			continue
		}
		if f.name == "" || strings.ContainsAny(f.name, "/\x00") {
			return l, corrupt("file name %q", f.name)
		}
		if bits == 32 {
			f.cluster |= int64(le.Uint16(e[atClusterHigh:])&0x0FFF) << 16
		}
		l.entries = append(l.entries, f)
	}
	orphans(l.end)
	return l, nil
}

// longName collects the entries of a long name.
type longName struct {
	units [maxLong * longUnits]uint16
	parts int  // in all
	want  int  // number of the part that comes next, 0 if it is complete
	sum   byte // of the short name
}

// add says whether the part may belong to a name. Drivers ignore one that does
// not, and those before it.
func (l *longName) add(e []byte) bool {
	n := int(e[0] &^ longLast)
	switch {
	case e[0]&longLast != 0 && n >= 1 && n <= maxLong:
		*l = longName{parts: n, want: n, sum: e[atLongSum]}
	case l.parts == 0 || n == 0 || n != l.want || e[atLongSum] != l.sum:
		*l = longName{}
		return false
	}
	for i, at := range longPlaces {
		l.units[(n-1)*longUnits+i] = le.Uint16(e[at:])
	}
	l.want--
	return true
}

// take returns the long name that belongs to a short one, or "".
func (l *longName) take(s shortName) string {
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

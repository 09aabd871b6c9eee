package fat

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// shortPunctuation are the characters of a short name besides A to Z and 0 to 9.
const shortPunctuation = "$%'-_@~`!(){}^#&"

const maxNameUnits = 255 // of UTF-16

func isShort(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(shortPunctuation, c) >= 0
}

// checkName returns an error for what cannot be a long name.
func checkName(name string) error {
	if !utf8.ValidString(name) {
		return unsupported("the name is not valid UTF-8")
	}
	if n := len(utf16.Encode([]rune(name))); n > maxNameUnits {
		return unsupported("the name has %d UTF-16 code units, at most %d fit", n, maxNameUnits)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7F || strings.ContainsRune(`"*/:<>?\|`, r) {
			return unsupported("the name has the character %q", r)
		}
	}
	if last := name[len(name)-1]; last == '.' || last == ' ' {
		return unsupported("the name ends with %q", last)
	}
	return nil
}

// fold maps names that differ only in case to the same string.
func fold(name string) string {
	return strings.Map(func(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }, name)
}

// shortName is the name in an entry: 8 and 3 bytes, padded with spaces.
type shortName [11]byte

func newShortName(base, ext string) shortName {
	var s shortName
	copy(s[:], fmt.Sprintf("%-8s%-3s", base, ext))
	return s
}

// checksum is in every entry of a long name and ties it to the short one.
func (s shortName) checksum() byte {
	var sum byte
	for _, c := range s {
		sum = sum<<7 | sum>>1
		sum += c
	}
	return sum
}

// basis makes the two parts of a short name out of a long one. It is exact if
// nothing but small letters was changed.
func basis(name string) (base, ext string, exact bool) {
	trimmed := strings.TrimLeft(strings.ReplaceAll(name, " ", ""), ".")
	exact = trimmed == name
	base = trimmed
	if i := strings.LastIndexByte(trimmed, '.'); i >= 0 {
		base, ext = trimmed[:i], trimmed[i+1:]
	}
	clean := func(s string, limit int) string {
		var b []byte
		for _, r := range s {
			if r >= 'a' && r <= 'z' {
				r -= 'a' - 'A'
			}
			switch {
			case r == '.':
				exact = false
			case r < utf8.RuneSelf && isShort(byte(r)):
				b = append(b, byte(r))
			default:
				exact = false
				b = append(b, '_')
			}
		}
		if len(b) > limit {
			exact = false
			b = b[:limit]
		}
		return string(b)
	}
	return clean(base, 8), clean(ext, 3), exact
}

// aliases gives every name of one directory a short name. Names that are short
// ones already, but for small letters, keep theirs; the others get a number, in
// the order in which they come.
func aliases(names []string) ([]shortName, error) {
	out := make([]shortName, len(names))
	used := make(map[shortName]bool, len(names))
	for i, name := range names {
		if base, ext, exact := basis(name); exact {
			out[i] = newShortName(base, ext)
			used[out[i]] = true // another one differs in case only and is refused
		}
	}
	last := map[shortName]int{} // number given to each basis
	for i, name := range names {
		base, ext, exact := basis(name)
		if exact {
			continue
		}
		key := newShortName(base, ext)
		var err error
		if out[i], last[key], err = numbered(base, ext, last[key]+1, used); err != nil {
			return nil, err
		}
		used[out[i]] = true
	}
	return out, nil
}

// numbered returns the first short name that is not in use, and its number.
func numbered(base, ext string, first int, used map[shortName]bool) (shortName, int, error) {
	for n := first; ; n++ {
		tail := "~" + strconv.Itoa(n)
		if len(tail) > 7 {
			return shortName{}, 0, unsupported("too many similar names")
		}
		s := newShortName(base[:min(len(base), 8-len(tail))]+tail, ext)
		if !used[s] {
			return s, n, nil
		}
	}
}

// Package modalias has the rules by which kernel modules are named and their
// aliases matched, for those who build an index and those who use it: modprobe
// and depmod of kmod define them.
package modalias

import "strings"

// Name returns the module name that belongs to the path of a module file or a
// line of modules.builtin: the last element up to its first dot, folded.
func Name(file string) string {
	name := file[strings.LastIndexByte(file, '/')+1:]
	if dot := strings.IndexByte(name, '.'); dot >= 0 {
		name = name[:dot]
	}
	return Fold(name)
}

// Fold returns name as the kernel spells it: modprobe takes '-' and '_' for
// the same letter, and /proc/modules shows '_'. Within the brackets of a
// pattern '-' is a range and stays. Text of several lines is folded line by line.
func Fold(name string) string {
	if strings.IndexByte(name, '-') < 0 {
		return name
	}
	b := []byte(name)
	bracket := false
	for i, c := range b {
		switch {
		case c == '[':
			bracket = true
		case c == ']' || c == '\n':
			bracket = false
		case c == '-' && !bracket:
			b[i] = '_'
		}
	}
	return string(b)
}

// Match reports whether name matches pattern as fnmatch(3) without flags does:
// '*' matches any run of bytes, '?' one byte, '[...]' one byte of a set with
// ranges, negated by '!' or '^', and '\' takes the next byte literally. A
// bracket that is never closed is an ordinary byte.
//
// It needs no more than len(pattern)*len(name) steps: only the last '*' is ever
// retried.
func Match(pattern, name string) bool {
	var p, n int
	starP, starN := -1, 0
	for n < len(name) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				starP, starN = p, n
				p++
				continue
			}
			if size, ok := matchByte(pattern[p:], name[n]); ok {
				p += size
				n++
				continue
			}
		}
		if starP < 0 {
			return false
		}
		starN++
		p, n = starP+1, starN
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchByte matches c against the first element of pattern, which is not
// empty, and returns the element's length.
func matchByte(pattern string, c byte) (size int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) == 1 {
			return 1, c == '\\'
		}
		return 2, c == pattern[1]
	case '[':
		if size, ok, closed := matchSet(pattern, c); closed {
			return size, ok
		}
	}
	return 1, c == pattern[0]
}

func matchSet(pattern string, c byte) (size int, ok, closed bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != negated, true
		}
		low := pattern[i]
		if low == '\\' && i+1 < len(pattern) {
			i++
			low = pattern[i]
		}
		i++
		high := low
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			i++
			high = pattern[i]
			if high == '\\' && i+1 < len(pattern) {
				i++
				high = pattern[i]
			}
			i++
		}
		if low <= c && c <= high {
			ok = true
		}
	}
	return 0, false, false
}

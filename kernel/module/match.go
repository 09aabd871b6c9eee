package module

import (
	"fmt"
	"strings"
)

// Match reports whether a shell pattern matches all of s, as fnmatch(3) without
// flags does and modprobe for aliases: '*' and '?' match slashes and leading
// dots too, [a-z] a range, [!a-z] its complement, '\' quotes. A bracket that is
// not closed stands for itself.
func Match(pattern, s string) bool {
	// Where to go on after a mismatch: behind the last '*', one byte on.
	star, from := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			p++
			star, from = p, i
			continue
		}
		if n, ok := matchByte(pattern[p:], s[i]); ok {
			p += n
			i++
			continue
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star, from
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchByte reports whether the first element of pattern, which is not '*',
// matches c, and how long it is.
func matchByte(pattern string, c byte) (n int, ok bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	case '[':
		if n, ok, closed := matchRange(pattern, c); closed {
			return n, ok
		}
	}
	return 1, pattern[0] == c
}

// matchRange matches the bracket expression that pattern starts with.
func matchRange(pattern string, c byte) (n int, ok, closed bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	for first := i; i < len(pattern); i++ {
		low := pattern[i]
		if low == ']' && i > first {
			return i + 1, ok != negated, true
		}
		if low == '\\' && i+1 < len(pattern) {
			i++
			low = pattern[i]
		}
		high := low
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			i += 2
			high = pattern[i]
			if high == '\\' && i+1 < len(pattern) {
				i++
				high = pattern[i]
			}
		}
		ok = ok || low <= c && c <= high
	}
	return 0, false, false
}

// checkPattern refuses patterns that cannot match a module's path.
func checkPattern(pattern string) error {
	switch {
	case pattern == "":
		return fmt.Errorf("module pattern is empty")
	case strings.HasPrefix(pattern, "/"):
		return fmt.Errorf("module pattern %q begins with a slash; paths are relative to /lib/modules/RELEASE, as kernel/fs/ext4/ext4.ko", pattern)
	case strings.Count(pattern, "[") != strings.Count(pattern, "]"):
		return fmt.Errorf("module pattern %q has unmatched brackets", pattern)
	}
	return nil
}

// matchPath reports whether the elements of a pattern match those of a path.
func matchPath(pattern, elements []string) bool {
	// reach[i] tells whether the pattern so far matches the first i elements.
	reach := make([]bool, len(elements)+1)
	reach[0] = true
	for _, p := range pattern {
		if p == "**" {
			for i := 1; i < len(reach); i++ {
				reach[i] = reach[i] || reach[i-1]
			}
			continue
		}
		for i := len(elements); i > 0; i-- {
			reach[i] = reach[i-1] && Match(p, elements[i-1])
		}
		reach[0] = false
	}
	return reach[len(elements)]
}

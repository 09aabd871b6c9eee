// Package cmdline reads the kernel command line, /proc/cmdline.
//
// The line is words separated by white space. Double quotes keep white space
// within a word and are not part of it; there are no escapes. See
// "The kernel's command-line parameters" in the kernel's admin guide.
package cmdline

import "strings"

// Args are the words of a command line, without their quotes.
type Args []string

// Parse splits a command line.
func Parse(line string) Args {
	var args Args
	var word strings.Builder
	quoted, begun := false, false
	for i := range len(line) {
		switch c := line[i]; {
		case c == '"':
			quoted, begun = !quoted, true
		case !quoted && (c == ' ' || '\t' <= c && c <= '\r' || c == 0):
			if begun {
				args = append(args, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		args = append(args, word.String())
	}
	return args
}

// Get returns the value of the last word "key=value". A word that is the bare
// key has the value "".
func (a Args) Get(key string) (value string, ok bool) {
	for _, w := range a {
		if k, v, _ := strings.Cut(w, "="); k == key {
			value, ok = v, true
		}
	}
	return value, ok
}

// Package opennebula reads the variables that OpenNebula gives a machine: the
// file context.sh on a volume labelled CONTEXT.
//
// OpenNebula describes it under "Contextualization". The file is a shell script
// that does nothing but set variables:
//
//	# comment
//	NAME='value'
//
// A value is in single quotes, may have several lines, and a single quote in it is
// written '\”. Nothing is executed here: other shell syntax is refused.
package opennebula

import (
	"fmt"
	"strings"
)

// maxSize bounds the file, in bytes: 1 MiB of user data in base64, and room.
const maxSize = 2 << 20

// Parse reads the variables. Of several with one name the last one counts.
func Parse(data []byte) (map[string]string, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("context.sh has %d bytes, want at most %d", len(data), maxSize)
	}
	vars := map[string]string{}
	text, line := string(data), 1
	for text != "" {
		first, rest, _ := strings.Cut(text, "\n")
		if t := strings.TrimSpace(first); t == "" || t[0] == '#' {
			text = rest
			line++
			continue
		}
		name, value, found := strings.Cut(text, "=")
		if !found || !isName(name) {
			return nil, fmt.Errorf("context.sh:%d: found %.40q, want NAME='value'", line, first)
		}
		value, rest, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("context.sh:%d: %s: %w", line, name, err)
		}
		vars[name] = value
		line += strings.Count(text[:len(text)-len(rest)], "\n")
		text = rest
	}
	return vars, nil
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// unquote reads a value in quotes, up to the end of its line.
func unquote(s string) (value, rest string, err error) {
	var b strings.Builder
	for {
		switch {
		case s == "":
			return b.String(), "", nil
		case s[0] == '\n':
			return b.String(), s[1:], nil
		case s[0] == '\r':
			s = s[1:]
		case strings.HasPrefix(s, `\'`):
			b.WriteByte('\'')
			s = s[2:]
		case s[0] == '\'' || s[0] == '"' && !strings.ContainsAny(quoted(s), "$`\\"):
			i := strings.IndexByte(s[1:], s[0])
			if i < 0 {
				return "", "", fmt.Errorf("the quote %c has no end", s[0])
			}
			b.WriteString(s[1 : i+1])
			s = s[i+2:]
		default:
			line, _, _ := strings.Cut(s, "\n")
			return "", "", fmt.Errorf("found %.40q, want a value in single quotes", line)
		}
	}
}

// quoted returns what is between the quote at the beginning of s and the next.
func quoted(s string) string {
	text, _, _ := strings.Cut(s[1:], s[:1])
	return text
}

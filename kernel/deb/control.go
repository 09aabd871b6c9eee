package deb

import (
	"fmt"
	"strings"
)

// maxControl bounds the control file in bytes.
const maxControl = 1 << 20

// Control is a package's control file: one deb822(5) paragraph.
type Control struct {
	Package      string
	Version      string
	Architecture string // as dpkg names it: "amd64", "arm64", "all"

	fields map[string]string // all of them, keys in lower case
}

// Field returns the value of the named field, in which case does not matter,
// or "". The lines of a folded value are separated by newlines and carry no
// leading space.
func (c *Control) Field(name string) string { return c.fields[strings.ToLower(name)] }

// ParseControl parses a control file. Package, Version and Architecture must be
// there.
func ParseControl(data []byte) (*Control, error) {
	if len(data) > maxControl {
		return nil, fmt.Errorf("%w: %d bytes of control, want at most %d", ErrFormat, len(data), maxControl)
	}
	c := &Control{fields: map[string]string{}}
	var last string
	var folded []string
	flush := func() {
		if last != "" {
			c.fields[last] = strings.Join(folded, "\n")
		}
		last, folded = "", nil
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			if last == "" && len(c.fields) == 0 {
				continue
			}
			if rest := strings.TrimSpace(strings.Join(lines[i:], "")); rest != "" {
				return nil, fmt.Errorf("%w: control line %d: a second paragraph", ErrFormat, i+1)
			}
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, fmt.Errorf("%w: control line %d: continues no field", ErrFormat, i+1)
			}
			folded = append(folded, strings.TrimLeft(line, " \t"))
		default:
			flush()
			name, value, ok := strings.Cut(line, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") {
				return nil, fmt.Errorf("%w: control line %d: %q, want \"Field: value\"", ErrFormat, i+1, line)
			}
			last = strings.ToLower(name)
			if _, dup := c.fields[last]; dup {
				return nil, fmt.Errorf("%w: control line %d: field %s again", ErrFormat, i+1, name)
			}
			folded = []string{strings.TrimSpace(value)}
		}
	}
	flush()
	for _, f := range []struct {
		name string
		to   *string
	}{{"Package", &c.Package}, {"Version", &c.Version}, {"Architecture", &c.Architecture}} {
		v := c.Field(f.name)
		if v == "" || strings.ContainsAny(v, "\n/") {
			return nil, fmt.Errorf("%w: control field %s is %q, want one word", ErrFormat, f.name, v)
		}
		*f.to = v
	}
	return c, nil
}

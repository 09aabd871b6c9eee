// Package mount mounts the squashfs layers of an image and the file systems of
// a node, and takes them apart again.
package mount

import (
	"fmt"
	"strings"
)

// A Point is a line of /proc/self/mountinfo, as proc(5) describes it.
type Point struct {
	Path    string
	Type    string // of the file system
	Source  string
	Options string // of the mount point, with commas
}

// ParseInfo reads the content of /proc/self/mountinfo. Later mounts come later.
func ParseInfo(data string) ([]Point, error) {
	var points []Point
	for line := range strings.Lines(data) {
		// ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [FIELD…] - TYPE SOURCE OPTIONS
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			return nil, fmt.Errorf("mountinfo: unexpected line %.120q", line)
		}
		points = append(points, Point{Path: unescape(l[4]), Type: r[0], Source: unescape(r[1]), Options: l[5]})
	}
	return points, nil
}

// unescape undoes the octal escapes that stand for space, tab, newline and
// backslash.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// Below reports whether path is dir or below it.
func Below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

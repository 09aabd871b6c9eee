package iso

import (
	"fmt"
	"path"
	"strings"
)

// identifier is a name as plain ISO 9660 has it: capital letters, digits and
// "_", with one extension if it is a file's.
type identifier struct {
	name, ext string
	file      bool
}

func (i identifier) String() string {
	if i.file {
		return i.name + "." + i.ext + ";1"
	}
	return i.name
}

const (
	maxID  = 30 // letters in a name and its extension
	maxExt = 8  // what is longer is no extension
)

// identifiers returns the identifiers of names in a directory. Where they would
// be the same, the end of the name becomes a number, counted in the order of
// names.
func (v *volume) identifiers(dir string, names []string) []identifier {
	ids := make([]identifier, len(names))
	type key struct{ name, ext string }
	used := make(map[key]bool, len(names))
	next := map[key]int{}
	for i, name := range names {
		id := newIdentifier(name, !v.tree.Lookup(path.Join(dir, name)).Mode.IsDir())
		want := key{id.name, id.ext}
		for used[key{id.name, id.ext}] {
			next[want]++
			number := fmt.Sprintf("_%d", next[want])
			id.name = want.name[:min(len(want.name), maxID-len(id.ext)-len(number))] + number
		}
		used[key{id.name, id.ext}] = true
		ids[i] = id
	}
	return ids
}

func newIdentifier(name string, file bool) identifier {
	id := identifier{name: name, file: file}
	if dot := strings.LastIndexByte(name, '.'); file && dot > 0 && len(name)-dot-1 <= maxExt {
		id.name, id.ext = name[:dot], capitals(name[dot+1:])
	}
	id.name = capitals(id.name)
	id.name = id.name[:min(len(id.name), maxID-len(id.ext))]
	return id
}

// capitals returns s, byte by byte, in the letters that identifiers may have.
func capitals(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z':
			b[i] = c - 'a' + 'A'
		case c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		default:
			b[i] = '_'
		}
	}
	return string(b)
}

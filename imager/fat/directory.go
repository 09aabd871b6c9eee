package fat

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// unit is how many slots are in the 512 bytes that every device writes whole. All
// slots of a name that is made are in one, so that it is there or is not.
const unit = 512 / entrySize

// directory is one that was read to be changed.
type directory struct {
	entryList
	cluster  int64   // the first one, 0 if it is the root of FAT16
	clusters []int64 // nil if it is the root of FAT16
	content  []byte
}

func (d *directory) slots() int { return len(d.content) / entrySize }

func (d *directory) slot(i int) []byte { return d.content[i*entrySize:][:entrySize] }

// isFree says whether a slot is, which also those after the end are.
func (d *directory) isFree(i int) bool { return i >= d.end || d.content[i*entrySize] == entryFree }

// free marks slots.
func (d *directory) free(first, last int) {
	for i := first; i <= last; i++ {
		d.slot(i)[0] = entryFree
	}
}

// clone returns a copy with a content of its own.
func (d *directory) clone() *directory {
	c := *d
	c.content = slices.Clone(d.content)
	return &c
}

// readDir reads a directory, which was found to be a good one, by its first
// cluster. Orphans are free in its content.
func (e *Editor) readDir(cluster int64) (*directory, error) {
	d := &directory{cluster: cluster}
	if cluster == 0 {
		d.content = make([]byte, e.rootSize)
		if err := e.readAt(d.content, e.rootAt); err != nil {
			return nil, err
		}
	}
	for _, s := range e.spans(cluster) {
		b := make([]byte, s.n*e.cluster)
		if err := e.readAt(b, e.offset(s.first)); err != nil {
			return nil, err
		}
		d.content = append(d.content, b...)
		for c := s.first; c < s.first+s.n; c++ {
			d.clusters = append(d.clusters, c)
		}
	}
	var err error
	if d.entryList, err = parseEntries(d.content, e.bits); err != nil {
		return nil, err
	}
	for _, i := range d.orphans {
		d.free(i, i)
	}
	return d, nil
}

// writeSector writes the sector in which a slot is.
func (e *Editor) writeSector(d *directory, slot int) error {
	at := int64(slot) * entrySize
	at -= at % e.sector
	off := e.rootAt + at
	if d.clusters != nil {
		off = e.offset(d.clusters[at/e.cluster]) + at%e.cluster
	}
	return e.write(d.content[at:at+e.sector], off)
}

func (e *Editor) deleteOrphans(cluster int64) error {
	d, err := e.readDir(cluster)
	if err != nil {
		return err
	}
	perSector := int(e.sector) / entrySize
	for i, slot := range d.orphans {
		if i > 0 && slot/perSector == d.orphans[i-1]/perSector {
			continue
		}
		if err := e.writeSector(d, slot); err != nil {
			return err
		}
	}
	return nil
}

// find returns the entry with a name, or nil. An entry has two names, and drivers
// that minded case may have left some that differ in nothing else.
func (d *directory) find(name string) *found {
	folded := fold(name)
	var like *found
	for i := range d.entries {
		f := &d.entries[i]
		if f.name == name {
			return f
		}
		if like == nil && (fold(f.name) == folded || fold(f.short.String()) == folded) {
			like = f
		}
	}
	return like
}

// isShared says whether another name of the same clusters is in the directory.
func (d *directory) isShared(f *found) bool {
	return slices.ContainsFunc(d.entries, func(other found) bool {
		return other.first != f.first && other.cluster == f.cluster && f.cluster != 0
	})
}

// open returns the directory that is at a path, as far as it exists, and the
// names of the path that are missing.
func (e *Editor) open(name string) (*directory, []string, error) {
	d, err := e.readDir(e.root)
	if err != nil || name == "." {
		return d, nil, err
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		f := d.find(part)
		if f == nil {
			return d, parts[i:], nil
		}
		if f.attr&attrDir == 0 {
			return nil, nil, fmt.Errorf("%s is a file, not a directory: %w", path.Join(parts[:i+1]...), fs.ErrInvalid)
		}
		if d, err = e.readDir(f.cluster); err != nil {
			return nil, nil, err
		}
	}
	return d, nil, nil
}

// lookup returns what is at a path and the directory it is in.
func (e *Editor) lookup(name string) (*directory, *found, error) {
	d, missing, err := e.open(path.Dir(name))
	if err != nil {
		return nil, nil, err
	}
	if len(missing) == 0 {
		if f := d.find(path.Base(name)); f != nil {
			return d, f, nil
		}
	}
	return nil, nil, fs.ErrNotExist
}

// place returns the first of n slots that are free, in one unit. It is the first
// one after the content if there are none.
func (d *directory) place(n int) int {
	for first := 0; first < d.slots(); first += unit {
		if i := d.placeIn(first, n); i >= 0 {
			return i
		}
	}
	return d.slots()
}

// placeIn looks for free slots in the unit that begins with a slot. It returns
// -1 if there are none.
func (d *directory) placeIn(first, n int) int {
	count := 0
	for i := first; i < min(first+unit, d.slots()); i++ {
		if count++; !d.isFree(i) {
			count = 0
		}
		if count == n {
			return i - n + 1
		}
	}
	return -1
}

// names returns a short name for a new entry, and the long one unless the short
// one says it all. The entry except is about to go, if it is not nil.
func (d *directory) names(name string, except *found) (shortName, []uint16, error) {
	used := make(map[shortName]bool, len(d.entries))
	for i := range d.entries {
		f := &d.entries[i]
		if f == except {
			continue
		}
		if fold(f.name) == fold(name) {
			return shortName{}, nil, fs.ErrExist
		}
		used[f.short] = true
		if base, ext, exact := basis(f.name); exact {
			used[newShortName(base, ext)] = true
		}
	}
	base, ext, exact := basis(name)
	short := newShortName(base, ext)
	switch {
	case !exact:
		var err error
		if short, _, err = numbered(base, ext, 1, used); err != nil {
			return shortName{}, nil, err
		}
	case used[short]:
		return shortName{}, nil, fmt.Errorf("%w as the short name of another file", fs.ErrExist)
	}
	if short.String() == name {
		return short, nil, nil
	}
	long := encodeLong(name)
	if n := ceil(int64(len(long)), longUnits) + 1; n > unit {
		return shortName{}, nil, unsupported("a new name takes %d entries of a directory, at most %d are written at once; use one of %d characters", n, unit, (unit-1)*longUnits)
	}
	return short, long, nil
}

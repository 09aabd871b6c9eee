package iso

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// walk goes through the directories without recursion. Each may be used once
// only, which bounds the work and refuses loops.
func (x *reader) walk(root *record) error {
	type dir struct {
		name string
		rec  *record
	}
	queue := []dir{{".", root}}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		subdirs, err := x.directory(d.name, d.rec)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		for _, s := range subdirs {
			queue = append(queue, dir{path.Join(d.name, s.name), s.rec})
		}
	}
	return nil
}

// found is something in a directory.
type found struct {
	name string
	rec  *record
	use  *systemUse
	more []*record // further extents of a file
}

// directory adds what is in a directory to the tree, and returns the
// directories in it.
func (x *reader) directory(name string, rec *record) ([]found, error) {
	if x.seen[rec.at] {
		return nil, corrupt("its sector %d is that of another directory", rec.at)
	}
	x.seen[rec.at] = true
	if x.dirBytes += rec.size; x.dirBytes > maxDirsBytes {
		return nil, corrupt("directories of more than %d bytes", maxDirsBytes)
	}
	if err := x.inside(rec); err != nil {
		return nil, err
	}
	b := make([]byte, rec.size)
	if err := x.readAt(b, rec.at*SectorSize); err != nil {
		return nil, err
	}
	entries, err := x.records(name, b)
	if err != nil {
		return nil, err
	}
	var dirs []found
	for _, f := range entries {
		full := path.Join(name, f.name)
		ino, err := x.inode(f)
		if err == nil {
			if err = x.fs.Tree.Add(full, ino); err != nil {
				err = fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
		}
		if err == nil && f.use.child >= 0 { // it was moved up to be less deep
			f.rec, err = x.relocated(f.use.child)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if ino.Mode.IsDir() {
			dirs = append(dirs, f)
		}
	}
	return dirs, nil
}

// records reads a directory.
func (x *reader) records(dir string, b []byte) ([]found, error) {
	var out []found
	more := false // the last record is continued
	for off, n := 0, 0; off < len(b); off += n {
		if b[off] == 0 { // the rest of the sector is empty
			n = SectorSize - off%SectorSize
			continue
		}
		end := min(len(b), off-off%SectorSize+SectorSize)
		r, err := parseRecord(b[off:end])
		if err != nil {
			return nil, err
		}
		n = r.len
		if len(r.id) == 1 && r.id[0] <= 1 {
			if err := x.dots(dir, r); err != nil {
				return nil, err
			}
			continue
		}
		if r.flags&flagAssociated != 0 {
			continue
		}
		if more {
			last := &out[len(out)-1]
			if x.parts++; x.parts > maxFileParts {
				return nil, corrupt("files in more than %d extents", maxFileParts)
			}
			last.more = append(last.more, r)
			more = r.flags&flagMore != 0
			continue
		}
		if x.paths++; x.paths > maxPaths {
			return nil, corrupt("more than %d files", maxPaths)
		}
		u, err := x.systemUse(r.use)
		if err != nil {
			return nil, err
		}
		name := u.name
		if name == "" {
			name = plainName(r.id)
		}
		more = r.flags&flagMore != 0
		if u.relocated && !more { // it is listed where it belongs
			continue
		}
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
			return nil, corrupt("file name %q", name)
		}
		out = append(out, found{name: name, rec: r, use: u})
	}
	if more {
		return nil, corrupt("%s: its last extent is missing", out[len(out)-1].name)
	}
	return out, nil
}

// dots takes what the entry "." says of the root directory.
func (x *reader) dots(dir string, r *record) error {
	if dir != "." || r.id[0] != 0 {
		return nil
	}
	if u := r.use; len(u) >= 7 && string(u[:2]) == "SP" && u[4] == 0xBE && u[5] == 0xEF {
		x.skip = int(u[6])
		x.rockRidge = true
	}
	u, err := x.systemUse(r.use)
	if err != nil {
		return err
	}
	x.rockRidge = u.posix // SUSP without Rock Ridge is possible
	x.fs.RockRidge = u.posix
	root := &tree.Inode{Mode: fs.ModeDir | 0o555, ModTime: r.mtime}
	if u.posix {
		if u.mode.Type() != fs.ModeDir {
			return corrupt("the root directory has mode %v", u.mode)
		}
		root.Mode, root.UID, root.GID = u.mode, u.uid, u.gid
	}
	if u.hasTime {
		root.ModTime = u.mtime
	}
	return x.fs.Tree.Set(".", root)
}

// plainName returns the name that an identifier stands for, as Linux shows it.
func plainName(id []byte) string {
	s := strings.ToLower(string(id))
	s, _, _ = strings.Cut(s, ";")
	return strings.TrimRight(s, ".")
}

// inside checks that an extent is in the image.
func (x *reader) inside(r *record) error {
	if end := x.src.Size(); r.at*SectorSize > end || r.size > end-r.at*SectorSize {
		return corrupt("%d bytes at %d, but the image has only %d", r.size, r.at*SectorSize, end)
	}
	return nil
}

// relocated returns the record of the directory at a sector.
func (x *reader) relocated(at int64) (*record, error) {
	b := make([]byte, SectorSize)
	if err := x.readAt(b, at*SectorSize); err != nil {
		return nil, err
	}
	r, err := parseRecord(b)
	if err != nil {
		return nil, err
	}
	if r.at != at {
		return nil, corrupt("a directory was moved to sector %d, where there is none", at)
	}
	return r, nil
}

// inode returns what a directory entry stands for.
func (x *reader) inode(f found) (*tree.Inode, error) {
	r, u := f.rec, f.use
	isDir := r.flags&flagDir != 0 || u.child >= 0
	ino := &tree.Inode{Mode: 0o444, ModTime: r.mtime}
	if isDir {
		ino.Mode = fs.ModeDir | 0o555
	}
	if u.hasTime {
		ino.ModTime = u.mtime
	}
	if u.posix {
		if u.child >= 0 {
			u.mode = u.mode.Perm() | fs.ModeDir
		}
		if u.mode.IsDir() != isDir {
			return nil, corrupt("mode %v, but the record's flags are 0x%02x", u.mode, r.flags)
		}
		ino.Mode, ino.UID, ino.GID = u.mode, u.uid, u.gid
	}
	switch ino.Mode.Type() {
	case fs.ModeSymlink:
		if ino.Target = u.target; ino.Target == "" {
			return nil, corrupt("a symbolic link without target")
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		ino.Major, ino.Minor = u.major, u.minor
	case 0:
		return x.content(f, ino)
	}
	return ino, nil
}

// content gives a regular file its content, or returns the inode it already is.
func (x *reader) content(f found, ino *tree.Inode) (*tree.Inode, error) {
	if f.use.compressed {
		return nil, unsupported("compressed contents (zisofs)")
	}
	var size int64
	parts := append([]*record{f.rec}, f.more...)
	for i, r := range parts {
		switch {
		case r.inter:
			return nil, unsupported("interleaved contents")
		case r.volume > 1:
			return nil, unsupported("contents in volume %d of a set", r.volume)
		case r.flags&flagDir != 0:
			return nil, corrupt("one of its extents is a directory")
		case i < len(parts)-1 && r.size%SectorSize != 0:
			return nil, corrupt("an extent of %d bytes that is not the last, want a multiple of %d", r.size, SectorSize)
		}
		size += r.size
	}
	if size == 0 {
		return ino, nil
	}
	key := fileKey{f.use.serial, f.rec.at, size}
	if f.use.links > 1 && f.use.serial != 0 {
		if first := x.files[key]; first != nil {
			return first, nil
		}
		x.files[key] = ino
	}
	m := extent.New(size)
	var off int64
	for _, r := range parts {
		if err := x.inside(r); err != nil {
			return nil, err
		}
		sec, err := extent.Section(x.src, r.at*SectorSize, r.size)
		if err == nil {
			err = m.Put(off, sec)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		off += r.size
	}
	ino.Content = m
	return ino, nil
}

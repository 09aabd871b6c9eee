package fat

import (
	"fmt"
	"io/fs"
	"path"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Rename gives a file another name in the same directory; to fails with
// fs.ErrExist if there is one already. One sector is written if the entries of
// the old name are in one and the new ones fit there too. Otherwise the new
// entries are written first and the old ones deleted then; a cut in between
// leaves both names of the one file. Calling Rename again, or Remove for either
// name, completes it.
func (e *Editor) Rename(from, to string) error {
	return named(from, e.rename(from, to, false))
}

// Replace is Rename that puts the file in the place of the one that has the name
// already, if any. One sector is written to switch: at any time the name is of
// the old content or of the new one. Unless its entry is in the same sector, the
// old name is deleted after that; a cut in between leaves both names of the new
// file. At last the clusters of the old one are freed.
func (e *Editor) Replace(from, to string) error {
	return named(from, e.rename(from, to, true))
}

func (e *Editor) rename(from, to string, replace bool) error {
	if err := e.begin(from); err != nil {
		return err
	}
	if !tree.Valid(to) || to == "." {
		return fmt.Errorf("new name %q: %w", to, fs.ErrInvalid)
	}
	name := path.Base(to)
	if err := checkName(name); err != nil {
		return fmt.Errorf("new name %q: %w", to, err)
	}
	if err := sameDir(from, to); err != nil {
		return err
	}
	d, f, err := e.lookup(from)
	if err != nil {
		return err
	}
	if f.attr&attrDir != 0 {
		return unsupported("a directory cannot be renamed")
	}
	target := d.find(name)
	switch {
	case target == nil || target == f:
		target = nil
	case target.cluster == f.cluster && target.size == f.size && f.cluster != 0:
		return e.erase(d, f) // completes what was cut
	case target.attr&attrDir != 0 || !replace:
		return fmt.Errorf("new name %s: %w", to, fs.ErrExist)
	}
	if d.isShared(f) {
		return unsupported("the file has two names, because a rename was cut; remove one first")
	}
	if target != nil {
		return e.replace(d, f, target)
	}
	if name == f.name {
		return nil
	}
	return e.renameTo(d, f, name)
}

// renameTo gives a file a name that is free.
func (e *Editor) renameTo(d *directory, f *found, name string) error {
	n := &newEntry{}
	var err error
	if n.short, n.long, err = d.names(name, f); err != nil {
		return err
	}
	if f.first/unit == f.last/unit {
		c := d.clone()
		c.free(f.first, f.last)
		if slot := c.placeIn(f.first/unit*unit, n.slots()); slot >= 0 {
			copy(c.content[slot*entrySize:], n.move(d, f))
			if err := e.writeSector(c, slot); err != nil {
				return err
			}
			return e.sync()
		}
	}
	if fold(name) == fold(f.name) {
		return unsupported("the new name differs in the case of letters only and does not fit into the sector of the old one; use another one in between")
	}
	// For a while both are there, and need different short names.
	if n.short, n.long, err = d.names(name, nil); err != nil {
		return err
	}
	r := newRoom(d, n.slots())
	if err := e.check(d, r, r.clusters); err != nil {
		return err
	}
	if err := e.insert(d, r, n.move(d, f)); err != nil {
		return err
	}
	return e.erase(d, f)
}

// move returns the entries with which a file has the name of n.
func (n *newEntry) move(d *directory, f *found) []byte {
	b := n.append(nil)
	last := b[len(b)-entrySize:]
	copy(last[atAttr:], d.slot(f.last)[atAttr:])
	last[atCase] = 0
	return b
}

// replace gives the clusters of f to target.
func (e *Editor) replace(d *directory, f, target *found) error {
	free := e.spans(target.cluster)
	if d.isShared(target) {
		free = nil
	}
	to := d.slot(target.last)
	small := to[atCase]
	copy(to[atAttr:], d.slot(f.last)[atAttr:])
	to[atCase] = small
	at := target.last / unit
	together := f.first/unit == at && f.last/unit == at
	if together {
		d.free(f.first, f.last)
	}
	if err := e.writeSector(d, target.last); err != nil {
		return err
	}
	if err := e.sync(); err != nil {
		return err
	}
	if !together {
		if err := e.erase(d, f); err != nil {
			return err
		}
	}
	e.release(free)
	return e.commit()
}

// Remove removes a file, or a directory that is empty. When its entry is gone
// from the medium its clusters are freed.
func (e *Editor) Remove(name string) error {
	err := e.begin(name)
	if err == nil {
		err = e.remove(name)
	}
	return named(name, err)
}

func (e *Editor) remove(name string) error {
	d, f, err := e.lookup(name)
	if err != nil {
		return err
	}
	if f.attr&attrDir != 0 {
		inside, err := e.readDir(f.cluster)
		if err != nil {
			return err
		}
		if n := len(inside.entries); n > 0 {
			return unsupported("a directory that is not empty, it holds %d files, cannot be removed", n)
		}
	}
	free := e.spans(f.cluster)
	if d.isShared(f) {
		free = nil
	}
	if err := e.erase(d, f); err != nil {
		return err
	}
	e.release(free)
	return e.commit()
}

// erase deletes the entries of a file; the one with the short name, without which
// the others mean nothing, and those in its sector first.
func (e *Editor) erase(d *directory, f *found) error {
	first := max(f.first, f.last/unit*unit)
	d.free(first, f.last)
	if err := e.writeSector(d, f.last); err != nil {
		return err
	}
	if err := e.sync(); err != nil || first == f.first {
		return err
	}
	for ; first > f.first; first -= unit {
		d.free(max(f.first, first-unit), first-1)
		if err := e.writeSector(d, first-1); err != nil {
			return err
		}
	}
	return e.sync()
}

package fat

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
)

// Create makes a file of size bytes, which content must end after, and the
// directories above it that are missing. Its time is in seconds since 1970. It
// fails with fs.ErrExist if the name is taken and with a *SpaceError, before it
// writes anything, if there is no room.
//
// Until the last write, of one sector, the file does not exist; with it the file
// and its new directories are there.
func (e *Editor) Create(ctx context.Context, name string, content io.Reader, size, time int64) error {
	err := e.begin(name)
	if err == nil {
		err = e.create(ctx, name, content, size, newStamp(time))
	}
	return named(name, err)
}

func named(name string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return err
}

// newEntry is an entry that does not exist yet.
type newEntry struct {
	short   shortName
	long    []uint16
	attr    byte
	cluster int64
	parent  int64 // of a directory, as its entry ".." has it
	spans   []span
	size    int64
	at      stamp
}

func (n *newEntry) slots() int { return 1 + int(ceil(int64(len(n.long)), longUnits)) }

func (n *newEntry) append(b []byte) []byte {
	b = appendLong(b, n.long, n.short.checksum())
	return appendShort(b, n.short, n.attr, n.cluster, uint32(n.size), n.at)
}

func (e *Editor) create(ctx context.Context, name string, content io.Reader, size int64, at stamp) (err error) {
	if size < 0 || size > math.MaxUint32 {
		return unsupported("a file of %d bytes, the largest is %d (4 GiB less a byte)", size, int64(math.MaxUint32))
	}
	d, parts, err := e.open(path.Dir(name))
	if err != nil {
		return err
	}
	if parts = append(parts, path.Base(name)); len(parts) == 1 && d.find(parts[0]) != nil {
		return fs.ErrExist
	}
	nodes := make([]*newEntry, len(parts))
	for i, part := range parts {
		if err := checkName(part); err != nil {
			return err
		}
		in := d
		if i > 0 {
			in = &directory{}
		}
		n := &newEntry{attr: attrDir, at: at}
		if n.short, n.long, err = in.names(part, nil); err != nil {
			return err
		}
		nodes[i] = n
	}
	file := nodes[len(nodes)-1]
	file.attr, file.size = attrArchive, size

	// The file comes first, so that it has the longest span.
	room := newRoom(d, nodes[0].slots())
	clusters := ceil(size, e.cluster)
	need := clusters + room.clusters
	for _, n := range nodes[1:] {
		need += ceil(int64(2+n.slots())*entrySize, e.cluster)
	}
	if err := e.check(d, room, need); err != nil {
		return err
	}
	file.spans = e.allocate(clusters)
	defer func() {
		if err != nil {
			for _, n := range nodes {
				e.release(n.spans)
			}
		}
	}()
	parent := d.cluster
	if parent == e.root {
		parent = 0 // by definition, although the root of FAT32 has a cluster
	}
	for i, n := range nodes[:len(nodes)-1] {
		n.spans, n.parent = e.allocate(ceil(int64(2+nodes[i+1].slots())*entrySize, e.cluster)), parent
		n.cluster, parent = n.spans[0].first, n.spans[0].first
	}
	if clusters > 0 {
		file.cluster = file.spans[0].first
	}
	if err := e.stream(ctx, content, size, file.spans); err != nil {
		return err
	}
	for i, n := range nodes[:len(nodes)-1] {
		b := appendShort(nil, newShortName(".", ""), attrDir, n.cluster, 0, at)
		b = appendShort(b, newShortName("..", ""), attrDir, n.parent, 0, at)
		if err := e.fill(n.spans, nodes[i+1].append(b)); err != nil {
			return err
		}
	}
	return e.insert(d, room, nodes[0].append(nil))
}

// stream writes content to clusters.
func (e *Editor) stream(ctx context.Context, content io.Reader, size int64, spans []span) error {
	buf := make([]byte, min(maxWrite, ceil(size, e.sector)*e.sector))
	var done int64
	for _, s := range spans {
		off, end := e.offset(s.first), e.offset(s.first+s.n)
		for off < end && done < size {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(maxWrite, end-off, size-done)
			got, err := io.ReadFull(content, buf[:n])
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return fmt.Errorf("the content ends after %d of %d bytes: %w", done+int64(got), size, io.ErrUnexpectedEOF)
			}
			if err != nil {
				return fmt.Errorf("reading the content after %d of %d bytes: %w", done+int64(got), size, err)
			}
			whole := ceil(n, e.sector) * e.sector
			clear(buf[n:whole])
			if err := e.write(buf[:whole], off); err != nil {
				return err
			}
			off, done = off+whole, done+n
		}
	}
	switch _, err := io.ReadFull(content, make([]byte, 1)); err {
	case nil:
		return fmt.Errorf("the content goes on after %d bytes, which were said to be all", size)
	case io.EOF:
		return nil
	default:
		return fmt.Errorf("reading the content after all %d bytes: %w", size, err)
	}
}

// fill writes b to clusters, and zeros to the rest of them.
func (e *Editor) fill(spans []span, b []byte) error {
	for _, s := range spans {
		p := make([]byte, s.n*e.cluster)
		b = b[copy(p, b):]
		if err := e.write(p, e.offset(s.first)); err != nil {
			return err
		}
	}
	return nil
}

// room is where entries go in a directory: where slots are free, or to a cluster
// that it grows by.
type room struct {
	slot     int
	clusters int64 // 1 if it grows
}

func newRoom(d *directory, slots int) room {
	r := room{slot: d.place(slots)}
	if r.slot == d.slots() {
		r.clusters = 1
	}
	return r
}

// check returns an error unless need clusters are free and d can grow if it has
// to.
func (e *Editor) check(d *directory, r room, need int64) error {
	if r.clusters > 0 && (d.clusters == nil || int64(d.slots())+e.cluster/entrySize > maxDirSlots) {
		return unsupported("the directory is full with %d entries, counting several for a long name", d.slots())
	}
	if need > e.free {
		return &SpaceError{Need: need * e.cluster, Have: e.Free(), inside: true}
	}
	return nil
}

// insert adds entries to a directory, after it has made sure that everything
// else is on the medium.
func (e *Editor) insert(d *directory, r room, set []byte) error {
	// Nothing may be after the end of a directory, so the slots that are left
	// out are made free ones first. They are in one unit.
	if first := d.end; first < r.slot {
		d.free(first, r.slot-1)
		if err := e.writeSector(d, first); err != nil {
			return err
		}
	}
	if r.clusters == 0 {
		if err := e.commit(); err != nil {
			return err
		}
		copy(d.content[r.slot*entrySize:], set)
		if err := e.writeSector(d, r.slot); err != nil {
			return err
		}
		return e.sync()
	}
	grown := e.allocate(r.clusters)
	if err := e.fill(grown, set); err != nil {
		return err
	}
	if err := e.commit(); err != nil {
		return err
	}
	// The entries are in the new cluster already: the link to it, in the first
	// FAT, is what makes them exist.
	e.set(d.clusters[len(d.clusters)-1], grown[0].first)
	return e.commit()
}

// sameDir returns an error unless two paths have the same directory.
func sameDir(from, to string) error {
	if fold(path.Dir(from)) != fold(path.Dir(to)) {
		return unsupported("%s is in another directory", to)
	}
	return nil
}

package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
)

// File is what a file shall hold.
type File struct {
	Name    string        // of an existing file in the directory
	Content extent.Source // nil is empty
	ModTime int64         // seconds since 1970
}

func (f *File) size() int64 {
	if f.Content == nil {
		return 0
	}
	return f.Content.Size()
}

// Rewrite replaces the contents of files that are in one directory. The last of
// files is the one that makes the others valid: it is empty as soon as any of
// the others is not whole, after whatever cut.
//
// The last file stays in the blocks it has. The others share the blocks that
// they have together, in the order given; what is left stays with the last of
// them, unwritten. If there is too little, nothing is written and the error is
// a *SpaceError.
//
// The steps are, each with a Sync:
//
//  1. the last file is made empty;
//  2. the one before it is given all blocks that they share, unwritten;
//  3. the others are made empty, and from here on the file system is clean;
//  4. the contents are written;
//  5. the others are given their blocks;
//  6. the one before the last gives them up;
//  7. the last file gets its size.
//
// In each, a cut leaves the shared blocks with at least one of the files, so that
// Rewrite can be called again. Whatever error there is from step 1 on, the last
// file is empty.
func (e *Editor) Rewrite(ctx context.Context, dir string, files []File) error {
	p, err := e.plan(dir, files)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"empty " + p.last.name, func(context.Context) error { return p.last.empty(e, mappings(p.last.runs, 0)) }},
		{"gather blocks", p.gather},
		{"empty files", p.emptyOthers},
		{"write contents", p.contents},
		{"map contents", p.mapOthers},
		{"release blocks", func(context.Context) error { return p.pool.finish(e) }},
		{"complete " + p.last.name, func(context.Context) error { return p.last.finish(e) }},
	} {
		err := ctx.Err()
		if err == nil {
			err = step.do(ctx)
		}
		if err == nil {
			err = e.sync()
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", dir, step.name, err)
		}
	}
	return nil
}

// Check returns the error with which Rewrite would fail before it writes
// anything, above all a *SpaceError.
func (e *Editor) Check(dir string, files []File) error {
	_, err := e.plan(dir, files)
	return err
}

// plan is where everything goes.
type plan struct {
	*Editor
	last   *target
	pool   *target // the one before the last
	others []*target

	all        []run // shared blocks
	gatherLeaf int64 // block for the tree over all of them, 0 if it fits the inode
}

// target is a file and what becomes of it.
type target struct {
	*file
	src     File
	runs    []run // blocks of the content, front to back, and of the room behind it
	extents []mapping
	leaf    int64 // block of the extent tree, 0 if it fits the inode
}

func (e *Editor) plan(dir string, files []File) (*plan, error) {
	on, err := e.load()
	if err != nil {
		return nil, err
	}
	if len(files) < 2 {
		return nil, fmt.Errorf("%w: %d files, want at least two: the last makes the others valid", ErrOptions, len(files))
	}
	p := &plan{Editor: e}
	var targets []*target
	var mine []*file
	for _, src := range files {
		if src.Name == "" || path.Base(src.Name) != src.Name {
			return nil, fmt.Errorf("%w: file name %q, want one in %s", ErrOptions, src.Name, dir)
		}
		f, err := editable(on, path.Join(dir, src.Name))
		if err != nil {
			return nil, err
		}
		if src.ModTime < minTime || src.ModTime > maxTime || src.size() < 0 || src.size() > maxSize {
			return nil, fmt.Errorf("%w: %s: modification time %d and %d bytes", ErrOptions, f.name, src.ModTime, src.size())
		}
		targets = append(targets, &target{file: f, src: src})
		mine = append(mine, f)
	}
	n := len(targets)
	p.last, p.pool, p.others = targets[n-1], targets[n-2], targets[:n-2]
	for _, t := range targets[:n-1] {
		p.all = append(p.all, t.owned()...)
	}
	p.all = union(p.all)
	own := union(p.last.owned())
	if err := e.guard(on, slices.Concat(p.all, own), mine...); err != nil {
		return nil, err
	}
	if shared := union(slices.Concat(p.all, own)); count(shared) != count(p.all)+count(own) {
		return nil, corrupt("%s shares a block with another file; run e2fsck", p.last.name)
	}
	if err := p.placeLast(own); err != nil {
		return nil, err
	}
	return p, p.place(dir)
}

// placeLast leaves the last file in its blocks.
func (p *plan) placeLast(own []run) error {
	need := ceil(p.last.src.size(), blockSize)
	if need > count(own) {
		return &SpaceError{Path: p.last.name, Need: need * blockSize, Have: count(own) * blockSize}
	}
	p.last.runs = own
	p.last.extents = mappings(own, need)
	if len(p.last.index) > 0 || len(p.last.extents) > rootExtents || len(mappings(own, 0)) > rootExtents {
		return unsupported("%s has an extent tree of %d blocks, want one that fits the inode", p.last.name, len(p.last.index))
	}
	return nil
}

// place hands out the shared blocks. If extents do not fit into the pool's inode
// they need a block, which then holds no content: one while the blocks are
// gathered, which is not one that the inodes on disk refer to, and another one
// for the contents, as the first is in use until they are written.
func (p *plan) place(dir string) error {
	var need int64
	var current []int64
	for _, t := range append(slices.Clone(p.others), p.pool) {
		need += ceil(t.src.size(), blockSize)
		current = append(current, t.index...)
	}
	have := count(p.all)
	if len(mappings(p.all, 0)) > rootExtents {
		if p.gatherLeaf = lastBlock(p.all, current...); p.gatherLeaf == 0 {
			return unsupported("the %d blocks that files in %s share are all in extent trees", have, dir)
		}
	}
	blocks := p.all
	p.handOut(blocks)
	if len(p.pool.extents) > rootExtents {
		p.pool.leaf = lastBlock(p.all, p.gatherLeaf)
		blocks = without(p.all, p.pool.leaf)
	}
	room := count(blocks)
	if p.gatherLeaf != 0 {
		room = countBefore(blocks, p.gatherLeaf)
	}
	if need > room {
		return &SpaceError{Path: dir, Need: (need + have - room) * blockSize, Have: have * blockSize}
	}
	p.handOut(blocks)
	if n := max(len(p.pool.extents), len(mappings(p.all, 0))+1); n > leafExtents {
		return unsupported("%s would have %d extents, %d are possible", p.pool.name, n, leafExtents)
	}
	for _, t := range p.others {
		if n := len(t.extents); n > rootExtents {
			return unsupported("%s would have %d extents, only the file before the last may have more than %d", t.name, n, rootExtents)
		}
	}
	return nil
}

// handOut gives blocks to the files, front to back.
func (p *plan) handOut(blocks []run) {
	for _, t := range p.others {
		t.runs, blocks = cut(blocks, ceil(t.src.size(), blockSize))
		t.extents = mappings(t.runs, count(t.runs))
	}
	p.pool.runs = blocks
	p.pool.extents = mappings(blocks, ceil(p.pool.src.size(), blockSize))
}

func (p *plan) gather(context.Context) error {
	blocks := p.all
	if p.gatherLeaf != 0 {
		blocks = without(blocks, p.gatherLeaf)
		if err := p.pool.writeLeaf(p.Editor, mappings(blocks, 0), p.gatherLeaf); err != nil {
			return err
		}
		if err := p.sync(); err != nil {
			return err
		}
	}
	return p.pool.writeInode(p.Editor, 0, mappings(blocks, 0), p.gatherLeaf)
}

func (p *plan) emptyOthers(context.Context) error {
	for _, t := range p.others {
		if err := t.empty(p.Editor, nil); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) contents(ctx context.Context) error {
	for _, t := range append(slices.Clone(p.others), p.pool, p.last) {
		if err := t.writeContent(ctx, p.Editor); err != nil {
			return fmt.Errorf("%s: %w", t.src.Name, err)
		}
	}
	if p.pool.leaf != 0 {
		return p.pool.writeLeaf(p.Editor, p.pool.extents, p.pool.leaf)
	}
	return nil
}

func (p *plan) mapOthers(context.Context) error {
	for _, t := range p.others {
		if err := t.finish(p.Editor); err != nil {
			return err
		}
	}
	return nil
}

// chunkSize is what is read and written at once.
const chunkSize = 1 << 20

// writeContent writes whole blocks, the last one with zeros.
func (t *target) writeContent(ctx context.Context, e *Editor) error {
	buf := make([]byte, min(chunkSize, ceil(t.src.size(), blockSize)*blockSize))
	var at int64
	for _, m := range t.extents {
		for off := int64(0); off < m.n*blockSize && !m.unwritten; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), m.n*blockSize-off)]
			n := min(int64(len(b)), t.src.size()-at)
			if _, err := io.ReadFull(io.NewSectionReader(t.src.Content, at, n), b[:n]); err != nil {
				return fmt.Errorf("content at %d of %d: %w", at, t.src.size(), err)
			}
			clear(b[n:])
			if err := e.write(b, m.start*blockSize+off); err != nil {
				return err
			}
			at += n
			off += int64(len(b))
		}
	}
	return nil
}

func (t *target) empty(e *Editor, extents []mapping) error { return t.writeInode(e, 0, extents, 0) }

func (t *target) finish(e *Editor) error { return t.writeInode(e, t.src.size(), t.extents, t.leaf) }

// tree returns the root of an extent tree, and its only other node if there is
// one.
func (t *target) tree(e *Editor, extents []mapping, leaf int64) ([blockMapSize]byte, [][]byte) {
	return extentTree(extents, []int64{leaf}, e.inodeSeed(t.ino, t.raw))
}

func (t *target) writeLeaf(e *Editor, extents []mapping, leaf int64) error {
	_, nodes := t.tree(e, extents, leaf)
	return e.write(nodes[0], leaf*blockSize)
}

// writeInode writes the sector with the inode.
func (t *target) writeInode(e *Editor, size int64, extents []mapping, leaf int64) error {
	le := binary.LittleEndian
	var blocks int64
	for _, m := range extents {
		blocks += m.n
	}
	if leaf != 0 {
		blocks++
	}
	root, _ := t.tree(e, extents, leaf)
	b := slices.Clone(t.raw)
	le.PutUint32(b[4:], uint32(size))
	le.PutUint32(b[108:], uint32(size>>32))
	le.PutUint32(b[28:], uint32(blocks*sectorsPerBlk))
	le.PutUint16(b[116:], uint16(blocks*sectorsPerBlk>>32))
	copy(b[blockMapAt:], root[:])
	for _, at := range []int{8, 12, 16} { // and their high bits
		le.PutUint32(b[at:], uint32(t.src.ModTime))
	}
	for _, at := range []int{132, 136, 140} {
		le.PutUint32(b[at:], timeEpoch(t.src.ModTime))
	}
	sum := inodeChecksum(b, e.inodeSeed(t.ino, b))
	le.PutUint16(b[124:], uint16(sum))
	le.PutUint16(b[130:], uint16(sum>>16))

	at, err := e.inodeAt(t.ino)
	if err != nil {
		return err
	}
	sector := make([]byte, sectorSize)
	if err := e.readAt(sector, at&^(sectorSize-1)); err != nil {
		return err
	}
	copy(sector[at%sectorSize:], b)
	return e.write(sector, at&^(sectorSize-1))
}

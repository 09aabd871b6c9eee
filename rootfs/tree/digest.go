package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
)

// Digest returns a SHA-256 over everything in the tree: names, metadata, hard
// link relations and contents. Two trees with the same digest give the same
// bytes in every writer.
func (t *Tree) Digest() ([sha256.Size]byte, error) {
	d := digester{h: sha256.New(), seen: map[*Inode]string{}}
	d.text("kiln tree v1")
	for name, ino := range t.All() {
		if err := d.entry(name, ino); err != nil {
			return [sha256.Size]byte{}, err
		}
	}
	return [sha256.Size]byte(d.h.Sum(nil)), nil
}

type digester struct {
	h    hash.Hash
	seen map[*Inode]string // the first path of each inode
	num  [8]byte
	buf  []byte
}

func (d *digester) entry(name string, ino *Inode) error {
	d.text(name)
	if first, ok := d.seen[ino]; ok {
		d.text("link")
		d.text(first)
		return nil
	}
	d.seen[ino] = name
	d.text("inode")
	for _, n := range []int64{int64(ino.Mode), int64(ino.UID), int64(ino.GID), ino.ModTime, int64(ino.Major), int64(ino.Minor)} {
		d.number(n)
	}
	d.text(ino.Target)
	d.number(int64(len(ino.Xattrs)))
	for _, k := range slices.Sorted(maps.Keys(ino.Xattrs)) {
		d.text(k)
		d.text(string(ino.Xattrs[k]))
	}
	d.number(ino.Size())
	if ino.Content == nil {
		return nil
	}
	if d.buf == nil {
		d.buf = make([]byte, 128<<10)
	}
	n, err := io.CopyBuffer(d.h, io.NewSectionReader(ino.Content, 0, ino.Size()), d.buf)
	if err == nil && n != ino.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// number and text are self-delimiting, so that no two trees share an encoding.
func (d *digester) number(n int64) {
	binary.LittleEndian.PutUint64(d.num[:], uint64(n))
	d.h.Write(d.num[:])
}

func (d *digester) text(s string) {
	d.number(int64(len(s)))
	io.WriteString(d.h, s)
}

package gcetar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
)

const (
	// maxEntries is how many entries of the archive are looked at.
	maxEntries = 1000

	// maxPieces bounds the memory for the map of the file.
	maxPieces = 1 << 22

	// maxDisk is a size that no disk has, so that sums do not overflow.
	maxDisk = 1 << 60
)

// Open returns the disk in an archive, compressed or not, as a map whose holes
// are those of the file. Of compressed ones it takes what compress.Open does: for
// others the error is compress.ErrSequential, and the archive has to be
// decompressed first.
//
// Other files in the archive are passed over. Sparse files in formats newer than
// the old GNU one are refused.
func Open(src extent.Source) (*extent.Map, error) {
	start := make([]byte, 6)
	n, err := src.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if compress.Detect(start[:n]) != "" {
		if src, err = compress.Open(src); err != nil {
			return nil, err
		}
	}
	at := int64(0)
	for range maxEntries {
		h, err := readBlock(src, at)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(h, make([]byte, block)) {
			break
		}
		e, err := parse(src, at, h)
		if err != nil {
			return nil, err
		}
		switch {
		case e.name == Name && e.kind == sparseType:
			return e.sparse(src)
		case e.name == Name && (e.kind == '0' || e.kind == 0):
			s, err := extent.Section(src, e.content, e.size)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			return extent.Concat(1, s)
		case e.kind == 'x' || e.kind == 'g':
			b := make([]byte, min(e.size, 1<<20))
			if _, err := io.ReadFull(io.NewSectionReader(src, e.content, e.size), b); err != nil {
				return nil, fmt.Errorf("%w: ends in a header: %w", ErrCorrupt, err)
			}
			if bytes.Contains(b, []byte("GNU.sparse.")) {
				return nil, fmt.Errorf("%w: a sparse file in the POSIX format; make the archive with --format=oldgnu", ErrCorrupt)
			}
		}
		at = e.content + extent.Align(e.size, block)
	}
	return nil, fmt.Errorf("%w: there is no such file in it", ErrCorrupt)
}

// entry is one header of the archive.
type entry struct {
	name    string
	kind    byte
	content int64 // offset
	size    int64
	real    int64 // size of a sparse file
	pieces  []piece
}

func readBlock(src extent.Source, at int64) ([]byte, error) {
	b := make([]byte, block)
	if n, err := src.ReadAt(b, at); n < block {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: ends at %d", ErrCorrupt, at+int64(n))
		}
		return nil, err
	}
	return b, nil
}

func parse(src extent.Source, at int64, h []byte) (*entry, error) {
	sum, err := number(h[checksumField:][:8])
	if err != nil || sum != checksum(h) {
		return nil, fmt.Errorf("%w: no header with a right checksum at %d", ErrCorrupt, at)
	}
	name, _, _ := strings.Cut(string(h[nameField:][:100]), "\x00")
	e := &entry{name: strings.TrimPrefix(name, "./"), kind: h[typeField], content: at + block}
	if e.size, err = number(h[sizeField:][:numberSize]); err != nil {
		return nil, fmt.Errorf("%w: header at %d: size: %w", ErrCorrupt, at, err)
	}
	if e.size > src.Size()-e.content {
		return nil, fmt.Errorf("%w: %s has %d bytes, %d are left", ErrCorrupt, e.name, e.size, src.Size()-e.content)
	}
	if e.kind != sparseType {
		return e, nil
	}
	if e.real, err = number(h[realSizeField:][:numberSize]); err != nil {
		return nil, fmt.Errorf("%w: header at %d: real size: %w", ErrCorrupt, at, err)
	}
	more, err := e.addPieces(h[sparseField:extendedField], h[extendedField] != 0)
	for err == nil && more {
		if h, err = readBlock(src, e.content); err != nil {
			return nil, err
		}
		e.content += block
		more, err = e.addPieces(h[:extensionExtend], h[extensionExtend] != 0)
	}
	return e, err
}

// addPieces adds the pieces in b, up to the first that is empty, and says
// whether to go on.
func (e *entry) addPieces(b []byte, more bool) (bool, error) {
	for ; len(b) >= pieceSize; b = b[pieceSize:] {
		if b[0] == 0 {
			return false, nil
		}
		offset, err := number(b[:numberSize])
		if err != nil {
			return false, fmt.Errorf("%w: map of %s: %w", ErrCorrupt, e.name, err)
		}
		size, err := number(b[numberSize:pieceSize])
		if err != nil {
			return false, fmt.Errorf("%w: map of %s: %w", ErrCorrupt, e.name, err)
		}
		if len(e.pieces) == maxPieces {
			return false, fmt.Errorf("%w: map of %s: more than %d pieces", ErrCorrupt, e.name, maxPieces)
		}
		e.pieces = append(e.pieces, piece{offset, size})
	}
	return more, nil
}

// sparse returns the content of a sparse file.
func (e *entry) sparse(src extent.Source) (*extent.Map, error) {
	m := extent.New(e.real)
	at, end := e.content, int64(0)
	for _, p := range e.pieces {
		if p.offset < end || p.offset > e.real || p.size > e.real-p.offset {
			return nil, fmt.Errorf("%w: map of %s: %d bytes at %d, after %d and in %d", ErrCorrupt, e.name, p.size, p.offset, end, e.real)
		}
		s, err := extent.Section(src, at, p.size)
		if err == nil {
			err = m.Put(p.offset, s)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: map of %s: %w", ErrCorrupt, e.name, err)
		}
		at += extent.Align(p.size, block)
		end = p.offset + p.size
	}
	if stored := extent.Align(e.size, block); at-e.content != stored {
		return nil, fmt.Errorf("%w: map of %s: pieces of %d bytes, the archive has %d", ErrCorrupt, e.name, at-e.content, stored)
	}
	return m, nil
}

var errNumber = errors.New("not a number")

// number reads what putNumber writes; spaces around octal digits are allowed.
func number(b []byte) (int64, error) {
	var v uint64
	if b[0]&0x80 != 0 {
		v = uint64(b[0] & 0x7f)
		for _, c := range b[1:] {
			if v > maxDisk {
				return 0, fmt.Errorf("%w: %q", errNumber, b)
			}
			v = v<<8 | uint64(c)
		}
	} else {
		digits := strings.Trim(string(b), " \x00")
		for _, c := range []byte(digits) {
			if c < '0' || c > '7' || v > maxDisk {
				return 0, fmt.Errorf("%w: %q", errNumber, b)
			}
			v = v<<3 | uint64(c-'0')
		}
	}
	if v > maxDisk {
		return 0, fmt.Errorf("%w: %q", errNumber, b)
	}
	return int64(v), nil
}

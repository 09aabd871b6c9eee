package cpio

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// How a segment is compressed.
const (
	Stored = "stored"
	Zstd   = "zstd"
)

// Segment is a part of an initramfs image: one stored archive, or what was
// compressed together.
type Segment struct {
	Offset int64 // in the image
	Size   int64 // in the image, in bytes, without the padding that follows
	// Compression is Stored, Zstd, or the name of a method this package does
	// not unpack ("gzip", "xz", …). Such a segment has no Entries, and as its
	// end cannot be told it is the last.
	Compression string
	Entries     []Entry
}

// Entry is a named file. Entries with the same Inode are hard links.
type Entry struct {
	Name  string // relative and clean, as in a tree; the root is "."
	Inode *tree.Inode
}

// maxWindow is the largest zstd window the kernel accepts.
const maxWindow = 128 << 20

// Read lists what is in the initramfs image of size bytes in r. Contents of
// stored segments stay where they are: r must remain readable as long as they
// are used, and be safe for concurrent use. Segments compressed with zstd are
// unpacked into memory; if that takes more than limit bytes in all, the error
// is ErrLimit.
//
// The rules are the kernel's, but where the kernel would go on with a part of
// the files, or a name leads out of the root, Read returns an error.
func Read(r io.ReaderAt, size, limit int64) ([]Segment, error) {
	image := source{r, size}
	var segments []Segment
	pos := int64(0)
	for {
		var err error
		if pos, err = image.skipZeros(pos); err != nil {
			return nil, err
		}
		if pos == size {
			return segments, nil
		}
		s, unpacked, err := readSegment(image, pos, limit)
		if err != nil {
			return nil, err
		}
		limit -= unpacked
		segments = append(segments, s)
		pos += s.Size
	}
}

// readSegment reads the segment at pos, and returns also how many bytes of
// memory its contents take.
func readSegment(image source, pos, limit int64) (Segment, int64, error) {
	magic := make([]byte, min(6, image.size-pos))
	if err := image.read(magic, pos); err != nil {
		return Segment{}, 0, err
	}
	s := Segment{Offset: pos, Size: image.size - pos, Compression: method(magic)}
	switch s.Compression {
	case Stored:
		entries, end, err := readArchive(image, pos)
		if err != nil {
			return Segment{}, 0, err
		}
		s.Entries, s.Size = entries, end-pos
		return s, 0, nil
	case Zstd:
		size, err := frameSize(image, pos)
		if err != nil {
			return Segment{}, 0, fmt.Errorf("zstd segment at offset %d: %w", pos, err)
		}
		data, err := unpack(io.NewSectionReader(image, pos, size), limit)
		if err != nil {
			return Segment{}, 0, fmt.Errorf("zstd segment at offset %d: %w", pos, err)
		}
		if s.Entries, err = readArchives(data); err != nil {
			return Segment{}, 0, fmt.Errorf("in the zstd segment at offset %d: %w", pos, err)
		}
		s.Size = size
		return s, int64(len(data)), nil
	case "":
		return Segment{}, 0, fmt.Errorf("%w: %q at offset %d is the beginning of no archive and no compression", ErrFormat, magic, pos)
	}
	return s, 0, nil
}

// method tells a segment's compression by its first bytes, as the kernel does.
func method(magic []byte) string {
	for _, m := range [...]struct{ magic, name string }{
		{"0707", Stored},
		{"\x28\xb5", Zstd},
		{"\x1f\x8b", "gzip"},
		{"\x1f\x9e", "gzip"},
		{"\xfd7", "xz"},
		{"BZ", "bzip2"},
		{"\x5d\x00", "lzma"},
		{"\x89L", "lzo"},
		{"\x02\x21", "lz4"},
	} {
		if strings.HasPrefix(string(magic), m.magic) {
			return m.name
		}
	}
	return ""
}

// readArchives reads the archives that were compressed together.
func readArchives(data []byte) ([]Entry, error) {
	all := source{bytes.NewReader(data), int64(len(data))}
	var entries []Entry
	pos := int64(0)
	for {
		var err error
		if pos, err = all.skipZeros(pos); err != nil {
			return nil, err
		}
		if pos == all.size {
			return entries, nil
		}
		more, end, err := readArchive(all, pos)
		if err != nil {
			return nil, err
		}
		entries = append(entries, more...)
		pos = end
	}
}

// frameSize returns the size in bytes of the zstd frame at pos. The format is
// that of RFC 8878, section 3.1.1.
func frameSize(image source, pos int64) (int64, error) {
	b := make([]byte, min(zstd.HeaderMaxSize, image.size-pos))
	if err := image.read(b, pos); err != nil {
		return 0, err
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil || h.Skippable {
		return 0, fmt.Errorf("%w: bad frame header", ErrFormat)
	}
	off := pos + int64(h.HeaderSize)
	for last := false; !last; {
		var b [3]byte
		if err := image.read(b[:], off); err != nil {
			return 0, err
		}
		block := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = block&1 != 0
		size := int64(block >> 3)
		if kind := block >> 1 & 3; kind == 1 { // one byte, to be repeated
			size = 1
		}
		off += 3 + size
	}
	if h.HasCheckSum {
		off += 4
	}
	if off > image.size {
		return 0, fmt.Errorf("%w: frame cut off: it ends at %d, the image at %d", ErrFormat, off, image.size)
	}
	return off - pos, nil
}

// unpack returns what the frame in r holds, up to limit bytes.
func unpack(r io.Reader, limit int64) ([]byte, error) {
	z, err := zstd.NewReader(r,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data, err := io.ReadAll(io.LimitReader(z, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: more than the %d bytes that are allowed", ErrLimit, limit)
	}
	return data, nil
}

// source is an image of known size.
type source struct {
	io.ReaderAt
	size int64
}

func (s source) Size() int64 { return s.size }

// read fills p from offset off.
func (s source) read(p []byte, off int64) error {
	if off < 0 || int64(len(p)) > s.size-off {
		return fmt.Errorf("%w: cut off: %d bytes wanted at offset %d of %d", ErrFormat, len(p), off, s.size)
	}
	n, err := s.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// skipZeros returns the offset of the first byte from off on that is not zero,
// or the size.
func (s source) skipZeros(off int64) (int64, error) {
	// Padding is short as a rule.
	for buf := make([]byte, 16); off < s.size; buf = make([]byte, 64<<10) {
		p := buf[:min(int64(len(buf)), s.size-off)]
		if err := s.read(p, off); err != nil {
			return 0, err
		}
		for i, b := range p {
			if b != 0 {
				return off + int64(i), nil
			}
		}
		off += int64(len(p))
	}
	return off, nil
}

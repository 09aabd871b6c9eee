// Package udf reads UDF file systems from optical media: the one in which Azure
// hands a machine its OVF environment.
//
// The format is the OSTA Universal Disk Format 1.02 to 2.01 on read-only media, a
// profile of ECMA-167. Sectors have 2048 bytes, all integers are little-endian.
// Every descriptor begins with a tag of 16 bytes, whose first two tell what it is:
//
//	  2  anchor, in sector 256: where the volume descriptors are
//	  5  partition: where it begins, and its length
//	  6  logical volume: its name, its partitions, where the file set is
//	  8  end of the volume descriptors
//	256  file set: where the root directory is
//	257  file identifier, an entry of a directory: name, and where the file is
//	261  file entry: type, length and extents; or the content itself
//	266  the same with more fields
//
// Partitions that are virtual, sparable or have metadata of their own, as on media
// that can be written, are refused.
package udf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"unicode/utf16"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// sectorSize is that of optical media, and of logical blocks on them.
const sectorSize = 2048

// Limits of what Open accepts.
const (
	maxDescriptors = 64
	maxPaths       = 4096
	maxDepth       = 16
	maxDirectory   = 1 << 20 // bytes
	maxExtents     = 1024    // of a file
)

// Tags.
const (
	tagAnchor     = 2
	tagPartition  = 5
	tagLogical    = 6
	tagTerminator = 8
	tagFileSet    = 256
	tagIdentifier = 257
	tagEntry      = 261
	tagExtended   = 266
)

// ErrFormat is wrapped by Open's error for what is no UDF file system at all.
var ErrFormat = errors.New("not a UDF file system")

// FileSystem is what Open found.
type FileSystem struct {
	Label string // of the logical volume
	// Tree holds all files. Contents are sections of the reader given to Open.
	Tree *tree.Tree
}

// reader reads a file system.
type reader struct {
	src       extent.Source
	start     map[uint16]int64 // first sector of a partition, by its number
	length    map[uint16]int64 // in sectors
	partition []uint16         // numbers of the partitions of the logical volume
	fileSet   allocation
	fs        *FileSystem
}

// An allocation is a long_ad: a place in a partition.
type allocation struct {
	kind  byte // 0 recorded, 1 and 2 not recorded, 3 continues elsewhere
	size  int64
	block int64
	ref   uint16 // index in the list of partitions
}

// Open reads the descriptors and directories of the file system in src.
func Open(src extent.Source) (*FileSystem, error) {
	r := &reader{src: src, start: map[uint16]int64{}, length: map[uint16]int64{}, fs: &FileSystem{Tree: tree.New()}}
	anchor, err := r.sector(256, tagAnchor)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := r.volume(binary.LittleEndian.Uint32(anchor[16:]), binary.LittleEndian.Uint32(anchor[20:])); err != nil {
		return nil, err
	}
	at, err := r.place(r.fileSet)
	if err != nil {
		return nil, fmt.Errorf("UDF file set: %w", err)
	}
	set, err := r.sector(at, tagFileSet)
	if err != nil {
		return nil, fmt.Errorf("UDF file set: %w", err)
	}
	if err := r.directory(".", longAllocation(set[400:]), 0); err != nil {
		return nil, err
	}
	return r.fs, nil
}

// sector reads a sector that begins with that tag.
func (r *reader) sector(n int64, tag uint16) ([]byte, error) {
	b, found, err := r.descriptor(n)
	if err != nil {
		return nil, err
	}
	if found != tag {
		return nil, fmt.Errorf("sector %d: found the tag %d, want %d", n, found, tag)
	}
	return b, nil
}

// descriptor reads a sector that begins with a tag.
func (r *reader) descriptor(n int64) (b []byte, tag uint16, err error) {
	if n < 0 || n >= r.src.Size()/sectorSize {
		return nil, 0, fmt.Errorf("sector %d is behind the end", n)
	}
	b = make([]byte, sectorSize)
	if err := readFull(r.src, b, n*sectorSize); err != nil {
		return nil, 0, err
	}
	if tag, err = checkTag(b); err != nil {
		return nil, 0, fmt.Errorf("sector %d: %w", n, err)
	}
	return b, tag, nil
}

// checkTag returns the number of a tag; byte 4 is the sum of the others.
func checkTag(b []byte) (uint16, error) {
	if len(b) < 16 {
		return 0, errors.New("no room for a tag")
	}
	var sum byte
	for i, c := range b[:16] {
		if i != 4 {
			sum += c
		}
	}
	tag := binary.LittleEndian.Uint16(b)
	if tag == 0 || sum != b[4] {
		return 0, errors.New("found no tag with a right checksum")
	}
	return tag, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(b))), b)
	return err
}

// volume reads the volume descriptors in size bytes from a sector on.
func (r *reader) volume(size, first uint32) error {
	logical, ended := false, false
	for i := int64(0); i < min(int64(size)/sectorSize, maxDescriptors) && !ended; i++ {
		b, tag, err := r.descriptor(int64(first) + i)
		if err != nil {
			return fmt.Errorf("UDF volume descriptors: %w", err)
		}
		switch tag {
		case tagPartition:
			n := binary.LittleEndian.Uint16(b[22:])
			r.start[n] = int64(binary.LittleEndian.Uint32(b[188:]))
			r.length[n] = int64(binary.LittleEndian.Uint32(b[192:]))
		case tagLogical:
			if err := r.logical(b); err != nil {
				return fmt.Errorf("UDF logical volume: %w", err)
			}
			logical = true
		case tagTerminator:
			ended = true
		}
	}
	if !logical {
		return errors.New("UDF volume descriptors: there is no logical volume")
	}
	return nil
}

func (r *reader) logical(b []byte) error {
	if n := binary.LittleEndian.Uint32(b[212:]); n != sectorSize {
		return fmt.Errorf("blocks have %d bytes, want %d", n, sectorSize)
	}
	r.fs.Label = text(trimDString(b[84:212]))
	r.fileSet = longAllocation(b[248:])
	maps := b[440:]
	if n := binary.LittleEndian.Uint32(b[264:]); int64(n) < int64(len(maps)) {
		maps = maps[:n]
	}
	r.partition = nil
	for range binary.LittleEndian.Uint32(b[268:]) {
		if len(maps) < 6 || maps[0] != 1 || maps[1] != 6 {
			return errors.New("a partition is not a plain one, which is not supported")
		}
		r.partition = append(r.partition, binary.LittleEndian.Uint16(maps[4:]))
		maps = maps[6:]
	}
	return nil
}

// longAllocation reads a long_ad of 16 bytes.
func longAllocation(b []byte) allocation {
	n := binary.LittleEndian.Uint32(b)
	return allocation{byte(n >> 30), int64(n & (1<<30 - 1)), int64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint16(b[8:])}
}

// place returns the sector at which an allocation begins, all of which is in its
// partition.
func (r *reader) place(a allocation) (int64, error) {
	if int(a.ref) >= len(r.partition) {
		return 0, fmt.Errorf("found the partition %d of %d", a.ref, len(r.partition))
	}
	n := r.partition[a.ref]
	start, ok := r.start[n]
	if !ok || a.block+(a.size+sectorSize-1)/sectorSize > r.length[n] {
		return 0, fmt.Errorf("block %d is outside of the partition", a.block)
	}
	return start + a.block, nil
}

// A file is what a file entry says.
type file struct {
	mode    fs.FileMode
	content tree.Content
}

// entry reads a file entry.
func (r *reader) entry(a allocation) (*file, error) {
	at, err := r.place(a)
	if err != nil {
		return nil, err
	}
	b, tag, err := r.descriptor(at)
	if err != nil {
		return nil, err
	}
	head := 176
	switch tag {
	case tagEntry:
	case tagExtended:
		head = 216
	default:
		return nil, fmt.Errorf("sector %d: found the tag %d, want that of a file entry", at, tag)
	}
	f := &file{mode: 0o444}
	switch kind := b[27]; kind {
	case 4:
		f.mode = fs.ModeDir | 0o555
	case 5:
	default:
		f.mode = fs.ModeIrregular
		return f, nil
	}
	size := binary.LittleEndian.Uint64(b[56:])
	attributes, descriptors := binary.LittleEndian.Uint32(b[head-8:]), binary.LittleEndian.Uint32(b[head-4:])
	if size > 1<<40 || int64(head)+int64(attributes)+int64(descriptors) > sectorSize {
		return nil, fmt.Errorf("sector %d: the file entry does not fit", at)
	}
	list := b[head+int(attributes):][:descriptors]
	f.content, err = r.contents(list, int64(size), binary.LittleEndian.Uint16(b[34:])&7, a.ref)
	if err != nil {
		return nil, fmt.Errorf("sector %d: %w", at, err)
	}
	return f, nil
}

// contents returns the content of a file with that list of allocations, of a form:
// 0 short ones, in the file entry's own partition, 1 long ones, 3 the content itself.
func (r *reader) contents(list []byte, size int64, form uint16, ref uint16) (tree.Content, error) {
	width := 8
	switch form {
	case 0:
	case 1:
		width = 16
	case 3:
		if size > int64(len(list)) {
			return nil, errors.New("the content does not fit the file entry")
		}
		return extent.Bytes(list[:size]), nil
	default:
		return nil, fmt.Errorf("allocations of the form %d are not supported", form)
	}
	m := extent.New(size)
	off := int64(0)
	for n := 0; len(list) >= width && off < size; n++ {
		a := allocation{ref: ref}
		if width == 16 {
			a = longAllocation(list)
		} else {
			v := binary.LittleEndian.Uint32(list)
			a.kind, a.size, a.block = byte(v>>30), int64(v&(1<<30-1)), int64(binary.LittleEndian.Uint32(list[4:]))
		}
		list = list[width:]
		if a.size == 0 {
			break
		}
		if a.kind == 3 || n == maxExtents {
			return nil, errors.New("a file with more extents than its entry has room for is not supported")
		}
		use := min(a.size, size-off)
		if a.kind == 0 {
			at, err := r.place(a)
			if err != nil {
				return nil, err
			}
			s, err := extent.Section(r.src, at*sectorSize, use)
			if err != nil {
				return nil, err
			}
			if err := m.Put(off, s); err != nil {
				return nil, err
			}
		}
		off += use
	}
	if off < size {
		return nil, fmt.Errorf("the file has %d bytes, and extents for %d", size, off)
	}
	return m, nil
}

// directory adds the directory whose file entry is at a, and all below it.
func (r *reader) directory(name string, a allocation, depth int) error {
	bad := func(err error) error { return fmt.Errorf("UDF directory %q: %w", name, err) }
	f, err := r.entry(a)
	switch {
	case err != nil:
		return bad(err)
	case !f.mode.IsDir():
		return bad(errors.New("found a file"))
	case f.content.Size() > maxDirectory || depth == maxDepth:
		return bad(fmt.Errorf("more than %d bytes, or %d levels deep", maxDirectory, maxDepth))
	}
	if name != "." {
		if err := r.fs.Tree.Add(name, &tree.Inode{Mode: f.mode}); err != nil {
			return bad(err)
		}
	}
	list := make([]byte, f.content.Size())
	if err := readFull(f.content, list, 0); err != nil {
		return bad(err)
	}
	for len(list) > 0 {
		n, err := r.identifier(name, list, depth)
		if err != nil {
			return bad(err)
		}
		list = list[n:]
	}
	return nil
}

// identifier adds the file that the first entry of a directory's list names, and
// returns the length of the entry.
func (r *reader) identifier(dir string, list []byte, depth int) (int, error) {
	const (
		isDirectory = 1 << 1
		isDeleted   = 1 << 2
		isParent    = 1 << 3
		head        = 38
	)
	if tag, err := checkTag(list); err != nil {
		return 0, err
	} else if tag != tagIdentifier || len(list) < head {
		return 0, fmt.Errorf("found the tag %d, want %d", tag, tagIdentifier)
	}
	use := int(binary.LittleEndian.Uint16(list[36:]))
	end := head + use + int(list[19])
	next := (end + 3) &^ 3
	if next > len(list) {
		return 0, errors.New("the last entry is cut off")
	}
	if list[18]&(isDeleted|isParent) != 0 {
		return next, nil
	}
	if r.fs.Tree.Len() >= maxPaths {
		return 0, fmt.Errorf("more than %d files", maxPaths)
	}
	name := path.Join(dir, text(list[head+use:end]))
	if !tree.Valid(name) || path.Dir(name) != dir {
		return 0, fmt.Errorf("found the name %q", name)
	}
	a := longAllocation(list[20:])
	if list[18]&isDirectory != 0 {
		return next, r.directory(name, a, depth+1)
	}
	f, err := r.entry(a)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return next, r.fs.Tree.Add(name, &tree.Inode{Mode: f.mode, Content: f.content})
}

// trimDString returns the used part of a field of fixed length, whose last byte
// says how long it is.
func trimDString(b []byte) []byte {
	return b[:min(int(b[len(b)-1]), len(b)-1)]
}

// text decodes characters: after a byte that is 8 one byte each, after 16 two,
// big-endian.
func text(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	var units []uint16
	switch b[0] {
	case 8:
		for _, c := range b[1:] {
			units = append(units, uint16(c))
		}
	case 16:
		for b = b[1:]; len(b) >= 2; b = b[2:] {
			units = append(units, binary.BigEndian.Uint16(b))
		}
	}
	return string(utf16.Decode(units))
}

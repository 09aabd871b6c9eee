package cpio

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// readArchive reads the archive at pos of image up to its trailer, and returns
// the entries and the offset behind it.
func readArchive(image source, pos int64) ([]Entry, int64, error) {
	if pos%alignment != 0 {
		return nil, 0, fmt.Errorf("%w: archive at offset %d, the kernel wants a multiple of %d", ErrFormat, pos, alignment)
	}
	var entries []Entry
	links := map[linkKey]*tree.Inode{}
	for {
		h, err := readHeader(image, pos)
		if err != nil {
			return nil, 0, err
		}
		if h.name == trailerName {
			return entries, h.end, nil
		}
		e, err := h.entry(image)
		if err != nil {
			return nil, 0, fmt.Errorf("entry %q at offset %d: %w", h.name, pos, err)
		}
		if h.fields[fieldLinks] > 1 && hasLinks(e.Inode) {
			key := h.linkKey()
			if first := links[key]; first != nil {
				// As the kernel does: the latest metadata, the latest content.
				if e.Inode.Content == nil {
					e.Inode.Content = first.Content
				}
				*first = *e.Inode
				e.Inode = first
			} else {
				links[key] = e.Inode
			}
		}
		entries = append(entries, e)
		pos = h.end
	}
}

// linkKey is what the names of one inode have in common.
type linkKey struct{ devMajor, devMinor, inode, kind uint32 }

// archiveHeader is a header with its name.
type archiveHeader struct {
	fields  [fields]uint32
	name    string
	content int64 // its offset in the image
	end     int64 // offset of the next header
}

func (h *archiveHeader) linkKey() linkKey {
	f := &h.fields
	return linkKey{f[fieldDevMajor], f[fieldDevMinor], f[fieldInode], f[fieldMode] & typeMask}
}

func readHeader(image source, pos int64) (*archiveHeader, error) {
	var b [headerSize]byte
	if err := image.read(b[:], pos); err != nil {
		return nil, err
	}
	switch magic := string(b[:6]); magic {
	case magicNewc, magicCRC:
	case "070707":
		return nil, fmt.Errorf("%w: header at offset %d is of cpio's old portable format, want newc", ErrFormat, pos)
	default:
		return nil, fmt.Errorf("%w: magic number %q at offset %d, want %q", ErrFormat, magic, pos, magicNewc)
	}
	var h archiveHeader
	for i := range h.fields {
		digits := b[6+8*i:][:8]
		var f [4]byte
		if _, err := hex.Decode(f[:], digits); err != nil {
			return nil, fmt.Errorf("%w: header at offset %d: %q is no hexadecimal number", ErrFormat, pos, digits)
		}
		h.fields[i] = uint32(f[0])<<24 | uint32(f[1])<<16 | uint32(f[2])<<8 | uint32(f[3])
	}
	n := int64(h.fields[fieldNameSize])
	if n < 1 || n > maxName {
		return nil, fmt.Errorf("%w: header at offset %d: name of %d bytes, want 1 to %d", ErrFormat, pos, n, maxName)
	}
	name := make([]byte, n)
	if err := image.read(name, pos+headerSize); err != nil {
		return nil, err
	}
	text, _, ok := bytes.Cut(name, []byte{0})
	if !ok {
		return nil, fmt.Errorf("%w: header at offset %d: name without a final NUL", ErrFormat, pos)
	}
	h.name = string(text)
	size := int64(h.fields[fieldSize])
	h.content = pos + extent.Align(headerSize+n, alignment)
	h.end = h.content + extent.Align(size, alignment)
	if h.content+size > image.size {
		return nil, fmt.Errorf("%w: cut off: %s ends at offset %d of %d", ErrFormat, h.name, h.content+size, image.size)
	}
	h.end = min(h.end, image.size)
	return &h, nil
}

// entry makes an entry of the header; a content stays in image.
func (h *archiveHeader) entry(image source) (Entry, error) {
	name, err := cleanName(h.name)
	if err != nil {
		return Entry{}, err
	}
	mode, err := fileMode(h.fields[fieldMode])
	if err != nil {
		return Entry{}, err
	}
	ino := &tree.Inode{
		Mode:    mode,
		UID:     h.fields[fieldUID],
		GID:     h.fields[fieldGID],
		ModTime: int64(h.fields[fieldModTime]),
	}
	size := int64(h.fields[fieldSize])
	switch {
	case mode.IsRegular() && size > 0:
		if ino.Content, err = extent.Section(image, h.content, size); err != nil {
			return Entry{}, err
		}
	case mode&fs.ModeDevice != 0:
		ino.Major, ino.Minor = h.fields[fieldMajor], h.fields[fieldMinor]
	case mode&fs.ModeSymlink != 0:
		if size < 1 || size >= maxName {
			return Entry{}, fmt.Errorf("%w: link target of %d bytes, want 1 to %d", ErrFormat, size, maxName-1)
		}
		target := make([]byte, size)
		if err := image.read(target, h.content); err != nil {
			return Entry{}, err
		}
		if slices.Contains(target, 0) {
			return Entry{}, fmt.Errorf("%w: link target %q has a NUL", ErrFormat, target)
		}
		ino.Target = string(target)
	}
	return Entry{Name: name, Inode: ino}, nil
}

// cleanName makes a tree's path of a name, which may begin with "/" or "./".
func cleanName(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("%w: the name leads out of the directory it is in", ErrFormat)
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		clean = "."
	}
	if name == "" || !tree.Valid(clean) {
		return "", fmt.Errorf("%w: not a path", ErrFormat)
	}
	return clean, nil
}

// fileMode is the reverse of unixMode.
func fileMode(mode uint32) (fs.FileMode, error) {
	m := fs.FileMode(mode & 0o777)
	if mode&modeSetuid != 0 {
		m |= fs.ModeSetuid
	}
	if mode&modeSetgid != 0 {
		m |= fs.ModeSetgid
	}
	if mode&modeSticky != 0 {
		m |= fs.ModeSticky
	}
	switch mode & typeMask {
	case typeRegular:
	case typeDir:
		m |= fs.ModeDir
	case typeSymlink:
		m |= fs.ModeSymlink
	case typeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case typeBlock:
		m |= fs.ModeDevice
	case typeFIFO:
		m |= fs.ModeNamedPipe
	case typeSocket:
		m |= fs.ModeSocket
	default:
		return 0, fmt.Errorf("%w: mode 0o%o has no file type", ErrFormat, mode)
	}
	return m, nil
}

package cpio

import (
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Build returns one archive of what is in t, ended by a trailer. Its size is a
// multiple of 4 bytes, so that another archive may follow. Contents are not
// read or copied, the archive refers to them.
//
// The root itself gets no entry: it exists before the kernel unpacks anything
// (as a tmpfs it has mode 1777 and belongs to root). Names are relative, parents come first. Inode numbers count from 1 in that
// order; regular files, devices, FIFOs and sockets that are one inode in t are
// hard links in the archive, with the content at the last name, as GNU cpio
// does it. A time that does not fit into 32 bits becomes the nearest that does.
func Build(t *tree.Tree) (*extent.Map, error) { return BuildAligned(t, alignment) }

// BuildAligned is Build with the content of every file at a multiple of align
// bytes, from 4 to 2048, of the archive, so that what the archive is in can say
// where a file is. For that the names in front of the contents end in more zeros
// than one, which the kernel and GNU cpio do not mind; the size of the archive
// still is a multiple of 4 bytes.
func BuildAligned(t *tree.Tree, align int64) (*extent.Map, error) {
	if align < alignment || align > maxAlign || align%alignment != 0 {
		return nil, fmt.Errorf("%w: contents at multiples of %d bytes, want 4 to %d", ErrEntry, align, maxAlign)
	}
	links := map[*tree.Inode]*linked{}
	for _, ino := range t.All() {
		l := links[ino]
		if l == nil {
			l = &linked{}
			links[ino] = l
		}
		l.total++
	}
	w := writer{align: align}
	next := uint32(1)
	for name, ino := range t.All() {
		if name == "." {
			continue
		}
		if err := check(name, ino); err != nil {
			return nil, err
		}
		l := links[ino]
		e := entry{name: name, inode: ino, links: 1}
		if hasLinks(ino) {
			e.links = l.total
			if l.seen == 0 {
				l.number = next
				next++
			}
			l.seen++
			e.number = l.number
			e.last = l.seen == l.total
		} else { // the kernel makes a link of nothing else
			e.number, e.last = next, true
			next++
			if ino.Mode.IsDir() {
				e.links = 2
			}
		}
		if err := w.entry(e); err != nil {
			return nil, err
		}
	}
	w.header([fields]uint32{fieldLinks: 1}, trailerName)
	return w.archive()
}

// linked counts the names of an inode.
type linked struct {
	total, seen, number uint32
}

func hasLinks(ino *tree.Inode) bool {
	return !ino.Mode.IsDir() && ino.Mode&fs.ModeSymlink == 0
}

// check refuses what would be lost or would not be unpacked.
func check(name string, ino *tree.Inode) error {
	switch {
	case name == trailerName:
		return fmt.Errorf("%s: %w: the name marks the end of an archive", name, ErrEntry)
	case len(ino.Xattrs) > 0:
		return fmt.Errorf("%s: %w: it has extended attributes, which the format cannot hold", name, ErrEntry)
	case ino.Mode.IsRegular() && ino.Size() > math.MaxUint32:
		return fmt.Errorf("%s: %w: %d bytes, the format holds up to 4 GiB - 1", name, ErrEntry, ino.Size())
	case ino.Mode&fs.ModeSymlink != 0 && (ino.Target == "" || len(ino.Target) >= maxName):
		return fmt.Errorf("%s: %w: link target of %d bytes, want 1 to %d", name, ErrEntry, len(ino.Target), maxName-1)
	}
	if _, err := unixMode(ino.Mode); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrEntry, err)
	}
	return nil
}

// unixMode returns m as in inode(7).
func unixMode(m fs.FileMode) (uint32, error) {
	mode := uint32(m.Perm())
	for _, bit := range []struct {
		is   fs.FileMode
		mode uint32
	}{{fs.ModeSetuid, modeSetuid}, {fs.ModeSetgid, modeSetgid}, {fs.ModeSticky, modeSticky}} {
		if m&bit.is != 0 {
			mode |= bit.mode
		}
	}
	switch m.Type() {
	case 0:
		mode |= typeRegular
	case fs.ModeDir:
		mode |= typeDir
	case fs.ModeSymlink:
		mode |= typeSymlink
	case fs.ModeDevice | fs.ModeCharDevice:
		mode |= typeChar
	case fs.ModeDevice:
		mode |= typeBlock
	case fs.ModeNamedPipe:
		mode |= typeFIFO
	case fs.ModeSocket:
		mode |= typeSocket
	default:
		return 0, fmt.Errorf("file type %s", m.Type())
	}
	return mode, nil
}

type entry struct {
	name   string
	inode  *tree.Inode
	number uint32
	links  uint32
	last   bool // of the names of the inode
}

// writer lays out an archive.
type writer struct {
	align   int64 // of contents
	pieces  []piece
	size    int64  // of the pieces, with padding
	headers []byte // that come after them
}

type piece struct {
	offset int64
	source extent.Source
}

func (w *writer) entry(e entry) error {
	ino := e.inode
	mode, err := unixMode(ino.Mode)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", e.name, ErrEntry, err)
	}
	h := [fields]uint32{
		fieldInode:   e.number,
		fieldMode:    mode,
		fieldUID:     ino.UID,
		fieldGID:     ino.GID,
		fieldLinks:   e.links,
		fieldModTime: uint32(min(max(ino.ModTime, 0), math.MaxUint32)),
	}
	if ino.Mode&fs.ModeDevice != 0 {
		h[fieldMajor], h[fieldMinor] = ino.Major, ino.Minor
	}
	switch {
	case ino.Mode&fs.ModeSymlink != 0:
		h[fieldSize] = uint32(len(ino.Target))
		w.header(h, e.name)
		w.headers = append(w.headers, ino.Target...)
		w.pad()
	case ino.Mode.IsRegular() && e.last && ino.Size() > 0:
		h[fieldSize] = uint32(ino.Size())
		room, err := w.room(e.name)
		if err != nil {
			return err
		}
		w.header(h, e.name+room)
		w.flush()
		w.pieces = append(w.pieces, piece{w.size, ino.Content})
		w.size = extent.Align(w.size+ino.Size(), alignment)
	default:
		w.header(h, e.name)
	}
	return nil
}

// room returns the zeros to put behind the name, so that the content that follows
// it is aligned.
func (w *writer) room(name string) (string, error) {
	content := extent.Align(w.size+int64(len(w.headers)+headerSize+len(name)+1), alignment)
	room := strings.Repeat("\x00", int(extent.Align(content, w.align)-content))
	if len(name)+len(room) >= maxName {
		return "", fmt.Errorf("%s: %w: its name is too long for contents at multiples of %d bytes", name, ErrEntry, w.align)
	}
	return room, nil
}

func (w *writer) header(h [fields]uint32, name string) {
	h[fieldNameSize] = uint32(len(name) + 1)
	w.headers = append(w.headers, magicNewc...)
	for _, f := range h {
		w.headers = fmt.Appendf(w.headers, "%08X", f)
	}
	w.headers = append(w.headers, name...)
	w.headers = append(w.headers, 0)
	w.pad()
}

// pad fills the headers up to the alignment; they begin at an aligned offset.
func (w *writer) pad() {
	for len(w.headers)%alignment != 0 {
		w.headers = append(w.headers, 0)
	}
}

// flush makes a piece of the headers.
func (w *writer) flush() {
	w.pieces = append(w.pieces, piece{w.size, extent.Bytes(w.headers)})
	w.size += int64(len(w.headers))
	w.headers = nil
}

func (w *writer) archive() (*extent.Map, error) {
	w.flush()
	m := extent.New(w.size)
	for _, p := range w.pieces {
		if err := m.Put(p.offset, p.source); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Compress writes src, one or more archives, to w as one zstd frame. The same
// input gives the same bytes on every machine. The output ends where the frame
// ends: pad it to 4 bytes if a stored archive follows.
//
// The window is 8 MiB, which RFC 8878 recommends every decoder to support. The
// kernel takes windows of up to 128 MiB, but it has to find that much memory
// at boot. There is a checksum, which the kernel verifies.
func Compress(w io.Writer, src extent.Source) error {
	z, err := zstd.NewWriter(w,
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(8<<20),
		zstd.WithEncoderCRC(true),
		zstd.WithZeroFrames(true))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, extent.Reader(src)); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

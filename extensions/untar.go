package extensions

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// untar adds the entries of one tar stream to t.
func untar(r io.Reader, at io.ReaderAt, t *tree.Tree, layer bool, limits Limits) error {
	return newUntarrer(t, layer, limits).archive(r, at)
}

// untarrer unpacks archives into a tree. Its limits are for all of them
// together.
type untarrer struct {
	t        *tree.Tree
	layer    bool // OCI layers: later archives replace files, and remove them with whiteouts
	limits   Limits
	entries  int
	bytes    int64
	metadata int64
	stream   int64
	spool    spool
	fresh    map[string]bool // names the current layer brought, and the directories above them
}

func newUntarrer(t *tree.Tree, layer bool, limits Limits) *untarrer {
	return &untarrer{t: t, layer: layer, limits: limits.withDefaults()}
}

// archive unpacks one archive, and reads r to its end. If at is not nil it is
// the random-access form of r, and contents stay where they are.
func (u *untarrer) archive(r io.Reader, at io.ReaderAt) error {
	u.fresh = map[string]bool{}
	// Whatever takes room in the stream is either contents or a header. A
	// header takes two to six blocks.
	cr := &countingReader{r: r, limit: u.limits.Bytes + 4096*int64(u.limits.Entries) + maxMetadata - u.stream}
	defer func() { u.stream += cr.n }()
	tr := tar.NewReader(cr)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, cr) // what follows the end of the archive
			return err
		}
		if err != nil {
			return fmt.Errorf("%w: tar: %w", ErrFormat, err)
		}
		if err := u.entry(hdr, tr, at, cr.n); err != nil {
			return err
		}
	}
}

type countingReader struct {
	r        io.Reader
	n, limit int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n > c.limit {
		return n, fmt.Errorf("%w: the unpacked archive is larger than %d bytes", ErrHostile, c.limit)
	}
	return n, err
}

func (u *untarrer) entry(hdr *tar.Header, r io.Reader, at io.ReaderAt, off int64) error {
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrHostile, u.limits.Entries)
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if u.layer && strings.HasPrefix(path.Base(name), whiteout) {
		return u.whiteout(name)
	}
	if u.duplicate(name, hdr.Typeflag == tar.TypeDir) {
		return fmt.Errorf("%w: %s: is there twice", ErrHostile, name)
	}
	ino, err := u.inode(name, hdr, r, at, off)
	if err != nil {
		return err
	}
	if u.metadata += int64(len(name) + len(ino.Target)); u.metadata > maxMetadata {
		return fmt.Errorf("%w: names, links and attributes exceed %d bytes", ErrHostile, maxMetadata)
	}
	if err := u.put(name, ino); err != nil {
		return err
	}
	if u.t.Len() > u.limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrHostile, u.limits.Entries)
	}
	return nil
}

// duplicate says whether the archive has had something else under this name.
// A directory may come again.
func (u *untarrer) duplicate(name string, dir bool) bool {
	old := u.t.Lookup(name)
	if old == nil || name == "." || u.layer && !u.fresh[name] {
		return old != nil && name == "." && !dir
	}
	return !dir || !old.Mode.IsDir()
}

func (u *untarrer) put(name string, ino *tree.Inode) error {
	if err := u.parents(name); err != nil {
		return err
	}
	if u.layer {
		for p := name; p != "." && !u.fresh[p]; p = path.Dir(p) {
			u.fresh[p] = true
		}
	}
	if old := u.t.Lookup(name); old != nil && name != "." && old.Mode.IsDir() != ino.Mode.IsDir() {
		u.t.Remove(name) // a layer's; duplicate has seen to that
	}
	return u.t.Set(name, ino)
}

// parents makes the directories above name that the archive leaves out. One
// that is a symbolic link is refused: following it is how archives escape.
func (u *untarrer) parents(name string) error {
	dir := path.Dir(name)
	for p := dir; p != "."; p = path.Dir(p) {
		ino := u.t.Lookup(p)
		if ino != nil && ino.Mode.IsDir() {
			break // and so are those above
		}
		if ino != nil {
			what := "a file"
			if ino.Mode&fs.ModeSymlink != 0 {
				what = "a symbolic link to " + ino.Target
			}
			return fmt.Errorf("%w: %s: %s is %s, want a directory", ErrHostile, name, p, what)
		}
	}
	return u.t.MkdirAll(dir, 0o755)
}

// whiteout removes what lower layers brought; what the same layer brings stays,
// before and after the whiteout.
func (u *untarrer) whiteout(name string) error {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if base == opaque {
		u.removeStale(dir, true)
		return nil
	}
	target := strings.TrimPrefix(base, whiteout)
	if target == "" || target == "." || target == ".." {
		return fmt.Errorf("%w: %s: a whiteout of no file", ErrHostile, name)
	}
	u.removeStale(path.Join(dir, target), false)
	return nil
}

func (u *untarrer) removeStale(name string, keep bool) {
	if !keep && !u.fresh[name] {
		u.t.Remove(name)
		return
	}
	for _, child := range append([]string(nil), u.t.Children(name)...) {
		u.removeStale(path.Join(name, child), false)
	}
}

func (u *untarrer) inode(name string, hdr *tar.Header, r io.Reader, at io.ReaderAt, off int64) (*tree.Inode, error) {
	// The type is the type flag's, whatever the mode says.
	ino := &tree.Inode{Mode: permissions(hdr.Mode), ModTime: hdr.ModTime.Unix()}
	if hdr.Uid < 0 || hdr.Uid > math.MaxUint32 || hdr.Gid < 0 || hdr.Gid > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %s: owner %d:%d, want 32-bit numbers", ErrHostile, name, hdr.Uid, hdr.Gid)
	}
	ino.UID, ino.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		ino.Major, ino.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	}
	if err := u.xattrs(name, hdr, ino); err != nil {
		return nil, err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		ino.Mode |= fs.ModeDir
	case tar.TypeReg, tar.TypeGNUSparse:
		if hdr.Size < 0 || hdr.Size > u.limits.Bytes-u.bytes {
			return nil, fmt.Errorf("%w: %s: contents exceed %d bytes", ErrHostile, name, u.limits.Bytes)
		}
		u.bytes += hdr.Size
		var err error
		if at != nil && hdr.Typeflag == tar.TypeReg && !isSparse(hdr) {
			ino.Content = io.NewSectionReader(at, off, hdr.Size)
		} else if ino.Content, err = u.spool.add(r, hdr.Size); errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > maxTarget || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("%w: %s: symbolic link to %d bytes, want 1 to %d without NUL", ErrHostile, name, len(hdr.Linkname), maxTarget)
		}
		ino.Mode, ino.Target = fs.ModeSymlink|0o777, hdr.Linkname
	case tar.TypeLink:
		target, err := cleanName(hdr.Linkname)
		if err != nil {
			return nil, fmt.Errorf("%s: hard link: %w", name, err)
		}
		old := u.t.Lookup(target)
		if old == nil || old.Mode.IsDir() {
			return nil, fmt.Errorf("%w: %s: hard link to %s, which is no file before it in the archive", ErrHostile, name, target)
		}
		return old, nil
	case tar.TypeChar:
		ino.Mode |= fs.ModeDevice | fs.ModeCharDevice
	case tar.TypeBlock:
		ino.Mode |= fs.ModeDevice
	case tar.TypeFifo:
		ino.Mode |= fs.ModeNamedPipe
	default:
		return nil, fmt.Errorf("%w: %s: entry of unknown type %q", ErrHostile, name, hdr.Typeflag)
	}
	return ino, nil
}

func permissions(mode int64) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range modeBits {
		if mode&b.tar != 0 {
			m |= b.mode
		}
	}
	return m
}

// modeBits are those of a tar header whose place is another in fs.FileMode.
var modeBits = [...]struct {
	tar  int64
	mode fs.FileMode
}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}}

func isSparse(hdr *tar.Header) bool {
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

const xattrRecord = "SCHILY.xattr."

func (u *untarrer) xattrs(name string, hdr *tar.Header, ino *tree.Inode) error {
	size := 0
	for k, v := range hdr.PAXRecords {
		if attr, ok := strings.CutPrefix(k, xattrRecord); ok {
			if ino.Xattrs == nil {
				ino.Xattrs = map[string][]byte{}
			}
			ino.Xattrs[attr] = []byte(v)
			size += len(attr) + len(v)
		}
	}
	if size > maxXattrs {
		return fmt.Errorf("%w: %s: %d bytes of extended attributes, want at most %d", ErrHostile, name, size, maxXattrs)
	}
	u.metadata += int64(size)
	return nil
}

// cleanName makes a tar name a tree path, or refuses it.
func cleanName(name string) (string, error) {
	bad := func(why string) (string, error) {
		if len(name) > 200 {
			name = name[:100] + "…" + name[len(name)-60:]
		}
		if strings.ContainsFunc(name, control) {
			name = fmt.Sprintf("%q", name)
		}
		return "", fmt.Errorf("%w: %s: %s", ErrHostile, name, why)
	}
	if len(name) > maxTarget {
		return bad(fmt.Sprintf("%d bytes, want at most %d", len(name), maxTarget))
	}
	if path.IsAbs(name) {
		return bad("absolute path")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return bad(`".." in a path`)
		}
		if len(part) > 255 {
			return bad(fmt.Sprintf("a name of %d bytes in a path, want at most 255", len(part)))
		}
	}
	if strings.ContainsFunc(name, control) {
		return bad("a control character in a path")
	}
	clean := path.Clean(name)
	if !tree.Valid(clean) {
		return bad("not a valid path")
	}
	return clean, nil
}

func control(r rune) bool { return r < ' ' || r == 0x7f }

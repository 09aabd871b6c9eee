package extensions

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Limits bound what is read of an extension.
type Limits struct {
	Entries int   // names; 0 is 1,000,000
	Bytes   int64 // file contents, unpacked; 0 is 4 GiB
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 4 << 30
	}
	return l
}

// ErrHostile is wrapped by errors for content that tries to leave its root or
// exceeds a limit.
var ErrHostile = errors.New("refused")

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// untar adds the entries of a tar stream to t. If layer is set, OCI whiteouts
// remove what earlier layers brought, and existing files are replaced;
// otherwise a name that comes twice is refused. If at is not nil it is the
// random-access form of r, and contents stay where they are.
func untar(r io.Reader, at io.ReaderAt, t *tree.Tree, layer bool, limits Limits) error {
	cr := &countingReader{r: r}
	tr := tar.NewReader(cr)
	u := untarrer{t: t, layer: layer, limits: limits.withDefaults(), fresh: map[string]bool{}}
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if err := u.entry(hdr, tr, at, cr.n); err != nil {
			return err
		}
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

type untarrer struct {
	t       *tree.Tree
	layer   bool
	limits  Limits
	entries int
	bytes   int64
	fresh   map[string]bool // names this stream brought
}

func (u *untarrer) entry(hdr *tar.Header, r io.Reader, at io.ReaderAt, off int64) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if u.entries++; u.entries > u.limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrHostile, u.limits.Entries)
	}
	if u.layer && strings.HasPrefix(path.Base(name), whiteout) {
		return u.whiteout(name)
	}
	if u.fresh[name] && hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: %s: is there twice", ErrHostile, name)
	}
	ino, err := u.inode(name, hdr, r, at, off)
	if err != nil {
		return err
	}
	return u.put(name, ino)
}

func (u *untarrer) put(name string, ino *tree.Inode) error {
	if err := u.parents(name); err != nil {
		return err
	}
	u.fresh[name] = true
	old := u.t.Lookup(name)
	if old != nil && name != "." && old.Mode.IsDir() != ino.Mode.IsDir() {
		if !u.layer {
			return fmt.Errorf("%w: %s: is there twice", ErrHostile, name)
		}
		u.t.Remove(name)
	}
	return u.t.Set(name, ino)
}

// parents makes the directories above name that the archive leaves out. One
// that is a symbolic link is refused: following it is how archives escape.
func (u *untarrer) parents(name string) error {
	dir := path.Dir(name)
	for p := dir; p != "."; p = path.Dir(p) {
		if ino := u.t.Lookup(p); ino != nil && !ino.Mode.IsDir() {
			what := "a file"
			if ino.Mode&fs.ModeSymlink != 0 {
				what = "a symbolic link to " + ino.Target
			}
			return fmt.Errorf("%w: %s: %s is %s, want a directory", ErrHostile, name, p, what)
		}
	}
	return u.t.MkdirAll(dir, 0o755)
}

func (u *untarrer) whiteout(name string) error {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if base != opaque {
		if target := path.Join(dir, strings.TrimPrefix(base, whiteout)); target != dir {
			u.t.Remove(target)
		}
		return nil
	}
	for _, child := range append([]string(nil), u.t.Children(dir)...) {
		if p := path.Join(dir, child); !u.fresh[p] {
			u.t.Remove(p)
		}
	}
	return nil
}

func (u *untarrer) inode(name string, hdr *tar.Header, r io.Reader, at io.ReaderAt, off int64) (*tree.Inode, error) {
	mode := hdr.FileInfo().Mode()
	ino := &tree.Inode{
		Mode: mode, UID: uint32(hdr.Uid), GID: uint32(hdr.Gid), ModTime: hdr.ModTime.Unix(),
		Xattrs: xattrs(hdr),
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
	case tar.TypeReg, tar.TypeGNUSparse:
		if u.bytes += hdr.Size; hdr.Size < 0 || u.bytes > u.limits.Bytes {
			return nil, fmt.Errorf("%w: %s: contents exceed %d bytes", ErrHostile, name, u.limits.Bytes)
		}
		content, err := contentOf(hdr, r, at, off)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		ino.Content = content
	case tar.TypeSymlink:
		ino.Target = hdr.Linkname
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
	case tar.TypeChar, tar.TypeBlock:
		ino.Major, ino.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	case tar.TypeFifo:
	default:
		return nil, fmt.Errorf("%w: %s: entry of unknown type %q", ErrHostile, name, hdr.Typeflag)
	}
	return ino, nil
}

// contentOf leaves plain contents in the archive where it has random access,
// and reads others into memory.
func contentOf(hdr *tar.Header, r io.Reader, at io.ReaderAt, off int64) (tree.Content, error) {
	if at != nil && hdr.Typeflag == tar.TypeReg && !isSparse(hdr) {
		return io.NewSectionReader(at, off, hdr.Size), nil
	}
	var buf bytes.Buffer // grows with what is really there, not with what the header says
	n, err := io.Copy(&buf, r)
	if err != nil {
		return nil, err
	}
	if n != hdr.Size {
		return nil, fmt.Errorf("%d bytes, the header says %d: %w", n, hdr.Size, io.ErrUnexpectedEOF)
	}
	return bytes.NewReader(buf.Bytes()), nil
}

func isSparse(hdr *tar.Header) bool {
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func xattrs(hdr *tar.Header) map[string][]byte {
	const prefix = "SCHILY.xattr."
	var m map[string][]byte
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			if m == nil {
				m = map[string][]byte{}
			}
			m[name] = []byte(v)
		}
	}
	return m
}

// cleanName makes a tar name a tree path, or refuses it.
func cleanName(name string) (string, error) {
	if path.IsAbs(name) {
		return "", fmt.Errorf("%w: %s: absolute path", ErrHostile, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf(`%w: %s: ".." in a path`, ErrHostile, name)
		}
	}
	clean := path.Clean(name)
	if !tree.Valid(clean) {
		return "", fmt.Errorf("%w: %q: not a valid path", ErrHostile, name)
	}
	return clean, nil
}

// escapes says whether the relative symbolic link target at name climbs above
// the root. An absolute one is relative to the root on the node.
func escapes(name, target string) bool {
	if path.IsAbs(target) {
		return false
	}
	depth := strings.Count(name, "/")
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

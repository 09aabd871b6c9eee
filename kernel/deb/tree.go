package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxFiles bounds the number of files in a package.
const maxFiles = 1 << 20

// Tree unpacks the package's files into memory. If keep is not nil, only the
// names it accepts (clean and relative, as in a tree) are unpacked, and missing
// parent directories are made with mode 0755. Owners, modes and times are those
// in the package.
func (p *Package) Tree(ctx context.Context, keep func(name string) bool) (*tree.Tree, error) {
	if keep == nil {
		keep = func(string) bool { return true }
	}
	t, lost, err := p.unpack(ctx, keep)
	if err == nil && len(lost) > 0 {
		// Hard links were kept whose first name was not. Unpack once more with
		// those first names, then take them away.
		t, _, err = p.unpack(ctx, func(name string) bool { return lost[name] || keep(name) })
		for name := range lost {
			if t != nil {
				t.Remove(name)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", p.name, p.data.name, err)
	}
	return t, nil
}

// unpack returns the kept files and the names, not kept, that kept hard links
// refer to.
func (p *Package) unpack(ctx context.Context, keep func(string) bool) (*tree.Tree, map[string]bool, error) {
	r, err := p.decompress(ctx, p.data, p.MaxBytes)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	u := unpacker{tree: tree.New(), stream: r, keep: keep, skipped: map[string]bool{}, lost: map[string]bool{}}
	tr := tar.NewReader(r)
	var total int64 // of the sizes; sparse files have more than the stream
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, r.explain(err)
		}
		if n == maxFiles {
			return nil, nil, fmt.Errorf("%w: more than %d files", ErrLimit, maxFiles)
		}
		if h.Size > p.MaxBytes-total {
			return nil, nil, fmt.Errorf("%s: %w: unpacks to more than %d bytes", h.Name, ErrLimit, p.MaxBytes)
		}
		total += h.Size
		if err := u.entry(h, tr); err != nil {
			return nil, nil, err
		}
	}
	// The compressed stream has its checksum at the end.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, nil, r.explain(err)
	}
	return u.tree, u.lost, nil
}

type unpacker struct {
	tree    *tree.Tree
	stream  *stream
	keep    func(string) bool
	skipped map[string]bool // regular files that were not kept
	lost    map[string]bool // those of them that kept hard links need
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := memberPath(h.Name)
	if err != nil {
		return err
	}
	if !u.keep(name) {
		if h.Typeflag == tar.TypeReg {
			u.skipped[name] = true
		}
		return nil
	}
	ino := &tree.Inode{
		Mode:    h.FileInfo().Mode() &^ fs.ModeType,
		UID:     uint32(h.Uid),
		GID:     uint32(h.Gid),
		ModTime: h.ModTime.Unix(),
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return fmt.Errorf("%s: %w: owner %d:%d", h.Name, ErrFormat, h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		ino.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > 4095 || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fmt.Errorf("%s: %w: symbolic link to %.40q", h.Name, ErrFormat, h.Linkname)
		}
		ino.Mode |= fs.ModeSymlink
		ino.Target = h.Linkname
	case tar.TypeReg:
		data, err := readContent(content, h.Size)
		if err != nil {
			return fmt.Errorf("%s: %w", name, u.stream.explain(err))
		}
		ino.Content = extent.Bytes(data)
	case tar.TypeLink:
		if ino, err = u.linked(h); ino == nil {
			return err
		}
	default:
		return fmt.Errorf("%s: %w: a file of type %q, want a regular file, directory or link", h.Name, ErrFormat, h.Typeflag)
	}
	return u.add(name, ino)
}

// linked returns the inode a hard link refers to; nil without an error if it
// was not kept.
func (u *unpacker) linked(h *tar.Header) (*tree.Inode, error) {
	target, err := memberPath(h.Linkname)
	if err != nil {
		return nil, fmt.Errorf("%s: hard link: %w", h.Name, err)
	}
	if u.skipped[target] {
		u.lost[target] = true
		return nil, nil
	}
	ino := u.tree.Lookup(target)
	if ino == nil || !ino.Mode.IsRegular() {
		return nil, fmt.Errorf("%s: %w: a hard link to %s, which is no file before it", h.Name, ErrFormat, h.Linkname)
	}
	return ino, nil
}

func (u *unpacker) add(name string, ino *tree.Inode) error {
	if name == "." {
		if !ino.Mode.IsDir() {
			return fmt.Errorf("%w: the root is not a directory", ErrFormat)
		}
		return u.tree.Add(name, ino)
	}
	if err := u.tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if old := u.tree.Lookup(name); old != nil && old.Mode.IsDir() && ino.Mode.IsDir() {
		return u.tree.Set(name, ino)
	}
	return u.tree.Add(name, ino)
}

// memberPath turns a name in the tar archive into one in a tree.
func memberPath(name string) (string, error) {
	clean := path.Clean(name)
	escapes := name == "" || strings.HasPrefix(name, "/")
	for part := range strings.SplitSeq(name, "/") {
		escapes = escapes || part == ".."
	}
	if escapes || !tree.Valid(clean) {
		return "", fmt.Errorf("%.80q: %w: a name that is absolute, leaves the root or is too long", name, ErrFormat)
	}
	return clean, nil
}

// readContent reads size bytes without believing that there are that many.
func readContent(r io.Reader, size int64) ([]byte, error) {
	const trusted = 1 << 20
	if size <= trusted {
		b := make([]byte, size)
		_, err := io.ReadFull(r, b)
		if err == io.EOF && size > 0 {
			err = io.ErrUnexpectedEOF
		}
		return b, err
	}
	var buf bytes.Buffer
	buf.Grow(trusted)
	if n, err := io.CopyN(&buf, r, size); err != nil {
		if err == io.EOF {
			err = fmt.Errorf("wants %d bytes, found %d: %w", size, n, io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	return bytes.Clone(buf.Bytes()), nil
}

// Package dir reads a directory of the host into a file tree.
//
// Unless told otherwise the tree depends on what the directory holds and not on
// who made it where: owners are 0:0, permissions are 0755 for directories and
// for files that somebody may execute and 0644 for other files, all times are
// the given one. Hard links become separate files and extended attributes are
// left out, since many ways to copy a directory lose them.
//
// The directory is not trusted. It is read through os.Root, so nothing outside
// of it is reached through symbolic links, neither now nor when contents are
// read later.
package dir

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"syscall"
	"time"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Options change what Read takes from the host. The zero value is the
// reproducible way.
type Options struct {
	ModTime    int64 // of every file, in seconds since 1970
	KeepModes  bool  // permissions, setuid, setgid and sticky bits as they are
	KeepOwners bool  // numeric owners as they are

	// Keep, if not nil, says whether a name is taken. Directories are asked
	// too, and one that is refused is not looked into.
	Keep func(name string, mode fs.FileMode) bool
}

// Read returns the tree of directory root. Contents are read when somebody
// asks for them; a file that has changed by then is an error. Sockets, FIFOs
// and device nodes are errors.
func Read(ctx context.Context, root string, o Options) (*tree.Tree, error) {
	abs, err := absolute(root)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(abs)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d := reader{ctx: ctx, root: r, abs: abs, o: o, tree: tree.New()}
	if err := d.directory("."); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	return d.tree, nil
}

// absolute makes contents independent of the working directory at the time they
// are read.
func absolute(name string) (string, error) {
	if path.IsAbs(name) {
		return path.Clean(name), nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return path.Join(wd, name), nil
}

type reader struct {
	ctx  context.Context
	root *os.Root
	abs  string
	o    Options
	tree *tree.Tree
}

func (d *reader) directory(name string) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && !fi.IsDir() {
		err = fmt.Errorf("%s: changed while it was read", name)
	}
	var names []string
	if err == nil {
		names, err = f.Readdirnames(-1)
	}
	f.Close()
	if err != nil {
		return err
	}
	if err := d.tree.Add(name, d.inode(fi)); err != nil {
		return err
	}
	sort.Strings(names)
	for _, base := range names {
		if err := d.entry(path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

func (d *reader) entry(name string) error {
	fi, err := d.root.Lstat(name)
	if err != nil {
		return err
	}
	if d.o.Keep != nil && !d.o.Keep(name, fi.Mode()) {
		return nil
	}
	ino := d.inode(fi)
	switch fi.Mode().Type() {
	case fs.ModeDir:
		return d.directory(name)
	case fs.ModeSymlink:
		if ino.Target, err = d.root.Readlink(name); err != nil {
			return err
		}
	case 0:
		ino.Content = &content{dir: d.abs, name: name, size: fi.Size(), time: fi.ModTime()}
	default:
		return fmt.Errorf("%s: %s: only files, directories and symbolic links can be taken", name, kind(fi.Mode()))
	}
	return d.tree.Add(name, ino)
}

func (d *reader) inode(fi fs.FileInfo) *tree.Inode {
	mode := fi.Mode()
	ino := &tree.Inode{Mode: mode, ModTime: d.o.ModTime}
	switch {
	case mode.Type() == fs.ModeSymlink:
		ino.Mode = fs.ModeSymlink | 0o777
	case d.o.KeepModes:
	case mode.IsDir() || mode&0o111 != 0:
		ino.Mode = mode.Type() | 0o755
	default:
		ino.Mode = mode.Type() | 0o644
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && d.o.KeepOwners {
		ino.UID, ino.GID = st.Uid, st.Gid
	}
	return ino
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeDevice != 0:
		return "a device node"
	}
	return "a file of unknown type"
}

// content is a regular file that keeps no descriptor: each ReadAt opens it.
type content struct {
	dir  string // absolute
	name string // relative to dir
	size int64
	time time.Time
}

func (c *content) Size() int64 { return c.size }

func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	// A FIFO put in the file's place must not block.
	f, err := root.OpenFile(c.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() || fi.Size() != c.size || !fi.ModTime().Equal(c.time) {
		return 0, fmt.Errorf("%s: changed while it was read", path.Join(c.dir, c.name))
	}
	var eof error
	if int64(len(p)) > c.size-off {
		p, eof = p[:c.size-off], io.EOF
	}
	n, err := f.ReadAt(p, off)
	if n < len(p) {
		return n, err
	}
	return n, eof
}

//go:build linux

// Package files reads files and directories of a node for others: never anything
// but regular files, as opening a device may already do something, and nothing
// that is hidden.
package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/control"
)

// chunk is how much is sent at a time, in bytes.
const chunk = 64 << 10

// Tree is the files below a directory. Paths in it are absolute.
type Tree struct {
	root *os.Root
	dir  string // of root, without a slash at its end
	hide []string
}

// Open returns the tree of the files below dir. Paths that match one of hide, and
// what is below them, are not shown; the patterns are those of path.Match. What
// holds the memory or the environment of processes, or takes from others what it
// gives, is always hidden.
func Open(dir string, hide ...string) (*Tree, error) {
	always := []string{
		"/proc/kcore", "/proc/kmsg", "/proc/*/mem", "/proc/*/environ", "/proc/*/auxv", "/proc/*/fd", "/proc/*/map_files", "/proc/*/root", "/proc/*/cwd",
		"/proc/*/task", "/sys/kernel/debug", "/sys/kernel/tracing",
	}
	hide = append(always, hide...)
	for _, h := range hide {
		if _, err := path.Match(h, ""); err != nil || !path.IsAbs(h) {
			return nil, fmt.Errorf("hidden path %q: want an absolute path or pattern", h)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Tree{root, strings.TrimSuffix(root.Name(), "/"), hide}, nil
}

// Close closes the tree.
func (t *Tree) Close() error { return t.root.Close() }

// hidden reports whether a clean absolute path is not shown.
func (t *Tree) hidden(name string) bool {
	for p := name; p != "/"; p = path.Dir(p) {
		for _, h := range t.hide {
			if ok, _ := path.Match(h, p); ok {
				return true
			}
		}
	}
	return false
}

// maxLinks is how many symbolic links a path may go through, as in Linux.
const maxLinks = 40

// resolve follows the symbolic links of a path, the last one too, absolute ones
// from the root of the tree. os.Root would refuse those.
func (t *Tree) resolve(name string) (string, error) {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: path %q, want an absolute one", control.ErrInvalid, name)
	}
	done, rest := "/", strings.Split(path.Clean(name), "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		if t.hidden(next) {
			return "", &fs.PathError{Op: "open", Path: next, Err: fs.ErrPermission}
		}
		fi, err := t.root.Lstat(relative(next))
		if err != nil {
			return "", t.named(next, err)
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		to, err := t.root.Readlink(relative(next))
		if err != nil {
			return "", t.named(next, err)
		}
		if path.IsAbs(to) {
			done = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return done, nil
}

// relative returns a clean absolute path as os.Root has it.
func relative(name string) string {
	if name == "/" {
		return "."
	}
	return name[1:]
}

// named gives an error the path as it was asked for.
func (t *Tree) named(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return &fs.PathError{Op: "open", Path: name, Err: err}
}

// open opens what a path leads to, which must be of the type.
func (t *Tree) open(name string, kind fs.FileMode) (*os.File, string, error) {
	name, err := t.resolve(name)
	if err != nil {
		return nil, "", err
	}
	fi, err := t.root.Lstat(relative(name))
	if err != nil {
		return nil, "", t.named(name, err)
	}
	if fi.Mode().Type() != kind {
		return nil, "", fmt.Errorf("%w: %s is %s, want %s", control.ErrInvalid, name, kindOf(fi.Mode()), kindOf(kind))
	}
	f, err := t.root.OpenFile(relative(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", t.named(name, err)
	}
	if err := t.check(f, name, kind); err != nil {
		f.Close()
		return nil, "", err
	}
	return f, name, nil
}

// check looks again at what was opened: somebody may have changed the way to it.
func (t *Tree) check(f *os.File, name string, kind fs.FileMode) error {
	fi, err := f.Stat()
	if err != nil {
		return t.named(name, err)
	}
	if fi.Mode().Type() != kind {
		return fmt.Errorf("%w: %s is %s, want %s", control.ErrInvalid, name, kindOf(fi.Mode()), kindOf(kind))
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return err
	}
	within, ok := strings.CutPrefix(real, t.dir)
	if !ok || t.hidden(path.Join("/", within)) {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a pipe"
	case fs.ModeSocket:
		return "a socket"
	}
	return "a device"
}

// ReadFile sends a file.
func (t *Tree) ReadFile(ctx context.Context, r control.ReadRequest, send func(control.FileChunk) error) error {
	f, name, err := t.open(r.Path, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.Offset > 0 {
		if r.Offset > 1<<62 {
			return fmt.Errorf("%w: offset %d in %s", control.ErrInvalid, r.Offset, name)
		}
		if _, err := f.Seek(int64(r.Offset), io.SeekStart); err != nil {
			return t.named(name, err)
		}
	}
	buf := make([]byte, chunk)
	for left := r.Limit; r.Limit == 0 || left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.Limit > 0 {
			buf = buf[:min(uint64(len(buf)), left)]
		}
		n, err := f.Read(buf)
		if n > 0 {
			left -= uint64(n)
			if err := send(control.FileChunk{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return t.named(name, err)
		}
	}
	return nil
}

// batch is how many entries of a directory are read at a time.
const batch = 256

// maxDepth is how deep ListDirectory goes.
const maxDepth = 64

// ListDirectory sends what is in a directory, in the file system's order, or the
// one entry of what is none. Hidden entries are left out.
func (t *Tree) ListDirectory(ctx context.Context, r control.ListRequest, send func(control.FileInfo) error) error {
	name, err := t.resolve(r.Path)
	if err != nil {
		return err
	}
	if fi, err := t.root.Lstat(relative(name)); err == nil && !fi.IsDir() {
		w := walk{Tree: t, send: send}
		return w.entry(ctx, name, 0)
	}
	f, name, err := t.open(name, fs.ModeDir)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return t.named(name, err)
	}
	w := walk{t, r.Recursive, fi.Sys().(*syscall.Stat_t).Dev, send}
	return w.dir(ctx, f, name, 0)
}

type walk struct {
	*Tree
	recursive bool
	device    uint64
	send      func(control.FileInfo) error
}

// dir sends the entries of f, which it closes.
func (w *walk) dir(ctx context.Context, f *os.File, name string, depth int) error {
	defer f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := f.Readdirnames(batch)
		for _, base := range names {
			if err := w.entry(ctx, path.Join(name, base), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return w.named(name, err)
		}
	}
}

func (w *walk) entry(ctx context.Context, name string, depth int) error {
	if w.hidden(name) {
		return nil
	}
	info := control.FileInfo{Path: name}
	fi, err := w.root.Lstat(relative(name))
	if err != nil {
		info.Error = w.named(name, err).Error()
		return w.send(info)
	}
	st := fi.Sys().(*syscall.Stat_t)
	info.Mode, info.Size, info.UID, info.GID, info.Modified = st.Mode, uint64(max(fi.Size(), 0)), st.Uid, st.Gid, fi.ModTime().UTC()
	if fi.Mode()&fs.ModeSymlink != 0 {
		if info.Link, err = w.root.Readlink(relative(name)); err != nil {
			info.Error = w.named(name, err).Error()
		}
	}
	if !w.recursive || !fi.IsDir() || st.Dev != w.device || depth >= maxDepth {
		return w.send(info)
	}
	f, _, err := w.open(name, fs.ModeDir)
	if err != nil {
		info.Error = err.Error()
		return w.send(info)
	}
	if err := w.send(info); err != nil {
		f.Close()
		return err
	}
	return w.dir(ctx, f, name, depth+1)
}

//go:build linux

package containers

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/containers/static"
)

// maxAccounts is how much of passwd and group is read, in bytes.
const maxAccounts = 1 << 20

// identify returns what a container runs as: what c says, or what its image says
// in the form USER, USER:GROUP, UID or UID:GID. open opens the container's root
// file system, whose accounts give names a meaning.
func identify(c *static.Container, of string, open func() (fs.FS, func() error, error)) (id identity, err error) {
	if c.User != nil {
		id.uid = *c.User
		if c.Group != nil {
			id.gid = *c.Group
		}
		return id, nil
	}
	user, group, both := strings.Cut(of, ":")
	uid, userErr := number(user)
	gid, groupErr := number(group)
	switch {
	case of == "" || userErr == nil && uid == 0 && (!both || gid == 0 && groupErr == nil):
		id.home = "/root"
	case userErr == nil && both && groupErr == nil:
		id.uid, id.gid = uid, gid
	default:
		root, closing, err := open()
		if err != nil {
			return id, err
		}
		id, err = lookUp(root, user, group)
		if err = errors.Join(err, closing()); err != nil {
			return id, fmt.Errorf("the image's user %q: %w", of, err)
		}
	}
	if c.Group != nil {
		id.gid = *c.Group
	}
	return id, nil
}

func number(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err
}

// lookUp finds a user and a group, which may be "", in passwd(5) and group(5).
func lookUp(root fs.FS, user, group string) (id identity, err error) {
	uid, isNumber := number(user)
	found := false
	err = lines(root, "etc/passwd", func(f []string) bool { // name:password:UID:GID:comment:home:shell
		if len(f) < 6 || f[0] != user && (isNumber != nil || f[2] != user) {
			return true
		}
		u, e1 := number(f[2])
		g, e2 := number(f[3])
		if e1 == nil && e2 == nil {
			id, found = identity{uid: u, gid: g, home: f[5]}, true
		}
		return !found
	})
	switch {
	case err != nil:
		return id, err
	case !found && isNumber != nil:
		return id, errors.New("etc/passwd has no such user")
	case !found:
		id.uid = uid
	}
	if group == "" {
		if found {
			err = lines(root, "etc/group", func(f []string) bool { // name:password:GID:members
				if len(f) >= 4 && slices.Contains(strings.Split(f[3], ","), user) {
					if g, e := number(f[2]); e == nil && g != id.gid {
						id.groups = append(id.groups, g)
					}
				}
				return true
			})
		}
		return id, err
	}
	if g, e := number(group); e == nil {
		id.gid = g
		return id, nil
	}
	found = false
	err = lines(root, "etc/group", func(f []string) bool {
		if len(f) >= 3 && f[0] == group {
			if g, e := number(f[2]); e == nil {
				id.gid, found = g, true
			}
		}
		return !found
	})
	if err == nil && !found {
		err = errors.New("etc/group has no such group")
	}
	return id, err
}

// lines calls each with the fields of every line, until it returns false. A file
// that is not there has none.
func lines(root fs.FS, name string, each func([]string) bool) error {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	for s.Scan() {
		if !each(strings.Split(s.Text(), ":")) {
			break
		}
	}
	return s.Err()
}

// mountRoot mounts a container's root file system at dir for a moment. Links in
// it do not lead out of it.
func mountRoot(mounts []*types.Mount, dir string) (fs.FS, func() error, error) {
	if len(mounts) != 1 {
		return nil, nil, fmt.Errorf("a root file system of %d mounts, want one", len(mounts))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	m := mounts[0]
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	var data []string
	for _, o := range m.GetOptions() {
		switch o {
		case "ro", "rw":
		case "bind", "rbind":
			flags |= unix.MS_BIND
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(m.GetSource(), dir, m.GetType(), flags, strings.Join(data, ",")); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("mount the image: %w", err), os.Remove(dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, errors.Join(err, unix.Unmount(dir, 0))
	}
	return root.FS(), func() error {
		return errors.Join(root.Close(), unix.Unmount(dir, 0), os.Remove(dir))
	}, nil
}

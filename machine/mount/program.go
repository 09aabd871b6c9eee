//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit statuses of mount(8) and umount(8).
const (
	exitUsage   = 1
	exitFailure = 32
)

// Program is mount(8), or umount(8) if that is its name, as far as the kubelet
// calls them, and returns the exit status:
//
//	mount [--no-canonicalize] [-t TYPE] [-o OPTIONS] [SOURCE] TARGET
//	umount [-f] [-l] TARGET
//
// The type of a file system is not guessed, and there are no other programs for
// types of their own.
func Program(name string, args []string, stderr io.Writer) int {
	var status int
	var err error
	if name == "umount" {
		status, err = unmount(args)
	} else {
		status, err = mountWith(args)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
	}
	return status
}

// mountWith mounts what the arguments of mount(8) say.
func mountWith(args []string) (int, error) {
	var calls request
	var paths []string
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--no-canonicalize" || a == "-n" || a == "-c":
		case a == "--bind":
			calls.add("bind")
		case a == "-t" || a == "-o":
			if len(args) == 0 {
				return exitUsage, fmt.Errorf("nothing after %s", a)
			}
			if a == "-t" {
				calls.Type = args[0]
			} else {
				calls.add(args[0])
			}
			args = args[1:]
		case strings.HasPrefix(a, "-"):
			return exitUsage, fmt.Errorf("unknown option %s, want -t, -o or --no-canonicalize", a)
		default:
			paths = append(paths, a)
		}
	}
	switch {
	case len(paths) == 2:
		calls.Source, calls.Target = paths[0], paths[1]
	case len(paths) == 1 && (calls.Flags&unix.MS_REMOUNT != 0 || len(calls.propagation) > 0):
		calls.Target = paths[0]
	default:
		return exitUsage, fmt.Errorf("%d paths, want what to mount and where", len(paths))
	}
	if err := calls.mount(); err != nil {
		return exitFailure, err
	}
	return 0, nil
}

// A request is what options say of a mount.
type request struct {
	FileSystem
	propagation []uintptr // that it gets when it is there
}

// add takes over options that commas separate. What is not the kernel's own is for
// the file system.
func (r *request) add(options string) {
	for o := range strings.SplitSeq(options, ",") {
		if p, ok := propagation(o); ok {
			r.propagation = append(r.propagation, p)
			continue
		}
		set, clear, ok := flags(o)
		r.Flags = r.Flags&^clear | set
		if ok {
			continue
		}
		if r.Data != "" {
			r.Data += ","
		}
		r.Data += o
	}
}

// mount asks the kernel, more than once if it takes that.
func (r *request) mount() error {
	fs := r.FileSystem
	bound := fs.Flags&unix.MS_BIND != 0 && fs.Flags&unix.MS_REMOUNT == 0
	const kept = unix.MS_BIND | unix.MS_REC
	more := fs.Flags &^ (kept | unix.MS_SILENT)
	switch {
	case bound: // which ignores all but these two
		fs.Flags &= kept
		if err := Mount(fs); err != nil {
			return err
		}
		if more != 0 {
			fs.Flags = unix.MS_BIND | unix.MS_REMOUNT | more
			if err := Mount(fs); err != nil {
				return errors.Join(err, unix.Unmount(fs.Target, unix.MNT_DETACH))
			}
		}
	case fs.Flags == 0 && fs.Type == "" && len(r.propagation) > 0: // nothing else is asked for
	case fs.Type == "" && fs.Flags&unix.MS_REMOUNT == 0:
		return fmt.Errorf("%s on %s: want the type of its file system, with -t", fs.Source, fs.Target)
	default:
		if err := Mount(fs); err != nil {
			return err
		}
	}
	for _, p := range r.propagation {
		if err := unix.Mount("", fs.Target, "", p, ""); err != nil {
			return fmt.Errorf("propagation of %s: %w", fs.Target, err)
		}
	}
	return nil
}

func propagation(option string) (uintptr, bool) {
	kinds := map[string]uintptr{
		"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "unbindable": unix.MS_UNBINDABLE,
	}
	if p, ok := kinds[option]; ok {
		return p, true
	}
	p, ok := kinds[strings.TrimPrefix(option, "r")]
	return p | unix.MS_REC, ok
}

// flags returns what an option sets and clears, and whether it is one of those
// that are no file system's own.
func flags(option string) (set, clear uintptr, ok bool) {
	name, _, _ := strings.Cut(option, "=")
	switch {
	case strings.HasPrefix(option, "x-"), strings.HasPrefix(option, "X-"), name == "comment":
		return 0, 0, true
	}
	switch option {
	case "", "rw", "defaults", "_netdev", "auto", "noauto", "nofail", "nouser", "norelatime":
		if option == "rw" {
			clear = unix.MS_RDONLY
		}
		return 0, clear, true
	case "suid":
		return 0, unix.MS_NOSUID, true
	case "dev":
		return 0, unix.MS_NODEV, true
	case "exec":
		return 0, unix.MS_NOEXEC, true
	case "async":
		return 0, unix.MS_SYNCHRONOUS, true
	case "atime":
		return 0, unix.MS_NOATIME, true
	case "diratime":
		return 0, unix.MS_NODIRATIME, true
	}
	set, ok = map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "remount": unix.MS_REMOUNT,
		"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "silent": unix.MS_SILENT,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		"strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME,
	}[option]
	return set, 0, ok
}

// unmount unmounts what the arguments of umount(8) say. That something is no
// mount point is said in the words of util-linux, which callers look for.
func unmount(args []string) (int, error) {
	how := 0
	var paths []string
	for _, a := range args {
		switch {
		case a == "-f" || a == "--force":
			how |= unix.MNT_FORCE
		case a == "-l" || a == "--lazy":
			how |= unix.MNT_DETACH
		case strings.HasPrefix(a, "-"):
			return exitUsage, fmt.Errorf("unknown option %s, want -f or -l", a)
		default:
			paths = append(paths, a)
		}
	}
	if len(paths) == 0 {
		return exitUsage, errors.New("want the path of a mount point")
	}
	for _, p := range paths {
		switch err := unix.Unmount(filepath.Clean(p), how); {
		case errors.Is(err, unix.EINVAL):
			return exitFailure, fmt.Errorf("%s: not mounted", p)
		case err != nil:
			return exitFailure, fmt.Errorf("%s: %w", p, err)
		}
	}
	return 0, nil
}

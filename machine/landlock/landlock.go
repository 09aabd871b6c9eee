//go:build linux

// Package landlock takes rights from the calling process that it will not need: by
// Linux's landlock(7), which needs no privilege. What a process has given up neither
// it nor what it starts gets back.
//
// Kernels have versions of it, each with more that can be given up; what a kernel
// does not know is not. The numbers are those of the header linux/landlock.h.
package landlock

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rules are what a process may still do with files and with TCP. It keeps what it
// has open.
type Rules struct {
	Read   []string // files and directories, to read with what is below them
	Listen []uint16 // TCP ports; 0 is any free one
}

// ruleNetPort is LANDLOCK_RULE_NET_PORT, with the attribute that it takes.
const ruleNetPort = 2

type netPort struct{ access, port uint64 }

// reading is what can be done to files without changing or starting them.
const reading = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

// scopeAbstract is LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET.
const scopeAbstract = 1

// Restrict restricts all threads of the process to the rules: it starts no program,
// writes and makes no files, connects to nobody over TCP, and to no socket with an
// abstract name. no_new_privs must be set. It returns the kernel's version of
// landlock, 0 if it has none or the program uses cgo, whose threads cannot be
// reached; then nothing is restricted.
func Restrict(r Rules) (version int, err error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return 0, nil
	default:
		return 0, fmt.Errorf("landlock: %w", errno)
	}
	set, err := newRuleset(handled(int(v)))
	if err != nil {
		return 0, fmt.Errorf("landlock: %w", err)
	}
	defer unix.Close(set)
	for _, name := range r.Read {
		if err := read(set, name); err != nil {
			return 0, fmt.Errorf("landlock: %s: %w", name, err)
		}
	}
	for _, p := range r.Listen {
		if v < 4 {
			break
		}
		rule := netPort{unix.LANDLOCK_ACCESS_NET_BIND_TCP, uint64(p)}
		if err := add(set, ruleNetPort, unsafe.Pointer(&rule)); err != nil {
			return 0, fmt.Errorf("landlock: port %d: %w", p, err)
		}
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0)
	if errno == syscall.ENOTSUP {
		return 0, nil
	}
	if errno != 0 {
		return 0, fmt.Errorf("landlock: %w", errno)
	}
	return int(v), nil
}

// handled is what a version of landlock can forbid.
func handled(version int) *unix.LandlockRulesetAttr {
	a := &unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER - 1}
	for _, more := range []struct {
		since int
		fs    uint64
		net   uint64
		scope uint64
	}{
		{since: 2, fs: unix.LANDLOCK_ACCESS_FS_REFER},
		{since: 3, fs: unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{since: 4, net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
		{since: 5, fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
		{since: 6, scope: scopeAbstract},
	} {
		if version >= more.since {
			a.Handled_access_fs |= more.fs
			a.Handled_access_net |= more.net
			a.Scoped |= more.scope
		}
	}
	return a
}

func newRuleset(a *unix.LandlockRulesetAttr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a), 0)
	runtime.KeepAlive(a)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// read allows to read a file, or a directory and what is below it.
func read(set int, name string) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: reading, Parent_fd: int32(fd)}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rule.Allowed_access = unix.LANDLOCK_ACCESS_FS_READ_FILE
	}
	return add(set, unix.LANDLOCK_RULE_PATH_BENEATH, unsafe.Pointer(&rule))
}

func add(set int, kind uintptr, rule unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), kind, uintptr(rule), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

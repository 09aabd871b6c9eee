package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Attributes of variables.
const (
	NonVolatile    = 1 << 0 // is there after a restart
	BootService    = 1 << 1 // boot loaders see it
	RuntimeService = 1 << 2 // the operating system sees it

	Persistent = NonVolatile | BootService | RuntimeService
)

// Errors returned, wrapped, by this package.
var (
	// ErrNoVariables is for a machine on which there are no EFI variables to be
	// had. It was not booted by UEFI, or this is a container that may not mount.
	ErrNoVariables = errors.New("no EFI variables")
	// ErrReadOnly is for variables that cannot be written.
	ErrReadOnly = errors.New("EFI variables are read-only")
	// ErrNoRoom is for firmware whose memory for variables is full.
	ErrNoRoom = errors.New("no room for EFI variables")
)

// Name is the name of a variable.
type Name struct {
	Name   string
	Vendor string // GUID, in small letters
}

// String returns the name of the file.
func (n Name) String() string { return n.Name + "-" + n.Vendor }

const (
	firmwareDir = "/sys/firmware/efi"
	mountPoint  = firmwareDir + "/efivars"
)

// Variables are the variables of a machine's firmware.
type Variables struct {
	dir   string
	mount *os.File // of Open's own, or nil
}

// Open returns the variables of this machine. Where efivarfs is not mounted, as
// in a container, it is mounted for the use of this process, out of sight of all
// others. The error wraps ErrNoVariables if there are none.
func Open() (*Variables, error) {
	if _, err := os.Stat(firmwareDir); err != nil {
		return nil, fmt.Errorf("%w: %w; the machine was not booted by UEFI, or this is a container without privileges", ErrNoVariables, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mountPoint, &st); err == nil && st.Type == unix.EFIVARFS_MAGIC {
		return Directory(mountPoint), nil
	}
	m, err := mountOutOfSight()
	if err != nil {
		return nil, fmt.Errorf("%w: efivarfs is not mounted on %s, and mounting it fails: %w", ErrNoVariables, mountPoint, err)
	}
	return &Variables{fmt.Sprintf("/proc/self/fd/%d", m.Fd()), m}, nil
}

// mountOutOfSight returns the root directory of efivarfs, mounted nowhere.
func mountOutOfSight() (*os.File, error) {
	context, err := unix.Fsopen("efivarfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	const safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, safe)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "efivarfs"), nil
}

// Directory returns the variables in a directory: where efivarfs is mounted or,
// in tests, any other that holds files like those of efivarfs.
func Directory(dir string) *Variables { return &Variables{dir: dir} }

// Close ends the use of the variables.
func (v *Variables) Close() error {
	if v.mount == nil {
		return nil
	}
	return v.mount.Close()
}

// FS returns the variables as a file system, for LoaderString.
func (v *Variables) FS() fs.FS { return os.DirFS(v.dir) }

// List returns the names of all variables, sorted.
func (v *Variables) List() ([]Name, error) {
	files, err := os.ReadDir(v.dir)
	if err != nil {
		return nil, fmt.Errorf("EFI variables: %w", err)
	}
	var names []Name
	for _, f := range files {
		s := f.Name()
		at := len(s) - guidText - 1
		if at < 1 || s[at] != '-' {
			continue
		}
		if _, err := uuid.Parse(s[at+1:]); err != nil {
			continue
		}
		names = append(names, Name{s[:at], s[at+1:]})
	}
	return names, nil
}

// guidText is the length of a GUID as text.
const guidText = 36

// Read returns a variable. The error wraps fs.ErrNotExist if it does not exist.
func (v *Variables) Read(n Name) (attributes uint32, value []byte, err error) {
	path, err := v.path(n)
	if err != nil {
		return 0, nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, failed("read", n, err)
	}
	defer f.Close()
	buf := make([]byte, maxVariable)
	size, err := f.Read(buf)
	switch {
	case errors.Is(err, io.EOF): // created, but without a value yet
		return 0, nil, failed("read", n, fs.ErrNotExist)
	case err != nil:
		return 0, nil, failed("read", n, err)
	case size < 4 || size == len(buf):
		return 0, nil, fmt.Errorf("%s: %w", n, invalid("%d bytes, want at least 4 of attributes and less than %d", size, len(buf)))
	}
	return binary.LittleEndian.Uint32(buf), buf[4:size], nil
}

// Write writes a variable, unless it is like that already: the firmware's memory
// wears out. Variables that are authenticated or appended to are not for Write,
// and one without a value does not exist.
func (v *Variables) Write(n Name, attributes uint32, value []byte) error {
	path, err := v.path(n)
	if err != nil {
		return err
	}
	if attributes == 0 || attributes&^Persistent != 0 || len(value) == 0 {
		return fmt.Errorf("%s: %w", n, invalid("attributes %#x, %d bytes; want attributes up to %#x, and a value", attributes, len(value), Persistent))
	}
	data := append(binary.LittleEndian.AppendUint32(nil, attributes), value...)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		if err = write(f, data); err != nil {
			_ = v.Delete(n) // the kernel may keep the name
			return failed("write", n, err)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return failed("write", n, err)
	}
	if a, is, err := v.Read(n); err == nil && a == attributes && bytes.Equal(is, value) {
		return nil
	}
	protect, err := unprotect(path)
	if err != nil {
		return failed("write", n, err)
	}
	if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		err = write(f, data)
	}
	if err := errors.Join(err, protect()); err != nil {
		return failed("write", n, err)
	}
	return nil
}

// write writes the variable that f is, and closes f.
func write(f *os.File, data []byte) error {
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	// In efivarfs it has the size of what was written now; elsewhere what it was
	// before may be left.
	if fi, err := f.Stat(); err == nil && fi.Size() > int64(len(data)) {
		if err := f.Truncate(int64(len(data))); err != nil {
			return err
		}
	}
	return f.Close()
}

// Delete deletes a variable. The error wraps fs.ErrNotExist if it does not exist.
func (v *Variables) Delete(n Name) error {
	path, err := v.path(n)
	if err != nil {
		return err
	}
	protect, err := unprotect(path)
	if err != nil {
		return failed("delete", n, err)
	}
	if err := os.Remove(path); err != nil {
		return failed("delete", n, errors.Join(err, protect()))
	}
	return nil
}

// immutable is the flag FS_IMMUTABLE_FL of the kernel's linux/fs.h.
const immutable = 0x10

// unprotect clears the flag that efivarfs gives to all variables but well-known
// ones, so that 'rm -r' does not ruin a machine, and returns what sets it again.
func unprotect(path string) (protect func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 { // file systems need not have flags
		return func() error { return nil }, nil
	}
	set := func(f *os.File, flags uint32) error {
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)); err != nil {
			return fmt.Errorf("change the immutable flag: %w", err)
		}
		return nil
	}
	if err := set(f, flags&^immutable); err != nil {
		return nil, err
	}
	return func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return set(f, flags)
	}, nil
}

// path returns the file of a variable.
func (v *Variables) path(n Name) (string, error) {
	if _, err := uuid.Parse(n.Vendor); err != nil || len(n.Vendor) != guidText || n.Name == "" || strings.ContainsAny(n.Name, "/\x00") {
		return "", fmt.Errorf("%q: %w", n, invalid("want a name and the vendor's GUID"))
	}
	return filepath.Join(v.dir, n.String()), nil
}

// failed says what to do about the errors of efivarfs that the caller can do
// something about.
func failed(op string, n Name, err error) error {
	what := fmt.Sprintf("%s EFI variable %s", op, n)
	var p *fs.PathError
	if errors.As(err, &p) { // whose path says no more, or only how we got there
		err = p.Err
	}
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%s: %w: %w; delete boot entries that are not needed ('efibootmgr', 'efibootmgr --delete-bootnum --bootnum XXXX') or crash dumps in /sys/fs/pstore, then restart, so that the firmware tidies up", what, ErrNoRoom, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: %w: %w; mount efivarfs for writing ('mount -o remount,rw %s'), if the kernel lets you", what, ErrReadOnly, err, mountPoint)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s: %w; the kernel or the firmware does not take the value", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

package efi

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

func TestVariables(t *testing.T) {
	dir := t.TempDir()
	v := Directory(dir)
	defer v.Close()
	a, b := Name{"BootOrder", GlobalVendor}, Name{"a-b", LoaderVendor}
	if _, _, err := v.Read(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	for _, value := range []string{"a long value", "short", "longer"} {
		if err := v.Write(a, Persistent, []byte(value)); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, a.String())); err != nil || string(data) != "\x07\x00\x00\x00"+value {
			t.Errorf("%q, %v", data, err)
		}
		if attributes, got, err := v.Read(a); err != nil || attributes != Persistent || string(got) != value {
			t.Errorf("got %#x, %q, %v", attributes, got, err)
		}
	}
	if err := v.Write(b, BootService|RuntimeService, []byte{1}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README", "-" + GlobalVendor, "x-8be4df61-93ca-11d2-aa0d-00e098032b8z"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := v.List(); err != nil || !slices.Equal(names, []Name{a, b}) {
		t.Errorf("%v, %v", names, err)
	}
	if err := v.Delete(a); err != nil {
		t.Error(err)
	}
	if err := v.Delete(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted: %v", err)
	}
}

// What is as it should be is not written.
func TestWriteOnlyChanges(t *testing.T) {
	dir := t.TempDir()
	v, n := Directory(dir), Name{"x", LoaderVendor}
	if err := v.Write(n, Persistent, []byte("value")); err != nil {
		t.Fatal(err)
	}
	when := unix.NsecToTimeval(1e18)
	path := filepath.Join(dir, n.String())
	touched := func() bool {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.ModTime().UnixNano() != 1e18
	}
	for _, c := range []struct {
		attributes uint32
		value      string
		touched    bool
	}{{Persistent, "value", false}, {Persistent, "other", true}, {BootService, "other", true}} {
		if err := unix.Utimes(path, []unix.Timeval{when, when}); err != nil {
			t.Fatal(err)
		}
		if err := v.Write(n, c.attributes, []byte(c.value)); err != nil {
			t.Fatal(err)
		}
		if touched() != c.touched {
			t.Errorf("%#x %s: written %v, want %v", c.attributes, c.value, touched(), c.touched)
		}
	}
}

func TestVariablesErrors(t *testing.T) {
	dir := t.TempDir()
	v, n := Directory(dir), Name{"x", LoaderVendor}
	const file = "x-" + LoaderVendor
	for want, err := range map[string]error{
		file + ": invalid EFI variable: attributes 0x0, 1 bytes; want attributes up to 0x7, and a value":      v.Write(n, 0, []byte{1}),
		file + ": invalid EFI variable: attributes 0x27, 1 bytes; want attributes up to 0x7, and a value":     v.Write(n, 0x27, []byte{1}),
		file + ": invalid EFI variable: attributes 0x7, 0 bytes; want attributes up to 0x7, and a value":      v.Write(n, Persistent, nil),
		`"../x-` + LoaderVendor + `": invalid EFI variable: want a name and the vendor's GUID`:                v.Delete(Name{"../x", LoaderVendor}),
		`"-` + LoaderVendor + `": invalid EFI variable: want a name and the vendor's GUID`:                    v.Delete(Name{"", LoaderVendor}),
		`"x-{4a67b082-0a4c-41cf-b6c7-440b29bb8c4f}": invalid EFI variable: want a name and the vendor's GUID`: v.Delete(Name{"x", "{" + LoaderVendor + "}"}),
	} {
		if !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for size, want := range map[int]string{
		3:           file + ": invalid EFI variable: 3 bytes, want at least 4 of attributes and less than 65536",
		maxVariable: file + ": invalid EFI variable: 65536 bytes, want at least 4 of attributes and less than 65536",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Read(n); !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Read(n); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a value: %v", err)
	}
	if _, err := Directory(filepath.Join(dir, "none")).List(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// What the kernel says comes with what to do.
func TestFull(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "nr_inodes=3,size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	v := Directory(dir)
	n := func(s string) Name { return Name{s, GlobalVendor} }
	if err := v.Write(n("Boot0000"), Persistent, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	err := v.Write(n("Boot0001"), Persistent, []byte{1}) // both pages are in use
	if !errors.Is(err, ErrNoRoom) || err.Error() != "write EFI variable Boot0001-"+GlobalVendor+(": no room for EFI variables: no space left on device; delete boot entries that are not needed ('efibootmgr', 'efibootmgr --delete-bootnum --bootnum XXXX') or crash dumps in /sys/fs/pstore, then restart, so that the firmware tidies up") {
		t.Errorf("full: %v", err)
	}
	if names, err := v.List(); err != nil || len(names) != 1 {
		t.Errorf("what could not be written is left: %v, %v", names, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for op, err := range map[string]error{"write": v.Write(n("Boot0000"), Persistent, []byte{1}), "delete": v.Delete(n("Boot0000"))} {
		const why = ": EFI variables are read-only: read-only file system; mount efivarfs for writing ('mount -o remount,rw /sys/firmware/efi/efivars'), if the kernel lets you"
		if !errors.Is(err, ErrReadOnly) || err.Error() != op+" EFI variable Boot0000-"+GlobalVendor+why {
			t.Errorf("read-only: %v", err)
		}
	}
}

// A variable that is protected is changed, and protected again.
func TestImmutable(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	v, n := Directory(dir), Name{LoaderEntryDefault, LoaderVendor}
	if err := v.Write(n, Persistent, []byte("old")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, n.String()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
		t.Skipf("SKIPPED: the file system of %s has no flags: %v", dir, err)
	}
	t.Cleanup(func() { _ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0) })
	if err := os.Remove(f.Name()); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("the variable is not protected: %v", err)
	}
	if err := v.Write(n, Persistent, []byte("new")); err != nil {
		t.Error(err)
	}
	if _, value, err := v.Read(n); err != nil || !bytes.Equal(value, []byte("new")) {
		t.Errorf("%q, %v", value, err)
	}
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&immutable == 0 {
		t.Errorf("flags %#x, %v: the variable is not protected again", flags, err)
	}
	if err := v.Delete(n); err != nil {
		t.Error(err)
	}
}

func TestSetLoaderEntry(t *testing.T) {
	v := Directory(t.TempDir())
	const id = "kiln-2-b.efi"
	if err := SetLoaderEntry(v, LoaderEntryOneShot, id); err != nil {
		t.Fatal(err)
	}
	attributes, value, err := v.Read(Name{LoaderEntryOneShot, LoaderVendor})
	if err != nil || attributes != Persistent || string(value) != "k\x00i\x00l\x00n\x00-\x002\x00-\x00b\x00.\x00e\x00f\x00i\x00\x00\x00" {
		t.Errorf("%#x, %q, %v", attributes, value, err)
	}
	if s, err := LoaderString(v.FS(), LoaderEntryOneShot); err != nil || s != id {
		t.Errorf("%q, %v", s, err)
	}
	for range 2 {
		if err := SetLoaderEntry(v, LoaderEntryOneShot, ""); err != nil {
			t.Error(err)
		}
	}
	if s, err := LoaderString(v.FS(), LoaderEntryOneShot); err != nil || s != "" {
		t.Errorf("%q, %v", s, err)
	}
	for want, err := range map[string]error{
		"invalid EFI variable: LoaderInfo names no entry, want LoaderEntryDefault or LoaderEntryOneShot": SetLoaderEntry(v, "LoaderInfo", id),
		`LoaderEntryDefault: invalid EFI variable: "a\x00" is no text`:                                   SetLoaderEntry(v, LoaderEntryDefault, "a\x00"),
	} {
		if !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// Package efi reads and writes the variables of UEFI firmware that have to do
// with booting: the firmware's boot entries, and what the boot loader leaves for
// the operating system and is told by it.
//
// Linux shows the variables in a file system of its own, efivarfs
// (Documentation/filesystems/efivarfs.rst). There a variable is the file
// NAME-GUID, the GUID being that of who gave the name its meaning: four bytes of
// attributes, then the value. It is read and written at once, by one read(2) or
// write(2), which is one call of the firmware: a variable has its old or its new
// value, whenever the power is cut.
//
// What the firmware boots, it says in variables of its own (UEFI specification
// 2.10, section 3.3, "Globally Defined Variables"):
//
//	BootOrder   numbers of boot entries, 16 bits each, to be tried in this order
//	BootXXXX    a boot entry, a LoadOption; XXXX is its number in hexadecimal
//
// If none of them works, it starts EFI/BOOT/BOOTX64.EFI, or what the architecture
// has instead, of the first disk it finds one on: the removable path.
//
// The boot loader's variables are those of systemd's Boot Loader Interface:
// strings in UTF-16, ended by a zero. All integers are little-endian.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// Vendors of variables.
const (
	GlobalVendor = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // the UEFI specification
	LoaderVendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // the Boot Loader Interface
)

// Names of variables of the Boot Loader Interface.
const (
	LoaderDevicePartUUID = "LoaderDevicePartUUID" // GUID of the partition the loader was started from
	LoaderEntrySelected  = "LoaderEntrySelected"  // name of the chosen menu entry
	StubImageIdentifier  = "StubImageIdentifier"  // path of the unified kernel image on its partition

	LoaderEntryDefault = "LoaderEntryDefault" // entry to start, whatever the loader's configuration says
	LoaderEntryOneShot = "LoaderEntryOneShot" // entry to start the next time only
)

// maxVariable bounds a variable that is read, in bytes.
const maxVariable = 64 << 10

// ErrInvalid is wrapped by the errors for a variable that is not what its name
// says, and for what cannot be made one.
var ErrInvalid = errors.New("invalid EFI variable")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// LoaderString returns the value of a string variable of the Boot Loader
// Interface. vars is an efivarfs. A variable that is not there is "".
func LoaderString(vars fs.FS, name string) (string, error) {
	f, err := vars.Open(name + "-" + LoaderVendor)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	// efivarfs wants the variable read at once.
	buf := make([]byte, maxVariable)
	n, err := f.Read(buf)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	s, err := decode(buf[:n])
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// SetLoaderEntry tells systemd-boot which entry to start: LoaderEntryDefault from
// now on, LoaderEntryOneShot once. The id of a unified kernel image is the name of
// its file in small letters, without what counts boots. The empty id takes back
// what the variable says.
//
// systemd-boot starts what it is told to even if the entry has no tries left: a
// default keeps it from falling back to another one.
func SetLoaderEntry(v *Variables, name, id string) error {
	if name != LoaderEntryDefault && name != LoaderEntryOneShot {
		return invalid("%s names no entry, want %s or %s", name, LoaderEntryDefault, LoaderEntryOneShot)
	}
	n := Name{name, LoaderVendor}
	if id == "" {
		if err := v.Delete(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	value, err := appendString(nil, id)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return v.Write(n, Persistent, value)
}

// decode decodes a variable that is a string.
func decode(data []byte) (string, error) {
	if len(data) < 4 || len(data)%2 != 0 {
		return "", invalid("%d bytes, want 4 of attributes and pairs", len(data))
	}
	s, _, _ := cutString(data[4:])
	return s, nil
}

// cutString decodes the string at the beginning of data, up to a zero or, if
// there is none, the end of data, and returns what follows.
func cutString(data []byte) (s string, rest []byte, ended bool) {
	var units []uint16
	for ; len(data) >= 2; data = data[2:] {
		u := binary.LittleEndian.Uint16(data)
		if u == 0 {
			return string(utf16.Decode(units)), data[2:], true
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units)), nil, false
}

// appendString appends s and a zero.
func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) || slices.Contains([]byte(s), 0) {
		return nil, invalid("%q is no text", s)
	}
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b, nil
}

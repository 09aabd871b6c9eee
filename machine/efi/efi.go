// Package efi reads what the boot loader leaves in EFI variables for the
// operating system, as the Boot Loader Interface of systemd describes it.
//
// In efivarfs a variable is the file NAME-GUID: four bytes of attributes, then
// the value; the loader's are strings in UTF-16, little-endian, ended by a zero.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"unicode/utf16"
)

// LoaderVendor is the vendor GUID of the Boot Loader Interface's variables.
const LoaderVendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// Names of variables.
const (
	LoaderDevicePartUUID = "LoaderDevicePartUUID" // GUID of the partition the loader was started from
	LoaderEntrySelected  = "LoaderEntrySelected"  // name of the chosen menu entry
	StubImageIdentifier  = "StubImageIdentifier"  // path of the unified kernel image on its partition
)

// maxVariable bounds a variable that is read, in bytes.
const maxVariable = 64 << 10

// ErrInvalid is wrapped by the errors for a variable that is no string.
var ErrInvalid = errors.New("invalid EFI variable")

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

func decode(data []byte) (string, error) {
	if len(data) < 4 || len(data)%2 != 0 {
		return "", fmt.Errorf("%w: %d bytes, want 4 of attributes and pairs", ErrInvalid, len(data))
	}
	var units []uint16
	for data = data[4:]; len(data) > 0; data = data[2:] {
		u := binary.LittleEndian.Uint16(data)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units)), nil
}

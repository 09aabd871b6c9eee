package efi

import (
	"errors"
	"testing"
	"testing/fstest"
	"unicode/utf16"
)

func variable(s string) []byte {
	b := []byte{6, 0, 0, 0}
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = append(b, byte(u), byte(u>>8))
	}
	return b
}

func TestLoaderString(t *testing.T) {
	const uuid = "3515A337-9106-4D12-949B-0FC5FA7E80B5"
	vars := fstest.MapFS{
		LoaderDevicePartUUID + "-" + LoaderVendor: {Data: variable(uuid)},
		LoaderEntrySelected + "-" + LoaderVendor:  {Data: []byte{6, 0, 0}},
	}
	if s, err := LoaderString(vars, LoaderDevicePartUUID); err != nil || s != uuid {
		t.Errorf("got %q, %v", s, err)
	}
	if s, err := LoaderString(vars, StubImageIdentifier); err != nil || s != "" {
		t.Errorf("no variable: got %q, %v", s, err)
	}
	_, err := LoaderString(vars, LoaderEntrySelected)
	if want := "LoaderEntrySelected: invalid EFI variable: 3 bytes, want 4 of attributes and pairs"; !errors.Is(err, ErrInvalid) || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func FuzzLoaderString(f *testing.F) {
	f.Add(variable(`\EFI\Linux\kiln-A+3-1.efi`))
	f.Add([]byte{6, 0, 0, 0, 0, 0xd8})
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := decode(data); err != nil && (s != "" || !errors.Is(err, ErrInvalid)) {
			t.Errorf("%q, %v", s, err)
		}
	})
}

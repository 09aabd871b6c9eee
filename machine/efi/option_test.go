package efi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/gpt"
)

// drive is a partition of 256 MiB at 1 MiB.
func drive(number uint32, id string) HardDrive {
	return HardDrive{number, 0x800, 0x80000, uuid.MustParse(id)}
}

const (
	idA = "3515a337-9106-4d12-949b-0fc5fa7e80b5"
	idB = "8b1c6b5e-0d1c-4ce4-8a54-6f3d0ea0c1b2"
	idC = "c0ffee00-0000-4000-8000-000000000001"

	loader = "EFI/BOOT/BOOTX64.EFI"
)

// bootOption is an entry as Register makes it.
func bootOption(t testing.TB, description string, h HardDrive, path string) []byte {
	t.Helper()
	file, err := FilePath(path)
	if err != nil {
		t.Fatal(err)
	}
	o := LoadOption{Active, description, []DevicePath{{h.Node(), file}}, nil}
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden is made by hand, from sections 3.1.3, 10.3.5.1 and 10.3.5.4 of the UEFI
// specification.
const golden = "01000000" + // LOAD_OPTION_ACTIVE
	"5e00" + // 42 + 48 + 4 bytes of paths
	"6b0069006c006e000000" + // "kiln"
	"04012a00" + "01000000" + "0008000000000000" + "0000080000000000" +
	"37a315350691124d949b0fc5fa7e80b5" + "02" + "02" + // GPT, signed with a GUID
	"04043000" + // \EFI\BOOT\BOOTX64.EFI
	"5c00450046004900" + "5c0042004f004f005400" + "5c0042004f004f0054005800360034002e004500460049000000" +
	"7fff0400"

func TestLoadOptionGolden(t *testing.T) {
	got := bootOption(t, "kiln", drive(1, idA), loader)
	if hex.EncodeToString(got) != golden {
		t.Errorf("got\n%x, want\n%s", got, golden)
	}
	o, err := DecodeLoadOption(got)
	if err != nil {
		t.Fatal(err)
	}
	h, ok := o.Paths[0][0].HardDrive()
	if path, is := o.Paths[0][1].FilePath(); !ok || !is || h != drive(1, idA) || path != `\EFI\BOOT\BOOTX64.EFI` || o.Description != "kiln" || o.Attributes != Active || len(o.Data) != 0 {
		t.Errorf("got %+v, %v, %q", o, h, path)
	}
}

// Entries of others have what ours do not.
func TestLoadOptionOfOthers(t *testing.T) {
	want := &LoadOption{
		Description: "Größe 🜂",
		Paths: []DevicePath{
			{{2, 1, []byte{0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0}}, {1, 1, []byte{0, 0x1f}}, {typeEnd, 1, []byte{}}, {5, 1, make([]byte, 300)}},
			{},
		},
		Data: []byte("options"),
	}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeLoadOption(b)
	if err != nil {
		t.Fatal(err)
	}
	want.Paths[1] = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, n := range got.Paths[0] {
		if _, ok := n.HardDrive(); ok {
			t.Errorf("%v is a partition", n)
		}
		if _, ok := n.FilePath(); ok {
			t.Errorf("%v is a file", n)
		}
	}
}

func TestDecodeLoadOptionErrors(t *testing.T) {
	for data, want := range map[string]string{
		"0100000004":                                  "a boot entry of 5 bytes, want at least 6",
		"0100000004006b00":                            "a boot entry whose description has no end",
		"010000000400" + "0000":                       "a boot entry with paths of 4 bytes, of which 0 are there",
		"010000000000" + "0000":                       "a boot entry with paths of 0 bytes, of which 0 are there",
		"010000000400" + "0000" + "04010300":          "a node of 3 bytes in a device path that has 4 more",
		"010000000400" + "0000" + "04010500":          "a node of 5 bytes in a device path that has 4 more",
		"010000000400" + "0000" + "04010400":          "a device path without an end",
		"010000000600" + "0000" + "7fff04007fff":      "a device path without an end",
		"010000000600" + "0000" + "7fff0600" + "0000": "a device path whose end has 6 bytes, want 4",
	} {
		b, err := hex.DecodeString(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeLoadOption(b); !errors.Is(err, ErrInvalid) || err.Error() != "invalid EFI variable: "+want {
			t.Errorf("%s: %v, want %s", data, err, want)
		}
	}
}

func TestEncodeErrors(t *testing.T) {
	for want, o := range map[string]LoadOption{
		"a boot entry without a path":                                {},
		"a device path with an end inside":                           {Paths: []DevicePath{{{typeEnd, endEntire, nil}}}},
		"a node of 65536 bytes, want at most 65535":                  {Paths: []DevicePath{{{4, 3, make([]byte, 65532)}}}},
		"a boot entry with paths of 65536 bytes, want at most 65535": {Paths: []DevicePath{{{4, 3, make([]byte, 65528)}}}},
		`"a\x00b" is no text`:                                        {Description: "a\x00b", Paths: []DevicePath{{}}},
		`"\xff" is no text`:                                          {Description: "\xff", Paths: []DevicePath{{}}},
	} {
		if _, err := o.Encode(); !errors.Is(err, ErrInvalid) || err.Error() != "invalid EFI variable: "+want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := FilePath("a\x00b"); !errors.Is(err, ErrInvalid) {
		t.Errorf("FilePath: %v", err)
	}
}

func TestSystemPartition(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		table := &gpt.Table{SectorSize: sector, Partitions: []gpt.Partition{
			{}, {Type: gpt.BIOSBoot}, {Type: gpt.EFISystem, ID: uuid.MustParse(idA), Start: 1 << 20, Size: 256 << 20},
		}}
		want := HardDrive{3, uint64(1 << 20 / sector), uint64(256 << 20 / sector), uuid.MustParse(idA)}
		if h, ok := SystemPartition(table); !ok || h != want {
			t.Errorf("sectors of %d: %+v, %v", sector, h, ok)
		}
	}
	if h, ok := SystemPartition(&gpt.Table{SectorSize: 512}); ok {
		t.Errorf("empty table: %+v", h)
	}
}

func FuzzLoadOption(f *testing.F) {
	b, err := hex.DecodeString(golden)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(append(b, "data"...))
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0, 1, 1, 4, 0, 0x7f, 0xff, 4, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeLoadOption(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
			return
		}
		for _, p := range o.Paths {
			for _, n := range p {
				if h, ok := n.HardDrive(); ok && !bytes.Equal(h.Node().Data, n.Data) {
					t.Errorf("%x becomes %x", n.Data, h.Node().Data)
				}
				n.FilePath()
			}
		}
		if strings.ContainsRune(o.Description, '\ufffd') { // of what is no UTF-16
			return
		}
		if again, err := o.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x becomes %x, %v", data, again, err)
		}
	})
}

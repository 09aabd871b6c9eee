package smbios

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kilnhq/kiln/internal/oracle"
)

// structure returns a structure with these fields behind the header, and strings.
func structure(kind byte, fields []byte, strs ...string) []byte {
	b := append([]byte{kind, byte(4 + len(fields)), 1, 0}, fields...)
	for _, s := range strs {
		b = append(append(b, s...), 0)
	}
	if len(strs) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// guid is a UUID as the firmware writes it.
var guid = []byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}

func table() []byte {
	system := append([]byte{1, 2, 0, 3}, guid...)
	system = append(system, 6, 4, 5) // wake-up type, SKU, family
	return bytes.Join([][]byte{
		structure(0, []byte{1, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "BIOS vendor", "1.0", "2026"),
		structure(1, system, "QEMU", "Standard PC", "ds=nocloud;s=http://192.0.2.1/;h=n1", "sku", "family"),
		structure(3, []byte{1, 1, 0, 0, 2, 3, 3, 3, 3}, "QEMU", "  TAG-7 "),
		structure(1, append([]byte{1, 1, 1, 1}, guid...), "a second one"),
		structure(127, nil),
		[]byte("garbage behind the end"),
	}, nil)
}

// entry returns an entry point of version 3.0 for a table of that length at 0x20.
func entry(length int) []byte {
	b := make([]byte, 24)
	copy(b, "_SM3_")
	b[6], b[7], b[8], b[10] = 24, 3, 0, 1
	binary.LittleEndian.PutUint32(b[12:], uint32(length))
	b[16] = 0x20
	var sum byte
	for _, c := range b {
		sum += c
	}
	b[5] = -sum
	return b
}

func TestRead(t *testing.T) {
	s, err := Read(fstest.MapFS{tableFile: {Data: table()}, entryFile: {Data: entry(len(table()))}})
	if err != nil {
		t.Fatal(err)
	}
	if want := (System{
		Manufacturer: "QEMU", Product: "Standard PC", Serial: "ds=nocloud;s=http://192.0.2.1/;h=n1", SKU: "sku", Family: "family",
		UUID: "00112233-4455-6677-8899-aabbccddeeff", AssetTag: "TAG-7",
	}); *s != want {
		t.Errorf("found %+v, want %+v", *s, want)
	}
}

// TestDmidecode compares with dmidecode, on the table above and, where there is one,
// on that of the machine that runs the test.
func TestDmidecode(t *testing.T) {
	tool := oracle.Tool(t, "dmidecode")
	dump := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(dump, append(append(entry(len(table())), make([]byte, 8)...), table()...), 0o600); err != nil {
		t.Fatal(err)
	}
	compare := func(s *System, args ...string) {
		t.Helper()
		for keyword, got := range map[string]string{
			"system-manufacturer": s.Manufacturer, "system-product-name": s.Product, "system-serial-number": s.Serial,
			"system-uuid": s.UUID, "system-family": s.Family, "chassis-asset-tag": s.AssetTag,
		} {
			out, err := exec.Command(tool, append(args, "-s", keyword)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			want := strings.TrimSpace(lines[0]) // a second system is a second line
			if !strings.EqualFold(got, want) && (got != "" || want != "Not Specified" && want != "Not Present" && want != "Not Settable") {
				t.Errorf("%s: found %q, dmidecode says %q", keyword, got, want)
			}
		}
	}
	s, err := Parse(table(), 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	compare(s, "--from-dump", dump)
	if s, err := Read(os.DirFS("/sys/firmware")); err == nil {
		compare(s)
	}
}

func TestNone(t *testing.T) {
	if _, err := Read(fstest.MapFS{}); !errors.Is(err, ErrNone) {
		t.Errorf("error %v, want ErrNone", err)
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		entry string
		want  string // UUID, "" for an error
	}{
		{"_SM3_\x00\x18\x03\x02", "00112233-4455-6677-8899-aabbccddeeff"},
		{"_SM_\x00\x1f\x02\x06", "00112233-4455-6677-8899-aabbccddeeff"},
		{"_SM_\x00\x1f\x02\x05", "33221100-5544-7766-8899-aabbccddeeff"},
		{"_DMI_123456789\x24", "33221100-5544-7766-8899-aabbccddeeff"},
		{"_DMI_", ""},
		{"", ""},
	} {
		s, err := Read(fstest.MapFS{tableFile: {Data: table()}, entryFile: {Data: []byte(c.entry)}})
		if c.want == "" {
			if err == nil || !strings.HasSuffix(err.Error(), "want _SM_, _SM3_ or _DMI_ and a version") {
				t.Errorf("%q: %v", c.entry, err)
			}
		} else if err != nil || s.UUID != c.want {
			t.Errorf("%q: %+v, %v, want %s", c.entry, s, err, c.want)
		}
	}
}

func TestNoUUID(t *testing.T) {
	for _, b := range []byte{0, 0xff} {
		s, err := Parse(structure(1, append([]byte{0, 0, 0, 9}, bytes.Repeat([]byte{b}, 16)...), "x"), 3, 0)
		if err != nil || *s != (System{}) {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

func TestDamage(t *testing.T) {
	for _, c := range []struct {
		table []byte
		want  string
	}{
		{[]byte{1, 4, 0}, "structure at byte 0 does not fit the table of 3 bytes"},
		{[]byte{1, 3, 0, 0, 0, 0}, "structure at byte 0 does not fit the table of 6 bytes"},
		{[]byte{1, 200, 0, 0, 0, 0}, "structure at byte 0 does not fit the table of 6 bytes"},
		{[]byte{1, 4, 0, 0, 'a', 0}, "strings of the structure at byte 0 have no end"},
		{append(structure(2, nil), 1), "structure at byte 6 does not fit the table of 7 bytes"},
		{make([]byte, maxTable+1), "the table has 4194305 bytes, want at most 4194304"},
	} {
		if _, err := Parse(c.table, 3, 0); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(table(), byte(3), byte(0))
	f.Add([]byte{1, 200, 0, 0, 0, 0}, byte(2), byte(5))
	f.Fuzz(func(t *testing.T, table []byte, major, minor byte) {
		s, err := Parse(table, major, minor)
		if err != nil {
			return
		}
		if len(s.Serial) > len(table) || len(s.UUID) != 0 && len(s.UUID) != 36 {
			t.Errorf("found %+v", s)
		}
	})
}

func FuzzVersion(f *testing.F) {
	f.Add(entry(100))
	f.Fuzz(func(_ *testing.T, entry []byte) { _, _, _ = version(entry) })
}

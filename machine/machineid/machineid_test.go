package machineid

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/platform/smbios"
)

func TestParse(t *testing.T) {
	const good = "0b0f1f576b434f4d9a6c6a4a2f1f0c11"
	for text, want := range map[string]string{
		good:                    "",
		good + "\n":             "",
		good + "\n\n":           "want 32 hexadecimal digits",
		strings.ToUpper(good):   "want 32 hexadecimal digits",
		good[1:]:                "want 32 hexadecimal digits",
		good + "0":              "want 32 hexadecimal digits",
		"":                      "want 32 hexadecimal digits",
		"uninitialized\n":       "want 32 hexadecimal digits",
		strings.Repeat("0", 32): "found zeros",
	} {
		id, err := Parse(text)
		if want == "" && (err != nil || id.String() != good || string(id.File()) != good+"\n" || id.Hostname() != "kiln-0b0f1f57") {
			t.Errorf("%q: %v, %v", text, id, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestFromFirmware(t *testing.T) {
	const uuid = "0b0f1f57-6b43-4f4d-9a6c-6a4a2f1f0c11"
	for _, c := range []struct {
		system smbios.System
		want   bool
	}{
		{smbios.System{Manufacturer: "QEMU", UUID: uuid}, true},
		{smbios.System{Manufacturer: "Red Hat", Product: "KVM", UUID: uuid}, true},
		{smbios.System{Manufacturer: "QEMU"}, false},
		{smbios.System{Manufacturer: "Supermicro", UUID: uuid}, false},
	} {
		if id := FromFirmware(&c.system); (id != ID{}) != c.want || c.want && id.String() != strings.ReplaceAll(uuid, "-", "") {
			t.Errorf("%+v: %v", c.system, id)
		}
	}
}

func TestKeep(t *testing.T) {
	dir := t.TempDir()
	random := bytes.NewReader(bytes.Repeat([]byte{0xff}, 16))
	id, err := Keep(dir, ID{}, random)
	if err != nil || id.String() != "ffffffffffff4fffbfffffffffffffff" {
		t.Fatalf("%v, %v", id, err)
	}
	if again, err := Keep(dir, ID{1}, nil); err != nil || again != id {
		t.Errorf("the second time it is %v, %v", again, err)
	}
	name := filepath.Join(dir, Name)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if id, err := Keep(dir, ID{1}, nil); id != (ID{1}) || err == nil || !strings.Contains(err.Error(), name+`: found "broken", want 32 hexadecimal digits`) {
		t.Errorf("%v, %v", id, err)
	}
	if id, err := Keep(dir, ID{2}, nil); id != (ID{1}) || err != nil {
		t.Errorf("what was broken is not replaced: %v, %v", id, err)
	}
	if id, err := Keep(filepath.Join(dir, "none"), ID{3}, nil); id != (ID{3}) || err == nil || !strings.Contains(err.Error(), "is not kept") {
		t.Errorf("%v, %v", id, err)
	}
	if _, err := Keep(t.TempDir(), ID{}, random); err == nil {
		t.Error("an identity without randomness")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0b0f1f576b434f4d9a6c6a4a2f1f0c11\n")
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := Parse(text); err == nil && id.String() != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is %v", text, id)
		}
	})
}

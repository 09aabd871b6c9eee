package meta

import (
	"errors"
	"testing"
)

func TestParseKey(t *testing.T) {
	for text, want := range map[string]Key{
		"0x0a": 0x0a, "0XA": 0x0a, "10": 0x0a, "010": 0x0a, "metal-network": 0x0a,
		"0xff": 0xff, "255": 0xff, "1": 1, "reset-request": 0xf2,
	} {
		if got, err := ParseKey(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	const all = "; known: disk-image-bootloader, download-url-code, machine-config, machine-token, metal-network, reset-request, staged-upgrade-image, staged-upgrade-options, staged-wipe-selectors, state-encryption, upgrade, upgrade-record, user-1, user-2, user-3, user-data, uuid-override"
	for text, want := range map[string]string{
		"0":            `invalid META key 0: want 1 to 255, or 0x01 to 0xff`,
		"0x00":         `invalid META key 0x00: want 1 to 255, or 0x01 to 0xff`,
		"256":          `invalid META key 256: want 1 to 255, or 0x01 to 0xff`,
		"0x10a":        `invalid META key 0x10a: want 1 to 255, or 0x01 to 0xff`,
		"metalnetwork": `invalid META key "metalnetwork": want a number or a name; did you mean "metal-network"?`,
		"0x":           `invalid META key "0x": want a number or a name` + all,
		"-1":           `invalid META key "-1": want a number or a name` + all,
		"+10":          `invalid META key "+10": want a number or a name` + all,
		"0a":           `invalid META key "0a": want a number or a name` + all,
		"1_0":          `invalid META key "1_0": want a number or a name` + all,
		"":             `invalid META key "": want a number or a name` + all,
		"99999999999":  `invalid META key "99999999999": want a number or a name` + all,
	} {
		if _, err := ParseKey(text); !errors.Is(err, ErrKey) || err.Error() != want {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
}

func TestKnown(t *testing.T) {
	names := map[string]bool{}
	last := Key(0)
	for _, n := range Known() {
		if n.Key <= last || names[n.Name] {
			t.Errorf("%v %s: not after %v, or a name that is taken", n.Key, n.Name, last)
		}
		last, names[n.Name] = n.Key, true
		if got, err := ParseKey(n.Name); err != nil || got != n.Key || got.Name() != n.Name {
			t.Errorf("%s: %v, %v", n.Name, got, err)
		}
		if n.Key > 0x12 && n.Key < 0xf0 {
			t.Errorf("%v is in a range that is Talos' or the users'", n.Key)
		}
	}
	for key, want := range map[Key]string{0x0a: "0x0a (metal-network)", 0x80: "0x80", 1: "0x01"} {
		if got := key.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

package slots

import (
	"errors"
	"testing"
)

func TestName(t *testing.T) {
	for text, want := range map[string]Name{
		"kiln-1-A.efi":                    {Generation: 1, Slot: "A"},
		`\EFI\Linux\kiln-12-B.efi`:        {Generation: 12, Slot: "B"},
		"/EFI/Linux/kiln-2-b+3.efi":       {Generation: 2, Slot: "B", Counted: true, Left: 3},
		"KILN-2-B+0-3.EFI":                {Generation: 2, Slot: "B", Counted: true, Done: 3},
		"kiln-1073741824-A+1-2.efi":       {Generation: 1 << 30, Slot: "A", Counted: true, Left: 1, Done: 2},
		"kiln-1-AB.efi":                   {},
		"kiln-1-A+.efi":                   {},
		"kiln-1-A+3-.efi":                 {},
		"kiln-1-A+3-2-1.efi":              {},
		"kiln--A.efi":                     {},
		"kiln-A.efi":                      {},
		"kiln-+1-A.efi":                   {},
		"kiln-1-C.efi":                    {},
		"kiln-1-a.efi@reset":              {Generation: 1, Slot: "A"},
		"kiln-1-A":                        {Generation: 1, Slot: "A"},
		"other-1-A.efi":                   {},
		"kiln-1073741825-A.efi":           {},
		"kiln-99999999999999999999-A.efi": {},
		"":                                {},
	} {
		got, err := ParseName(text)
		if got != want || (err == nil) != (want != Name{}) || err != nil && !errors.Is(err, ErrName) {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
		if err == nil {
			if again, err := ParseName(got.String()); again != want {
				t.Errorf("%q: written %q, which is %+v, %v", text, got, again, err)
			}
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("kiln-2-B+2-1.efi")
	f.Add(`\EFI\Linux\kiln-1-a.efi`)
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if again, err := ParseName(n.String()); err != nil || again != n {
			t.Errorf("%q: %+v, written and read %+v, %v", s, n, again, err)
		}
	})
}

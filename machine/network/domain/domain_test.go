package domain

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		data     string
		pointers bool
		want     []string
		err      string
	}{
		{"", false, nil, ""},
		{"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04", true, []string{"eng.apple.com", "marketing.apple.com"}, ""}, // RFC 3397
		{"\x01a\x00\x00\x00", false, []string{"a"}, ""},
		{"\x01a\x00\xc0\x00", false, nil, "domain names: label of length 0xc0"},
		{"\xc0\x00", true, nil, "domain names: pointer at 0 leads forward, to 0"},
		{"\x01a\xc0\x00", true, nil, "domain names: list ends within a name"},
		{"\x01a\x00\x01b\xc0\x05", true, nil, "domain names: pointer at 5 leads forward, to 5"},
		{"\x01a\xc0", true, nil, "domain names: list ends within a name"},
		{"\x01a", true, nil, "domain names: list ends within a name"},
		{"\x05a", true, nil, "domain names: list ends within a name"},
		{"\x01\n\x00", true, nil, `domain names: "\n" is no domain name`},
		{strings.Repeat("\x3f"+strings.Repeat("x", 63), 5), false, nil, "domain names: a name has more than 253 letters"},
		{strings.Repeat("\x01a\x00", 65), false, nil, "domain names: more than 64"},
	} {
		got, err := Parse([]byte(c.data), c.pointers)
		if err == nil && c.err != "" || err != nil && err.Error() != c.err || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v; want %q, %s", c.data, got, err, c.want, c.err)
		}
	}
}

func TestValid(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a-b.example.org": true, "_sip.x": true, "X.0": true,
		"": false, ".": false, "a.": false, "a..b": false, "-a": false, "a-": false, "a b": false, "ä": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false,
		strings.Repeat("abc.", 63) + "a": true, strings.Repeat("abc.", 63) + "ab": false,
	} {
		if Valid(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"))
	f.Fuzz(func(t *testing.T, data []byte) {
		names, err := Parse(data, true)
		if err != nil {
			return
		}
		var list []byte
		for _, n := range names {
			list = Append(list, n)
		}
		again, err := Parse(list, false)
		if err != nil || !slices.Equal(again, names) {
			t.Errorf("%q, then %q, %v", names, again, err)
		}
	})
}

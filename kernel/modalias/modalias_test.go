package modalias

import (
	"path"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"virtio:d00000002v*", "virtio:d00000002v00001AF4", true},
		{"virtio:d00000002v*", "virtio:d00000003v00001AF4", false},
		{"pci:v00008086d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true},
		{"pci:v00008086d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i00", false},
		{"usb:v0B95p1780d*dc*dsc*dp*ic*isc*ip*in*", "usb:v0B95p1780d0001dc00dsc00dp00icFFisc00ip00in00", true},
		{"usb:v0525pA4A2d0[1-9]*", "usb:v0525pA4A2d0312", true},
		{"usb:v0525pA4A2d0[1-9]*", "usb:v0525pA4A2d0012", false},
		{"a[!b-d]e", "aae", true},
		{"a[!b-d]e", "ace", false},
		{"a[]]e", "a]e", true},
		{"a[", "a[", true},
		{"a[bc", "ab", false},
		{`a\*`, "a*", true},
		{`a\*`, "ab", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"*", "", true},
		{"**a**b", "xxaxxb", true},
		{"*a*a*a*a*a*a*b", strings.Repeat("a", 2000), false},
		{"", "", true},
		{"", "a", false},
		{"acpi*:LNXPWRBN:*", "acpi:LNXPWRBN:", true},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"crc32c-intel": "crc32c_intel", "usb:v0525pA4A2d0[1-9]-*": "usb:v0525pA4A2d0[1-9]_*", "dummy": "dummy",
	} {
		if got := Fold(in); got != want {
			t.Errorf("Fold(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzMatch compares with path.Match, which knows the same patterns but for
// '!', '/' and what it calls malformed.
func FuzzMatch(f *testing.F) {
	f.Add("virtio:d00000002v*", "virtio:d00000002v00001AF4")
	f.Add("a[b-d]?e*", "acxefg")
	f.Add(`\[*]`, "[x]")
	f.Add("a[^b-c]", "ad")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		got := Match(pattern, name)
		if strings.ContainsAny(pattern+name, "/!") || strings.Contains(pattern, "[]") || strings.Contains(pattern, "[^]") {
			return
		}
		for i := range len(pattern + name) {
			if (pattern + name)[i] >= 0x80 {
				return // path.Match takes runes, fnmatch in the C locale bytes
			}
		}
		want, err := path.Match(pattern, name)
		if err != nil {
			return
		}
		if got != want {
			t.Errorf("Match(%q, %q) = %v, path.Match says %v", pattern, name, got, want)
		}
	})
}

func TestMatchAsFnmatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"*", "", true}, {"*", "a/b", true},
		{"a*c", "abc", true}, {"a*c", "abcd", false}, {"a*b*c", "aXbYbZc", true}, {"*a*a*a*b", "aaaaaaaaaaaa", false},
		{"?", "a", true}, {"?", "", false}, {"a?c", "a/c", true},
		{"[a-c]", "b", true}, {"[a-c]", "d", false}, {"[!a-c]", "d", true}, {"[^a]", "a", false},
		{"[]]", "]", true}, {"[a-]", "-", true}, {"[a", "[a", true}, {"[0-9A-F]x", "Bx", true},
		{`\*`, "*", true}, {`\*`, "a", false}, {`a\`, `a\`, true}, {`[\]]`, "]", true},
		{"usb:v0BDAp8179d[0-9]*dc*", "usb:v0BDAp8179d0000dc00", true},
	} {
		if got := Match(c.pattern, c.s); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

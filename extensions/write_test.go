package extensions

import (
	"strings"
	"testing"
)

// An extension's digest is what people refer to it by: other bytes for the same
// content are another extension to them.
func TestImageDigestStays(t *testing.T) {
	const want = "sha256:6710aa8a4754916c3776850d18fe285bfd246ce61fd3008b959e3a4588d0847c"
	if h, err := imageOf(t, opened(t), "arm64").Digest(); err != nil || h.String() != want {
		t.Errorf("digest %s, %v; want %s", h, err, want)
	}
}

func TestTagOf(t *testing.T) {
	for _, c := range []struct{ name, version, want string }{
		{"zfs", "2.2.6", "zfs:2.2.6"},
		{"a", "1:2.0~rc1+x", "a:1-2.0-rc1-x"},
		{"a__b.c-d", ".-1", "a__b.c-d:1"},
		{"a..b", "1", ""},
		{"a._b", "1", ""},
		{"A", "1", ""},
		{"", "1", ""},
		{"a", "", ""},
		{"a", "~", ""},
		{strings.Repeat("a", 65), "1", ""},
		{"a", strings.Repeat("1", 129), ""},
	} {
		if got := tagOf(map[string]string{annotationTitle: c.name, annotationVersion: c.version}); got != c.want {
			t.Errorf("%q %q: %q, want %q", c.name, c.version, got, c.want)
		}
	}
}

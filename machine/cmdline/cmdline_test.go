package cmdline

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", nil},
		{" \n", nil},
		{"quiet  console=ttyS0,115200n8\n", []string{"quiet", "console=ttyS0,115200n8"}},
		{`dyndbg="file a.c +p" x`, []string{"dyndbg=file a.c +p", "x"}},
		{`"a b"=c ""`, []string{"a b=c", ""}},
		{`open="a b`, []string{"open=a b"}},
	} {
		if got := Parse(c.line); !slices.Equal(got, Args(c.want)) {
			t.Errorf("Parse(%q) = %q, want %q", c.line, got, c.want)
		}
	}
}

func TestGet(t *testing.T) {
	a := Parse("kiln.slot=A flag kiln.slot=B x.kiln.slot=C kiln.disk=a=b")
	for key, want := range map[string]string{"kiln.slot": "B", "flag": "", "kiln.disk": "a=b"} {
		if got, ok := a.Get(key); !ok || got != want {
			t.Errorf("Get(%q) = %q, %v; want %q", key, got, ok, want)
		}
	}
	if v, ok := a.Get("slot"); ok {
		t.Errorf("Get(slot) = %q", v)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`a "b c"=d e="f`)
	f.Fuzz(func(t *testing.T, line string) {
		if got, want := len(strings.Join(Parse(line), "")), len(line); got > want {
			t.Errorf("%d bytes out of %d", got, want)
		}
	})
}

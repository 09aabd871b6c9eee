//go:build linux

package console

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The kernel refuses messages of more than 1024 bytes.
func TestPriority(t *testing.T) {
	var b strings.Builder
	c := New(Priority{&b, 4}, func() time.Duration { return time.Second })
	c.Note("short")
	if want := "<12>kiln: note text=\"short\" t=1.000\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	for n := 990; n < 1010; n++ {
		b.Reset()
		c.Note(strings.Repeat("é", n/2) + strings.Repeat("x", n%2))
		if len(b.String()) > 1024 || !utf8.ValidString(b.String()) || !strings.HasSuffix(b.String(), "\n") {
			t.Errorf("%d bytes: %q", b.Len(), b.String())
		}
		if cut := strings.HasSuffix(b.String(), "…\n"); cut != (n+len("<12>kiln: note text=\"\" t=1.000\n") > 1024) {
			t.Errorf("text of %d bytes: cut is %v, %d bytes", n, cut, b.Len())
		}
	}
}

//go:build linux

package dashboard

import (
	"testing"
	"testing/fstest"
)

// Nothing is drawn where nobody sees it.
func TestVisible(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }
	for _, c := range []struct {
		active, bind, name string
		want               bool
	}{
		{"tty2", "1", "(S) VGA+", true}, {"tty2", "0", "(S) dummy device", true}, {"tty2", "1", "(S) dummy device", false}, {"tty1", "1", "(S) VGA+", false}, {"tty22", "1", "(S) VGA+", false},
	} {
		sys := fstest.MapFS{activeFile: file(c.active), "class/vtconsole/vtcon0/bind": file(c.bind), "class/vtconsole/vtcon0/name": file(c.name)}
		if got := visible(sys, 2); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if visible(fstest.MapFS{}, 2) {
		t.Error("a kernel without virtual consoles shows one")
	}
}

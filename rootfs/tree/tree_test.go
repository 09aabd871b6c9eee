package tree

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

func file(s string) *Inode { return &Inode{Mode: 0o644, Content: bytes.NewReader([]byte(s))} }

func TestTree(t *testing.T) {
	tr := New()
	if err := tr.MkdirAll("usr/lib", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/lib/b", "usr/lib.d", "usr/lib/a"} {
		if err := tr.Add(name, file(name)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for name := range tr.All() {
		got = append(got, name)
	}
	want := []string{".", "usr", "usr/lib", "usr/lib/a", "usr/lib/b", "usr/lib.d"}
	if !slices.Equal(got, want) {
		t.Errorf("All = %q, want %q", got, want)
	}
	tr.Remove("usr/lib")
	if got := tr.Children("usr"); !slices.Equal(got, []string{"lib.d"}) || tr.Len() != 3 {
		t.Errorf("after Remove: %q, %d paths", got, tr.Len())
	}
}

func TestAddErrors(t *testing.T) {
	tr := New()
	if err := tr.Add("link", &Inode{Mode: fs.ModeSymlink | 0o777, Target: "/etc"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"/etc/passwd": ErrPath, "../x": ErrPath, "a/../b": ErrPath, "": ErrPath, "a//b": ErrPath, "nul\x00": ErrPath,
		strings.Repeat("n", 256): ErrPath, "link/passwd": ErrParent, "none/x": ErrParent, "link": ErrExist,
	} {
		if err := tr.Add(name, file("")); !errors.Is(err, want) {
			t.Errorf("Add(%.20q) = %v, want %v", name, err, want)
		}
	}
	if err := tr.MkdirAll("link/x", 0o755); !errors.Is(err, ErrParent) {
		t.Errorf("MkdirAll through a link = %v", err)
	}
}

func TestDigest(t *testing.T) {
	build := func(change func(*Tree)) [32]byte {
		tr := New()
		shared := file("content")
		for name, ino := range map[string]*Inode{"a": shared, "b": shared, "c": file("content")} {
			if err := tr.Add(name, ino); err != nil {
				t.Fatal(err)
			}
		}
		change(tr)
		sum, err := tr.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	base := build(func(*Tree) {})
	if base != build(func(*Tree) {}) {
		t.Error("the digest depends on the order of Add")
	}
	for what, change := range map[string]func(*Tree){
		"mode":      func(t *Tree) { t.Lookup("a").Mode = 0o600 },
		"time":      func(t *Tree) { t.Lookup("a").ModTime = 1 },
		"owner":     func(t *Tree) { t.Lookup("a").UID = 1 },
		"xattr":     func(t *Tree) { t.Lookup("a").Xattrs = map[string][]byte{"user.x": nil} },
		"content":   func(t *Tree) { t.Lookup("c").Content = bytes.NewReader([]byte("CONTENT")) },
		"hard link": func(t *Tree) { t.Set("b", file("content")) },
		"name":      func(t *Tree) { t.Remove("c"); t.Add("d", file("content")) },
	} {
		if build(change) == base {
			t.Errorf("a changed %s does not change the digest", what)
		}
	}
}

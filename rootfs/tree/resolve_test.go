package tree

import (
	"errors"
	"io/fs"
	"testing"
)

func TestResolve(t *testing.T) {
	tr := New()
	for _, d := range []string{"usr/bin", "usr/lib/x"} {
		if err := tr.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"lib": "usr/lib", "bin": "/usr/bin", "usr/sbin": "bin", "usr/lib/x/up": "../../../../../etc",
		"a": "b", "b": "a", "usr/lib/l.so": "x/../l.so.1", "self": "self/x",
	} {
		if err := tr.Add(name, &Inode{Mode: fs.ModeSymlink | 0o777, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ in, want string }{
		{".", "."}, {"lib", "usr/lib"}, {"lib/l.so", "usr/lib/l.so.1"}, {"/usr/sbin/init", "usr/bin/init"},
		{"bin/../lib/x", "usr/lib/x"}, {"lib/x/up/passwd", "etc/passwd"}, {"no/such", "no/such"},
	} {
		if got, err := tr.Resolve(tt.in); got != tt.want || err != nil {
			t.Errorf("Resolve(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"a", "self", "self/y"} {
		if _, err := tr.Resolve(in); !errors.Is(err, ErrLoop) {
			t.Errorf("Resolve(%q): %v, want %v", in, err, ErrLoop)
		}
	}
}

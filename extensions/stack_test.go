package extensions

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

// named opens an extension with the given name, lines of the manifest and files;
// a file that ends in a slash is a directory.
func named(t testing.TB, name, lines string, files ...string) *Extension {
	t.Helper()
	entries := []entry{
		{name: "manifest.yaml", kind: tar.TypeReg, content: fmt.Sprintf("version: v1alpha1\nmetadata: {name: %s, version: \"1\"}\n%s", name, lines)},
		{name: "rootfs", kind: tar.TypeDir, mode: 0o755},
	}
	for _, f := range files {
		e := entry{name: "rootfs/" + f, kind: tar.TypeReg, content: f}
		if strings.HasSuffix(f, "/") {
			e.kind, e.mode = tar.TypeDir, 0o755
		}
		entries = append(entries, e)
	}
	e, err := Open(t.Context(), write(t, archiveOf(t, entries...)), "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestStack(t *testing.T) {
	target := Target{Release: "6.12.0", Arch: "amd64", Files: map[string]fs.FileMode{
		"usr": fs.ModeDir, "usr/bin": fs.ModeDir, "usr/bin/init": 0o755, "usr/share": fs.ModeDir, "usr/share/zoneinfo": fs.ModeDir,
		"usr/share/zoneinfo/UTC": 0o644, "usr/sbin": fs.ModeSymlink,
	}}
	l := func(all ...*Extension) []*Extension { return all }
	a := func(lines string, files ...string) *Extension { return named(t, "a", lines, files...) }
	b := func(lines string, files ...string) *Extension { return named(t, "b", lines, files...) }
	for what, tt := range map[string]struct {
		all  []*Extension
		want []string // nil if all is well
	}{
		"nothing shared":          {l(a("", "usr/bin/a"), b("", "usr/bin/b", "usr/share/b/")), nil},
		"directory shared":        {l(a("", "usr/share/x/a"), b("", "usr/share/x/b")), nil},
		"base":                    {l(a("", "usr/bin/init")), []string{"a@sha256:", "usr/bin/init is in the base already; remove it from the extension, or name it in replaces"}},
		"replaces base":           {l(a("replaces: [usr/bin/init]", "usr/bin/init")), nil},
		"replaces directory":      {l(a("replaces: [usr/share/zoneinfo]", "usr/share/zoneinfo/UTC")), nil},
		"not a component":         {l(a("replaces: [usr/bin/in]", "usr/bin/init")), []string{"usr/bin/init is in the base already", "replaces: usr/bin/in replaces nothing"}},
		"link of the base":        {l(a("", "usr/sbin/x")), []string{"usr/sbin is in the base already; the base has a symbolic link there"}},
		"file over directory":     {l(a("", "usr/share/zoneinfo")), []string{"usr/share/zoneinfo is in the base already"}},
		"each other":              {l(a("", "usr/bin/x"), b("", "usr/bin/x")), []string{"a@sha256:", "b@sha256:", "both have usr/bin/x; remove one, or name it in replaces"}},
		"directory over file":     {l(a("", "opt/x"), b("", "opt/x/y")), []string{"both have opt/x"}},
		"upper replaces lower":    {l(a("", "usr/bin/x"), b("replaces: [usr/bin/x]", "usr/bin/x")), nil},
		"lower would replace":     {l(a("replaces: [usr/bin/x]", "usr/bin/x"), b("", "usr/bin/x")), []string{"usr/bin/x; a@sha256:", " may replace it, but is below: put it after b@sha256:", "a@sha256:", "replaces nothing"}},
		"replaced, then again":    {l(a("", "usr/bin/x"), b("replaces: [usr/bin/x]", "usr/bin/x"), named(t, "c", "", "usr/bin/x")), []string{"c@sha256:", "both have usr/bin/x; b@sha256:"}},
		"replaces nothing":        {l(a("replaces: [usr/bin/y]", "usr/bin/x")), []string{"a@sha256:", "manifest.yaml: replaces: usr/bin/y replaces nothing"}},
		"replaces, but not there": {l(a("replaces: [usr/bin/init]", "usr/bin/x")), []string{"replaces: usr/bin/init replaces nothing"}},
		"requires":                {l(a("requires: [b]")), []string{"a@sha256:", "needs the extension b, which is not there; add it with --extension"}},
		"requirement met":         {l(a("requires: [b]"), b("")), nil},
		"conflicts":               {l(a("conflicts: [b]"), b("")), []string{"a@sha256:", "does not work together with b@sha256:", "remove one"}},
		"conflicts, other order":  {l(b(""), a("conflicts: [b]")), []string{"a@sha256:", "does not work together with b@sha256:"}},
		"same name":               {l(a(""), a("")), []string{"have the same name; remove one"}},
		"kernel release":          {l(a("kernel: {release: 6.1.0}")), []string{"a@sha256:", "kernel.release is 6.1.0, the base has 6.12.0; rebuild"}},
		"kernel release is right": {l(a("kernel: {release: 6.12.0, arch: amd64}")), nil},
	} {
		err := Check(target, tt.all)
		if tt.want == nil && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, want := range tt.want {
			if !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s:\n got %v\nwant %s", what, err, want)
			}
		}
	}
	other := target
	other.Arch = "arm64"
	if err := Check(other, l(a("kernel: {arch: amd64}"))); !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), "kernel.arch is amd64, the base is for arm64") {
		t.Error(err)
	}
	if err := Check(Target{}, l(a("kernel: {release: 6.1.0}"), b("kernel: {release: 6.12.0}"))); !errors.Is(err, ErrIncompatible) ||
		!strings.Contains(err.Error(), "is for kernel 6.1.0, b@sha256:") || !strings.Contains(err.Error(), "for 6.12.0; rebuild one") {
		t.Error(err)
	}
}

// TestOrder: each of twelve extensions replaces a file of the one before, which
// works in one order only.
func TestOrder(t *testing.T) {
	var all []*Extension
	for i := range 12 {
		lines := "replaces: [usr/bin/x]"
		if i == 0 {
			lines = ""
		}
		all = append(all, named(t, fmt.Sprintf("e%d", i), lines, "usr/bin/x"))
	}
	r, err := NewReport(t.Context(), Target{}, all)
	if err != nil || len(r.Problems) > 0 {
		t.Fatalf("%v, %v", r.Problems, err)
	}
	for i, layer := range r.Layers {
		if layer.Manifest.Metadata.Name != fmt.Sprintf("e%d", i) || i > 0 && (len(layer.Replaces) != 1 || layer.Replaces[0].Of != fmt.Sprintf("e%d", i-1)) {
			t.Errorf("layer %d is %s and replaces %v", i, layer.Manifest.Metadata.Name, layer.Replaces)
		}
	}
	all[3], all[0] = all[0], all[3]
	if err := Check(Target{}, all); !errors.Is(err, ErrIncompatible) {
		t.Errorf("another order: %v", err)
	}
}

// TestModuleIndexIsLeftOut: the image has its own.
func TestModuleIndexIsLeftOut(t *testing.T) {
	e := named(t, "a", "", "usr/lib/modules/6.12.0/modules.dep", "usr/lib/modules/6.12.0/modules.alias.bin", "usr/lib/modules/6.12.0/modules.extra", "usr/lib/modules/6.12.0/extra/modules.dep")
	for name, want := range map[string]bool{
		"usr/lib/modules/6.12.0/modules.dep": false, "usr/lib/modules/6.12.0/modules.alias.bin": false,
		"usr/lib/modules/6.12.0/modules.extra": true, "usr/lib/modules/6.12.0/extra/modules.dep": true,
	} {
		if got := e.RootFS.Lookup(name) != nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	e := opened(t, entry{name: "rootfs/usr/lib/firmware/x/y.bin", kind: tar.TypeReg, content: "12345"},
		entry{name: "rootfs/usr/bin/l", kind: tar.TypeSymlink, content: "x"}, entry{name: "rootfs/usr/bin/h", kind: tar.TypeLink, content: "rootfs/usr/share/demo"})
	e.RootFS.Lookup("usr/share/demo").Xattrs = map[string][]byte{"security.capability": {1}}
	r, err := NewReport(t.Context(), Target{Files: map[string]fs.FileMode{"usr/share/demo": 0o644}}, []*Extension{e})
	if err != nil {
		t.Fatal(err)
	}
	l := r.Layers[0]
	if l.Files != 2 || l.Bytes != 10 || l.Directories != 6 || l.Symlinks != 1 || l.HardLinks != 1 {
		t.Errorf("%d files, %d bytes, %d directories, %d links, %d hard links", l.Files, l.Bytes, l.Directories, l.Symlinks, l.HardLinks)
	}
	if got := fmt.Sprint(l.Parts, l.Firmware, l.Capabilities); got != "[{usr/bin 1 5} {usr/lib/firmware 1 5}] [x/y.bin] [usr/bin/h usr/share/demo]" {
		t.Error(got)
	}
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "usr/share/demo is in the base already") {
		t.Errorf("problems %q", r.Problems)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"demo", "1.0.0", e.Digest, "loads", "foo a=1 b=2", "2 files, 10 bytes, 6 directories", "x/y.bin", "problems:", "usr/share/demo is in the base already"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"name":"demo"`, `"parts":[{"path":"usr/bin","files":1,"bytes":5}`, `"problems":["incompatible extension: demo@sha256:`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}

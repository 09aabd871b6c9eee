package extensions

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const manifest = `version: v1alpha1
metadata:
  name: demo
  version: 1.0.0
kernel:
  modules:
    - name: foo
      parameters: a=1 b=2
`

// entry is one member of a tar.
type entry struct {
	name    string
	kind    byte
	content string // or the link's target
	mode    int64
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode}
		if hdr.Mode == 0 {
			hdr.Mode = 0o644
		}
		switch e.kind {
		case tar.TypeReg:
			hdr.Size = int64(len(e.content))
		case tar.TypeLink, tar.TypeSymlink:
			hdr.Linkname = e.content
		}
		if err := tw.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := io.WriteString(tw, e.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// valid are the members of an extension with one file.
func valid(more ...entry) []entry {
	return append([]entry{
		{name: "manifest.yaml", kind: tar.TypeReg, content: manifest},
		{name: "./rootfs/", kind: tar.TypeDir, mode: 0o755},
		{name: "./rootfs/usr/share/demo", kind: tar.TypeReg, content: "hello"},
	}, more...)
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeTree stores a tree with manifest.yaml and rootfs/ as an OCI image layout.
func writeTree(t *testing.T, path string, whole *tree.Tree) error {
	t.Helper()
	e, err := FromTree(path, whole)
	if err != nil {
		return err
	}
	img, err := e.Image(t.Context(), "amd64", 0)
	if err != nil {
		return err
	}
	return ocilayout.Write(path, img)
}

func TestOpenForms(t *testing.T) {
	data := archiveOf(t, valid()...)
	plain := write(t, data)

	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(data)
	z.Close()

	dir := filepath.Join(t.TempDir(), "ext")
	if err := os.MkdirAll(filepath.Join(dir, "rootfs/usr/share"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"manifest.yaml": manifest, "rootfs/usr/share/demo": "hello"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	whole := tree.New()
	if err := untar(bytes.NewReader(data), nil, whole, false, Limits{}); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "oci")
	for range 2 { // the second time it replaces the first
		if err := writeTree(t, layout, whole); err != nil {
			t.Fatal(err)
		}
	}

	for form, ref := range map[string]string{"tar": plain, "tar.gz": write(t, zipped.Bytes()), "directory": dir, "OCI layout": layout} {
		e, err := Open(t.Context(), ref, "amd64", Limits{})
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		ino := e.RootFS.Lookup("usr/share/demo")
		if e.Manifest.Metadata.Name != "demo" || e.Manifest.Kernel.Modules[0].Parameters != "a=1 b=2" || ino == nil {
			t.Errorf("%s: manifest %+v, file %v", form, e.Manifest, ino)
			continue
		}
		got, err := readAll(ino)
		if err != nil || string(got) != "hello" {
			t.Errorf("%s: content %q, %v", form, got, err)
		}
		if !strings.HasPrefix(e.String(), "demo@sha256:") {
			t.Errorf("%s: String = %s", form, e)
		}
	}
	if _, err := Open(t.Context(), layout, "arm64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/amd64, want linux/arm64") {
		t.Errorf("wrong architecture: %v", err)
	}
}

func TestOpenDamagedLayout(t *testing.T) {
	whole := tree.New()
	if err := untar(bytes.NewReader(archiveOf(t, valid()...)), nil, whole, false, Limits{}); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "oci")
	if err := writeTree(t, layout, whole); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(data, []byte("hello")); i > 0 {
			data[i] ^= 1
			if err := os.WriteFile(b, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Open(t.Context(), layout, "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "content is sha256:") {
		t.Errorf("got %v", err)
	}
}

func TestHostileTar(t *testing.T) {
	link := func(name, target string) entry { return entry{name: name, kind: tar.TypeSymlink, content: target} }
	file := func(name string) entry { return entry{name: name, kind: tar.TypeReg, content: "x"} }
	for what, tt := range map[string]struct {
		entries []entry
		want    string
	}{
		"absolute":         {valid(file("/etc/passwd")), "/etc/passwd: absolute path"},
		"dot dot":          {valid(file("rootfs/../../etc/passwd")), `rootfs/../../etc/passwd: ".." in a path`},
		"through link":     {valid(link("rootfs/a", "/etc"), file("rootfs/a/passwd")), "rootfs/a/passwd: rootfs/a is a symbolic link to /etc, want a directory"},
		"escaping link":    {valid(link("rootfs/usr/a", "../../../../etc/passwd")), "rootfs/usr/a: symbolic link to ../../../../etc/passwd leads out of the root"},
		"link at the root": {valid(link("rootfs/a", "../manifest.yaml")), "rootfs/a: symbolic link to ../manifest.yaml leads out of the root"},
		"hard link out":    {valid(entry{name: "rootfs/a", kind: tar.TypeLink, content: "../../etc/passwd"}), `".." in a path`},
		"hard link ahead":  {valid(entry{name: "rootfs/a", kind: tar.TypeLink, content: "rootfs/b"}, file("rootfs/b")), "hard link to rootfs/b, which is no file before it"},
		"twice":            {valid(file("rootfs/a"), file("rootfs/a")), "rootfs/a: is there twice"},
		"file as parent":   {valid(file("rootfs/a"), file("rootfs/a/b")), "rootfs/a/b: rootfs/a is a file, want a directory"},
		"unknown type":     {valid(entry{name: "rootfs/a", kind: 'Z'}), "rootfs/a: entry of unknown type"},
		"stray file":       {valid(file("README")), "unexpected README at the top"},
	} {
		_, err := Open(t.Context(), write(t, archiveOf(t, tt.entries...)), "amd64", Limits{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !(errors.Is(err, ErrHostile) || errors.Is(err, ErrFormat)) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

func TestHostileDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "rootfs/usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../etc/passwd", filepath.Join(dir, "rootfs/usr/x")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir, "amd64", Limits{})
	if !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "rootfs/usr/x: symbolic link to ../../../../etc/passwd leads out of the root") {
		t.Errorf("got %v", err)
	}
}

func TestLimits(t *testing.T) {
	ref := write(t, archiveOf(t, valid(entry{name: "rootfs/a", kind: tar.TypeReg, content: strings.Repeat("x", 1000)})...))
	if _, err := Open(t.Context(), ref, "amd64", Limits{Bytes: 1000}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "contents exceed 1000 bytes") {
		t.Errorf("bytes: %v", err)
	}
	if _, err := Open(t.Context(), ref, "amd64", Limits{Entries: 3}); !errors.Is(err, ErrHostile) || !strings.Contains(err.Error(), "more than 3 entries") {
		t.Errorf("entries: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(t.Context(), "none", "amd64", Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(t.Context(), t.TempDir(), "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "no manifest.yaml in the directory, nor is it an OCI image layout") {
		t.Errorf("empty directory: %v", err)
	}
	if _, err := Open(t.Context(), write(t, []byte("no tar file, just some text that is long enough")), "amd64", Limits{}); !errors.Is(err, ErrFormat) {
		t.Errorf("no tar: %v", err)
	}
	whole := archiveOf(t, valid()...)
	if _, err := Open(t.Context(), write(t, whole[:1600]), "amd64", Limits{}); !errors.Is(err, ErrFormat) {
		t.Errorf("truncated tar: %v", err)
	}
	for what, tt := range map[string]struct{ in, want string }{
		"unknown key": {"version: v1alpha1\nmetadata: {nmae: x}\n", `manifest.yaml:2:12: unknown key "nmae" in metadata; did you mean "name"?`},
		"version":     {"version: v2\nmetadata: {name: x, version: \"1\"}\n", `version "v2", want "v1alpha1"`},
		"name":        {"version: v1alpha1\nmetadata: {name: ../x, version: \"1\"}\n", `metadata.name "../x", want`},
		"module":      {"version: v1alpha1\nmetadata: {name: x, version: \"1\"}\nkernel: {modules: [{name: a/b.ko}]}\n", `kernel.modules[0].name "a/b.ko", want`},
	} {
		_, err := Open(t.Context(), write(t, archiveOf(t, entry{name: "manifest.yaml", kind: tar.TypeReg, content: tt.in}, entry{name: "rootfs", kind: tar.TypeDir})), "amd64", Limits{})
		var yaml *strictyaml.Error
		if err == nil || !strings.Contains(err.Error(), tt.want) || !(errors.Is(err, ErrManifest) || errors.As(err, &yaml)) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

func TestWhiteouts(t *testing.T) {
	tr := tree.New()
	layers := [][]entry{
		{{name: "rootfs/a", kind: tar.TypeReg, content: "1"}, {name: "rootfs/d/x", kind: tar.TypeReg, content: "1"}, {name: "rootfs/d/y", kind: tar.TypeReg, content: "1"}},
		{{name: "rootfs/.wh.a", kind: tar.TypeReg}, {name: "rootfs/d/.wh..wh..opq", kind: tar.TypeReg}, {name: "rootfs/d/z", kind: tar.TypeReg, content: "2"}},
	}
	for _, l := range layers {
		if err := untar(bytes.NewReader(archiveOf(t, l...)), nil, tr, true, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"rootfs/a": false, "rootfs/d/x": false, "rootfs/d/y": false, "rootfs/d/z": true} {
		if got := tr.Lookup(name) != nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	open := func(name string, more ...entry) *Extension {
		t.Helper()
		m := strings.Replace(manifest, "demo", name, 1)
		m = m[:strings.Index(m, "kernel:")]
		entries := append([]entry{{name: "manifest.yaml", kind: tar.TypeReg, content: m}, {name: "rootfs", kind: tar.TypeDir}}, more...)
		e, err := Open(t.Context(), write(t, archiveOf(t, entries...)), "amd64", Limits{Paths: []string{"."}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	file := func(name string) entry { return entry{name: name, kind: tar.TypeReg, content: "x"} }
	target := Target{Release: "6.12.0", Arch: "amd64", Files: map[string]fs.FileMode{
		"usr": fs.ModeDir, "usr/bin": fs.ModeDir, "usr/bin/init": 0o755, "lib": fs.ModeSymlink,
	}}
	for what, tt := range map[string]struct {
		all  []*Extension
		want []string
	}{
		"fine":       {[]*Extension{open("a", file("rootfs/usr/bin/a")), open("b", file("rootfs/usr/bin/b"))}, nil},
		"base":       {[]*Extension{open("a", file("rootfs/usr/bin/init"))}, []string{"a@sha256:", "usr/bin/init is in the base already"}},
		"usr-merge":  {[]*Extension{open("a", file("rootfs/lib/firmware/x"))}, []string{"lib is in the base already; the base has a symbolic link there; use usr/lib"}},
		"each other": {[]*Extension{open("a", file("rootfs/usr/x")), open("b", file("rootfs/usr/x"))}, []string{"a@sha256:", "b@sha256:", "both have usr/x; remove one"}},
		"same name":  {[]*Extension{open("a"), open("a")}, []string{"have the same name"}},
	} {
		err := Check(target, tt.all)
		if tt.want == nil {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		for _, want := range tt.want {
			if !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s:\n got %v\nwant %s", what, err, want)
			}
		}
	}
}

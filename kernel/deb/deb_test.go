package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/deb/debtest"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const testControl = "Package: demo\nVersion: 1:2.0-3\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n y\n .\n z\n"

var testFiles = []debtest.File{
	{Name: "./"},
	{Name: "./usr/"},
	{Name: "./usr/bin/", Mode: 0o711},
	{Name: "./usr/bin/tool", Data: "#!\n", Mode: 0o4755},
	{Name: "./usr/bin/again", Link: "./usr/bin/tool"},
	{Name: "./usr/bin/sym", Symlink: "../../etc/x"},
	{Name: "./big", Data: strings.Repeat("0123456789abcdef", 100_000)},
	{Name: "./empty"},
}

// listing describes a tree in lines.
func listing(t *testing.T, tr *tree.Tree) []string {
	t.Helper()
	var lines []string
	first := map[*tree.Inode]string{}
	for name, ino := range tr.All() {
		line := fmt.Sprintf("%s %v %d:%d %d", name, ino.Mode, ino.UID, ino.GID, ino.Size())
		if ino.Target != "" {
			line += " -> " + ino.Target
		}
		if f := first[ino]; f != "" {
			line += " = " + f
		}
		first[ino] = name
		lines = append(lines, line)
	}
	return lines
}

func content(t *testing.T, tr *tree.Tree, name string) string {
	t.Helper()
	ino := tr.Lookup(name)
	if ino == nil || ino.Content == nil {
		t.Fatalf("%s: no file", name)
	}
	b, err := io.ReadAll(extent.Reader(ino.Content))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func read(data []byte) (*Package, error) {
	return Read("p.deb", bytes.NewReader(data), int64(len(data)))
}

func TestTree(t *testing.T) {
	want := []string{
		". drwxr-xr-x 0:0 0",
		"big -rw-r--r-- 0:0 1600000",
		"empty -rw-r--r-- 0:0 0",
		"usr drwxr-xr-x 0:0 0",
		"usr/bin drwx--x--x 0:0 0",
		"usr/bin/again urwxr-xr-x 0:0 3",
		"usr/bin/sym Lrwxrwxrwx 0:0 0 -> ../../etc/x",
		"usr/bin/tool urwxr-xr-x 0:0 3 = usr/bin/again",
	}
	for _, compression := range []string{"", "gz", "zst"} {
		p, err := read(debtest.Build(t, testControl, compression, testFiles...))
		if err != nil {
			t.Fatal(err)
		}
		if p.Control.Package != "demo" || p.Version != "1:2.0-3" || p.Architecture != "amd64" || p.Name() != "demo_2.0-3_amd64" {
			t.Errorf("%q: got %+v, name %s", compression, p.Control, p.Name())
		}
		if got := p.Field("dEscription"); got != "x\ny\n.\nz" {
			t.Errorf("description %q", got)
		}
		tr, err := p.Tree(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := listing(t, tr); !slices.Equal(got, want) {
			t.Errorf("%q: got\n%s\nwant\n%s", compression, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if content(t, tr, "big") != testFiles[6].Data || content(t, tr, "usr/bin/again") != "#!\n" {
			t.Error("contents differ")
		}
		if got := tr.Lookup("usr/bin/tool").ModTime; got != 1700000000 {
			t.Errorf("modification time %d", got)
		}
	}
}

// A hard link may be kept without the name that carries the content.
func TestTreeKeep(t *testing.T) {
	p, err := read(debtest.Build(t, testControl, "gz", testFiles...))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := p.Tree(t.Context(), func(name string) bool { return name == "usr/bin/again" })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{". drwxr-xr-x 0:0 0", "usr drwxr-xr-x 0:0 0", "usr/bin drwxr-xr-x 0:0 0", "usr/bin/again urwxr-xr-x 0:0 3"}
	if got := listing(t, tr); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReadErrors(t *testing.T) {
	whole := debtest.Build(t, testControl, "gz", testFiles...)
	good := debtest.Member{Name: "debian-binary", Data: []byte("2.0\n")}
	noControl := debtest.Member{Name: "control.tar", Data: debtest.Tar(t, debtest.File{Name: "./postinst"})}
	for _, tt := range []struct {
		name string
		data []byte
		want string
		is   error
	}{
		{"empty", nil, `p.deb: not a Debian package: begins with "", want "!<arch>\n"`, ErrFormat},
		{"zip", []byte("PK\x03\x04 and more"), `p.deb: not a Debian package: begins with "PK\x03\x04 and", want "!<arch>\n"`, ErrFormat},
		{"cut in data", whole[:len(whole)-100], fmt.Sprintf("p.deb: data.tar.gz: truncated: wants %d bytes at byte %d, found %d",
			dataSize(t, whole), int64(len(whole))-dataSize(t, whole)-pad(t, whole), dataSize(t, whole)+pad(t, whole)-100), ErrTruncated},
		{"cut in header", whole[:90], `p.deb: truncated: member header at byte 72 wants 60 bytes, found 18`, ErrTruncated},
		{"cut after version", whole[:72], `p.deb: truncated: the archive ends before control.tar`, ErrTruncated},
		{"garbage header", append(bytes.Clone(whole[:72]), bytes.Repeat([]byte("x"), 60)...), `p.deb: not a Debian package: no member header at byte 72`, ErrFormat},
		{"order", debtest.Archive(good, debtest.Member{Name: "data.tar"}), `p.deb: not a Debian package: member 2 is "data.tar", want "control.tar"`, ErrFormat},
		{"version", debtest.Archive(debtest.Member{Name: "debian-binary", Data: []byte("3.0\n")}, noControl, debtest.Member{Name: "data.tar"}),
			`format version "3.0\n", want "2.0\n"`, ErrFormat},
		{"no control", debtest.Archive(good, noControl, debtest.Member{Name: "data.tar"}), `p.deb: control.tar: not a Debian package: no control file`, ErrFormat},
		{"lzma", debtest.Archive(good, debtest.Member{Name: "control.tar.lzma"}, debtest.Member{Name: "data.tar"}),
			`p.deb: control.tar.lzma: not a Debian package: compressed as ".lzma", want .gz, .xz or .zst`, ErrFormat},
		{"field", debtest.Build(t, "Package: a\nArchitecture: all\n", ""), `control field Version is "", want one word`, ErrFormat},
		{"twice", debtest.Build(t, "Package: a\npackage: b\n", ""), `control line 2: field package again`, ErrFormat},
		{"paragraphs", debtest.Build(t, testControl+"\nPackage: b\n", ""), `a second paragraph`, ErrFormat},
		{"no colon", debtest.Build(t, "Package\n", ""), `control line 1: "Package", want "Field: value"`, ErrFormat},
		{"continuation", debtest.Build(t, " x\n", ""), `control line 1: continues no field`, ErrFormat},
	} {
		_, err := read(tt.data)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.is) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
}

func dataSize(t *testing.T, deb []byte) int64 {
	members, err := readAr(bytes.NewReader(deb), int64(len(deb)))
	if err != nil {
		t.Fatal(err)
	}
	return members[2].size
}

func pad(t *testing.T, deb []byte) int64 { return dataSize(t, deb) & 1 }

func TestTreeErrors(t *testing.T) {
	kind := func(flag byte) func(*tar.Header) { return func(h *tar.Header) { h.Typeflag = flag } }
	for _, tt := range []struct {
		files []debtest.File
		want  string
	}{
		{[]debtest.File{{Name: "/etc/passwd"}}, `p.deb: data.tar.zst: "/etc/passwd": not a Debian package: a name that is absolute, leaves the root or is too long`},
		{[]debtest.File{{Name: "./a/../../b"}}, `"./a/../../b": not a Debian package: a name that is absolute`},
		{[]debtest.File{{Name: "a/" + strings.Repeat("n", 256)}}, `or is too long`},
		{[]debtest.File{{Name: "a", Symlink: "/etc"}, {Name: "a/b"}}, `a: parent is not a directory`},
		{[]debtest.File{{Name: "a"}, {Name: "./a"}}, `a: exists already`},
		{[]debtest.File{{Name: "a", Link: "../b"}}, `a: hard link: "../b": not a Debian package`},
		{[]debtest.File{{Name: "a", Link: "b"}}, `a: not a Debian package: a hard link to b, which is no file before it`},
		{[]debtest.File{{Name: "dev/null", Header: kind(tar.TypeChar)}}, `dev/null: not a Debian package: a file of type '3', want a regular file, directory or link`},
		{[]debtest.File{{Name: "pipe", Header: kind(tar.TypeFifo)}}, `pipe: not a Debian package: a file of type '6'`},
		{[]debtest.File{{Name: "a", Data: strings.Repeat("x", 5000)}, {Name: "b", Data: strings.Repeat("x", 5000)}}, `b: larger than allowed: unpacks to more than 9000 bytes`},
		{[]debtest.File{{Name: "d/"}, {Name: "d/a"}, {Name: "d/b"}, {Name: "d/c"}, {Name: "d/e"}, {Name: "d/f"}, {Name: "d/g"}, {Name: "d/h"},
			{Name: "d/i"}, {Name: "d/j"}, {Name: "d/k"}, {Name: "d/l"}, {Name: "d/m"}, {Name: "d/n"}, {Name: "d/o"}, {Name: "d/p"}, {Name: "d/q"}}, `larger than allowed: unpacks to more than 9000 bytes`},
	} {
		p, err := read(debtest.Build(t, testControl, "zst", tt.files...))
		if err != nil {
			t.Fatal(err)
		}
		p.MaxBytes = 9000
		if _, err := p.Tree(t.Context(), nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v\nwant %s", err, tt.want)
		}
	}
}

// A compressed stream that stops early is an error that says so, wherever it
// stops.
func TestTreeTruncatedStream(t *testing.T) {
	xz, err := os.ReadFile("testdata/hello-xz.deb")
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range [][]byte{xz, debtest.Build(t, testControl, "gz", testFiles...), debtest.Build(t, testControl, "zst", testFiles...)} {
		members, err := readAr(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		data := whole[members[2].offset:][:members[2].size]
		control := debtest.Member{Name: members[1].name, Data: whole[members[1].offset:][:members[1].size]}
		for _, cut := range []int{1, 4, 9, len(data) / 2, len(data) - 20} {
			p, err := read(debtest.Archive(debtest.Member{Name: "debian-binary", Data: []byte("2.0\n")}, control,
				debtest.Member{Name: members[2].name, Data: data[:len(data)-cut]}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Tree(t.Context(), nil)
			if !errors.Is(err, ErrTruncated) || !strings.HasPrefix(err.Error(), "p.deb: "+members[2].name+": ") || !strings.Contains(err.Error(), "truncated after ") {
				t.Errorf("%s without its last %d bytes: %v", members[2].name, cut, err)
			}
		}
	}
}

func TestTreeCancelled(t *testing.T) {
	p, err := read(debtest.Build(t, testControl, "gz", testFiles...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Tree(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestOpenXZ(t *testing.T) {
	p, err := Open("testdata/hello-xz.deb")
	if err != nil {
		t.Fatal(err)
	}
	tr, err := p.Tree(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		". drwxr-xr-x 0:0 0", "usr drwxr-xr-x 0:0 0", "usr/share drwxr-xr-x 0:0 0", "usr/share/hello drwxr-xr-x 0:0 0",
		"usr/share/hello/a -rw-r--r-- 0:0 3", "usr/share/hello/b -rw-r--r-- 0:0 3 = usr/share/hello/a",
		"usr/share/hello/c Lrwxrwxrwx 0:0 0 -> a",
	}
	if got := listing(t, tr); p.Name() != "hello_2.0-3_all" || !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", p.Name(), got, want)
	}
	if _, err := Open("testdata"); err == nil || !strings.Contains(err.Error(), "testdata: not a regular file") {
		t.Errorf("directory: %v", err)
	}
}

// What dpkg-deb builds is read, with each compression it knows.
func TestDpkgDebBuilds(t *testing.T) {
	dpkg := oracle.Tool(t, "dpkg-deb")
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	for name, data := range map[string]string{"DEBIAN/control": testControl, "usr/share/x/data": strings.Repeat("kiln ", 400_000)} {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, z := range []string{"none", "gzip", "xz", "zstd"} {
		deb := filepath.Join(dir, z+".deb")
		if out, err := exec.Command(dpkg, "--root-owner-group", "-Z"+z, "-b", src, deb).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		p, err := Open(deb)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := p.Tree(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, tr, "usr/share/x/data"); p.Version != "1:2.0-3" || got != strings.Repeat("kiln ", 400_000) {
			t.Errorf("%s: %d bytes, version %s", z, len(got), p.Version)
		}
	}
}

// What debtest writes is a package to dpkg-deb as well.
func TestDpkgDebReads(t *testing.T) {
	dpkg := oracle.Tool(t, "dpkg-deb")
	deb := debtest.Write(t, t.TempDir(), "demo", "1.0", "arm64", testFiles...)
	out, err := exec.Command(dpkg, "-f", deb, "Package", "Architecture", "Depends").CombinedOutput()
	if want := "Package: demo\nArchitecture: arm64\nDepends: libc6 (>= 2.36), debconf\n"; err != nil || string(out) != want {
		t.Errorf("dpkg-deb -f: %v, %q, want %q", err, out, want)
	}
	out, err = exec.Command(dpkg, "-c", deb).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "./usr/bin/again link to ./usr/bin/tool\n") {
		t.Errorf("dpkg-deb -c: %v\n%s", err, out)
	}
}

// Real packages: the same names, types, modes, sizes and links as dpkg-deb and
// tar see.
func TestDistributionPackages(t *testing.T) {
	dir := os.Getenv("KILN_TEST_DEBS")
	if dir == "" {
		t.Skip("SKIPPED: KILN_TEST_DEBS names no directory of packages")
	}
	dpkg := oracle.Tool(t, "dpkg-deb")
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) == 0 {
		t.Fatalf("no packages in %s", dir)
	}
	for _, path := range debs {
		if fi, err := os.Stat(path); err != nil || fi.Size() > 50<<20 {
			continue // keeps the test short
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			p, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			tr, err := p.Tree(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(dpkg, "--fsys-tarfile", path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for r := tar.NewReader(out); ; {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				name := filepath.Clean(h.Name)
				ino := tr.Lookup(name)
				if ino == nil {
					t.Fatalf("%s is missing", name)
				}
				seen[name] = true
				if h.Typeflag == tar.TypeLink {
					continue
				}
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if ino.Mode != h.FileInfo().Mode() || ino.Target != h.Linkname || ino.ModTime != h.ModTime.Unix() || ino.Size() != int64(len(b)) ||
					ino.Content != nil && content(t, tr, name) != string(b) {
					t.Errorf("%s differs", name)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			for name := range tr.All() {
				if !seen[name] {
					t.Errorf("%s is not in the package", name)
				}
			}
		})
	}
}

func TestParseControl(t *testing.T) {
	c, err := ParseControl([]byte("# note\n\nPackage: a\nVersion:1\nArchitecture:\tall \nX:\n 1\n\t2\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"package": "a", "version": "1", "architecture": "all", "x": "\n1\n2"}
	if !maps.Equal(c.fields, want) {
		t.Errorf("got %q, want %q", c.fields, want)
	}
}

func FuzzRead(f *testing.F) {
	xz, err := os.ReadFile("testdata/hello-xz.deb")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(xz)
	for _, compression := range []string{"", "gz", "zst"} {
		f.Add(debtest.Build(f, testControl, compression, testFiles[:6]...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := read(data)
		if err != nil {
			return
		}
		p.MaxBytes = 1 << 20
		tr, err := p.Tree(t.Context(), func(name string) bool { return !strings.HasSuffix(name, "/a") })
		if err != nil {
			return
		}
		for name, ino := range tr.All() {
			if !tree.Valid(name) || ino.Mode&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				t.Errorf("%q has mode %v", name, ino.Mode)
			}
		}
	})
}

// FuzzTar exercises the unpacking without a compressor and an archive around
// it that stop most mutations.
func FuzzTar(f *testing.F) {
	f.Add(debtest.Tar(f, testFiles[:6]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &Package{MaxBytes: 1 << 20, name: "p.deb", r: bytes.NewReader(data), data: member{name: "data.tar", size: int64(len(data))}}
		tr, err := p.Tree(t.Context(), nil)
		if err != nil {
			return
		}
		for name := range tr.All() {
			if !tree.Valid(name) {
				t.Errorf("name %q", name)
			}
		}
	})
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(testControl))
	f.Add([]byte("Package: a\n b\n\n#\nX:"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := ParseControl(data); err == nil && (c.Package == "" || c.Version == "" || c.Architecture == "") {
			t.Errorf("%q: %+v", data, c)
		}
	})
}

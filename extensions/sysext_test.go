package extensions

import (
	"archive/tar"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

const release = `# who this is
ID=_any
ARCHITECTURE=x86-64
SYSEXT_VERSION_ID="1.2"
SYSEXT_PRETTY_NAME='The "demo" extension'
`

func sysext(t testing.TB, text string, more ...entry) string {
	t.Helper()
	return write(t, archiveOf(t, append([]entry{
		{name: "usr/lib/extension-release.d/extension-release.Demo", kind: tar.TypeReg, content: text},
		{name: "usr/share/demo", kind: tar.TypeReg, content: "hello"},
	}, more...)...))
}

func TestSysext(t *testing.T) {
	dir := t.TempDir()
	if text, err := exec.Command(oracle.Tool(t, "tar"), "-C", dir, "-xf", sysext(t, release)).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	raw := filepath.Join(t.TempDir(), "demo.raw")
	if text, err := exec.Command(oracle.Tool(t, "mksquashfs"), dir, raw, "-comp", "zstd", "-all-root", "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, text)
	}
	for form, ref := range map[string]string{"tar": sysext(t, release), "directory": dir, "raw image": raw} {
		e, err := Open(t.Context(), ref, "amd64", Limits{})
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		m := e.Manifest
		if m.Metadata.Name != "demo" || m.Metadata.Version != "1.2" || m.Metadata.Description != `The "demo" extension` || m.Kernel.Arch != "amd64" {
			t.Errorf("%s: manifest %+v", form, m)
		}
		if data, err := readAll(e.RootFS.Lookup("usr/share/demo")); err != nil || string(data) != "hello" {
			t.Errorf("%s: %q, %v", form, data, err)
		}
		if _, err := Open(t.Context(), ref, "arm64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/amd64, want linux/arm64") {
			t.Errorf("%s: another architecture: %v", form, err)
		}
	}
	data, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), write(t, data[:100]), "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "squashfs") {
		t.Errorf("the beginning of an image: %v", err)
	}
}

func TestSysextErrors(t *testing.T) {
	file := func(name string) entry { return entry{name: name, kind: tar.TypeReg, content: "x"} }
	for what, tt := range map[string]struct{ ref, want string }{
		"architecture": {sysext(t, "ARCHITECTURE=riscv64\n"), `extension-release.Demo: ARCHITECTURE="riscv64", want x86-64, arm64 or _any`},
		"line":         {sysext(t, "ID=_any\nfoo\n"), `extension-release.Demo:2: "foo", want KEY=VALUE`},
		"quote":        {sysext(t, "ID=\"any\n"), "extension-release.Demo:1: ID: \"\\\"any\": a quote that does not end"},
		"two":          {sysext(t, release, file("usr/lib/extension-release.d/extension-release.other")), "holds 2 files (extension-release.Demo, extension-release.other), want one"},
		"name":         {write(t, archiveOf(t, entry{name: "usr/lib/extension-release.d/x", kind: tar.TypeReg})), "usr/lib/extension-release.d/x, want extension-release.NAME"},
		"bad name":     {write(t, archiveOf(t, entry{name: "usr/lib/extension-release.d/extension-release.a b", kind: tar.TypeReg})), `metadata.name "a b"`},
		"version":      {sysext(t, "SYSEXT_VERSION_ID='1 2'\n"), `metadata.version "1 2", want one word`},
		"large":        {sysext(t, strings.Repeat("#\n", maxRelease)), "131072 bytes, want at most 65536"},
		"etc":          {sysext(t, release, file("etc/passwd")), "refused: etc/passwd: an extension may only have files in"},
	} {
		if _, err := Open(t.Context(), tt.ref, "amd64", Limits{}); err == nil || !strings.Contains(err.Error(), tt.want) ||
			!(errors.Is(err, ErrFormat) || errors.Is(err, ErrHostile) || errors.Is(err, ErrManifest)) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

func TestParseRelease(t *testing.T) {
	fields, err := parseRelease("A=1\n B=two words # no comment\n;C=x\nD=\"a \\\"b\\\" \\$c\"\nE='it'\\''s'\nF=\nA=2\r\n")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"A": "2", "B": "two words # no comment", "D": `a "b" $c`, "E": "it's", "F": ""} {
		if got, ok := fields[key]; !ok || got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}
	if len(fields) != 5 {
		t.Errorf("%d fields: %v", len(fields), fields)
	}
}

// TestSaveSysext writes a squashfs image and reads it with a tool that nobody
// here wrote.
func TestSaveSysext(t *testing.T) {
	text := strings.Replace(manifest, "kernel:\n", "  description: 'a \"demo\" for $5'\nkernel:\n  blacklist: [bar]\n  options: [{name: baz, parameters: x=1}]\n", 1)
	e, err := Open(t.Context(), write(t, archiveOf(t, append(valid()[1:], entry{name: "manifest.yaml", kind: tar.TypeReg, content: text})...)), "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "demo.raw")
	if err := e.SaveSysext(t.Context(), raw, "amd64", 0); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "out")
	if out, err := exec.Command(oracle.Tool(t, "unsquashfs"), "-no-xattrs", "-d", dest, raw).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"usr/share/demo": "hello",
		"usr/lib/extension-release.d/extension-release.demo": "ID=_any\nARCHITECTURE=x86-64\nSYSEXT_VERSION_ID=\"1.0.0\"\nSYSEXT_PRETTY_NAME=\"a \\\"demo\\\" for \\$5\"\n",
		"usr/lib/modules-load.d/demo.conf":                   "foo\n",
		"usr/lib/modprobe.d/demo.conf":                       "options foo a=1 b=2\noptions baz x=1\nblacklist bar\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	again, err := Open(t.Context(), raw, "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if m := again.Manifest.Metadata; m.Name != "demo" || m.Version != "1.0.0" || m.Description != `a "demo" for $5` {
		t.Errorf("read again: %+v", m)
	}
	if e.RootFS.Lookup(releaseDir) != nil {
		t.Error("saving changed the extension")
	}
}

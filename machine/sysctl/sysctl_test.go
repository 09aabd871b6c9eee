//go:build linux

package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes a directory with the parameters of the given values.
func tree(t *testing.T, values map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range values {
		file := filepath.Join(dir, Setting{Name: name}.File())
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func expect(t *testing.T, dir string, values map[string]string) {
	t.Helper()
	for name, want := range values {
		if got, ok := Get(dir, name); got != want || !ok {
			t.Errorf("%s is %q, %v, want %q", name, got, ok, want)
		}
	}
}

func TestApply(t *testing.T) {
	dir := tree(t, map[string]string{"kernel.a": "0", "kernel.b": "0", "kernel.c": "4\t5", "net.d": "0", "kernel.last": "0"})
	own := []Setting{{"kernel.a", "1", false}, {"kernel.b", "1", false}, {"kernel.missing", "1", false}, {"kernel.last", "1", true}}
	configured := map[string]string{"kernel/b": "2", "net/d": "3"}
	if err := Apply(dir, own, configured, false); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, map[string]string{"kernel.a": "1", "kernel.b": "2", "kernel.c": "4 5", "net.d": "3", "kernel.last": "0"})
	if err := Apply(dir, own, nil, true); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, map[string]string{"kernel.a": "1", "kernel.b": "1", "net.d": "3", "kernel.last": "1"})
	if _, ok := Get(dir, "kernel.missing"); ok {
		t.Error("a parameter was made that the kernel does not have")
	}
}

func TestApplyConfiguredFinal(t *testing.T) {
	dir := tree(t, map[string]string{"kernel.last": "0"})
	if err := Apply(dir, []Setting{{"kernel.last", "1", true}}, map[string]string{"kernel/last": "0"}, true); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, map[string]string{"kernel.last": "0"})
}

func TestApplyGoesOn(t *testing.T) {
	dir := tree(t, map[string]string{"kernel.dir.file": "0", "kernel.b": "0"})
	err := Apply(dir, []Setting{{"kernel.dir", "1", false}, {"kernel.b", "1", false}}, map[string]string{"kernel/typo": "1"}, true)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "kernel/dir=1: ") || !strings.Contains(err.Error(), "kernel/typo=1: ") {
		t.Errorf("%v, want both that cannot be set", err)
	}
	expect(t, dir, map[string]string{"kernel.b": "1"})
}

// A value that is there is not written: setting net.ipv4.ip_forward changes others
// of the kernel's, and a final one would be refused.
func TestApplyLeavesWhatIsThere(t *testing.T) {
	dir := tree(t, map[string]string{"kernel.a": "1 "})
	if err := Apply(dir, []Setting{{"kernel.a", "1", false}}, map[string]string{}, true); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "kernel/a")); err != nil || string(data) != "1 \n" {
		t.Errorf("%q, %v: it was written again", data, err)
	}
}

func TestDefaults(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Defaults("arm64") {
		if seen[s.Name] || s.Value == "" || strings.ContainsAny(s.Name, "/ ") {
			t.Errorf("%+v, twice or wrong", s)
		}
		seen[s.Name] = true
	}
	if seen["user.max_user_namespaces"] || seen["kernel.modules_disabled"] {
		t.Error("containers and drivers would not work")
	}
}

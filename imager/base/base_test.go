package base

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
)

func write(t *testing.T, path string) {
	t.Helper()
	files, err := encodeFacts(map[string]fs.FileMode{"usr": fs.ModeDir | 0o755, "usr/bin/init": 0o755})
	if err != nil {
		t.Fatal(err)
	}
	modules, err := encodeFacts([]depmod.Module{{Path: "kernel/a-b.ko", Info: &module.Info{Name: "a_b"}}})
	if err != nil {
		t.Fatal(err)
	}
	err = Write(t.Context(), path, Config{Version: 1, Arch: "amd64", Release: "6.12.0", Epoch: 1}, map[string]extent.Source{
		Vmlinuz: extent.Bytes([]byte("kernel")), Files: files, ModuleFacts: modules,
		ModulesBuiltin: extent.Bytes([]byte("kernel/c-d.ko\n")),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base")
	write(t, path)
	b, err := Open(path, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	p, err := b.Part(Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := p.Bytes(100); err != nil || string(data) != "kernel" {
		t.Errorf("%s: %q, %v", Vmlinuz, data, err)
	}
	if _, err := p.Bytes(5); !errors.Is(err, ErrFormat) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := b.Part("none"); !errors.Is(err, ErrPart) {
		t.Errorf("missing part: %v", err)
	}
	m, err := b.Modules()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Modules) != 1 || m.Modules[0].Path != "kernel/a-b.ko" || m.Modules[0].Info.Name != "a_b" || string(m.Builtin) != "kernel/c-d.ko\n" {
		t.Errorf("modules %+v", m)
	}
	if files, err := b.Files(); err != nil || !files["usr"].IsDir() || files["usr/bin/init"] != 0o755 {
		t.Errorf("files %v, %v", files, err)
	}

	again := filepath.Join(t.TempDir(), "again")
	write(t, again)
	if c, err := Open(again, "amd64"); err != nil || c.Digest != b.Digest {
		t.Errorf("written twice: %v and %v, %v", b.Digest, c.Digest, err)
	}
}

func TestOpenErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base")
	write(t, path)
	if _, err := Open(path, "arm64"); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), `for arm64: it is for ["amd64"]`) {
		t.Errorf("another architecture: %v", err)
	}
	if _, err := Open(filepath.Join(path, "none"), "amd64"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "build one with 'kiln base build'") {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(t.TempDir(), "amd64"); !errors.Is(err, ErrFormat) {
		t.Errorf("empty directory: %v", err)
	}
	b, err := Open(path, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.Part(Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(path, "blobs/sha256", p.SHA256)
	for content, want := range map[string]string{
		"Kernel": "vmlinuz: not a kiln base: invalid OCI layout: content is sha256:",
		"kern":   "has 4 bytes, the manifest says 6; it is damaged, make or copy it again",
	} {
		if err := os.WriteFile(blob, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(path, "amd64")
		if err == nil {
			err = b.Verify(t.Context())
		}
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("content %q:\n got %v\nwant %s", content, err, want)
		}
	}
}

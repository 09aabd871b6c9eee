package module_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
)

// An object file with debug information, from the compiler, loses just that:
// readelf shows the same symbols and relocations as before.
func TestStrip(t *testing.T) {
	gcc, readelf := oracle.Tool(t, "gcc"), oracle.Tool(t, "readelf")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	source := "extern int other(int);\nstatic int table[300];\nint twice(int a) { return table[a] + other(a); }\n" +
		"const char name[] __attribute__((section(\".modinfo\"))) = \"name=x\";\n"
	if err := os.WriteFile(file("x.c"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-g", "-c", "-o", file("x.o"), file("x.c")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(file("x.o"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := module.Strip(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) > len(data)*2/3 {
		t.Errorf("%d bytes of %d are left", len(got), len(data))
	}
	if err := os.WriteFile(file("stripped.o"), got, 0o644); err != nil {
		t.Fatal(err)
	}
	show := func(name string) string {
		out, err := exec.Command(readelf, "--wide", "--symbols", "--hex-dump=.text", "--string-dump=.modinfo", file(name)).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("readelf: ")) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	if a, b := show("x.o"), show("stripped.o"); a != b {
		t.Errorf("readelf shows\n%s\nand\n%s", a, b)
	}
	out, err := exec.Command(readelf, "--wide", "--relocs", file("stripped.o")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), ".rela.text") || !strings.Contains(string(out), "other") {
		t.Errorf("relocations: %v: %s", err, out)
	}
	f, err := elf.NewFile(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Sections {
		if strings.Contains(s.Name, "debug") && s.Size != 0 {
			t.Errorf("%s has %d bytes", s.Name, s.Size)
		}
	}
	again, err := module.Strip(got)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("stripping twice: %v", err)
	}
}

func TestCompress(t *testing.T) {
	data := bytes.Repeat([]byte("a module, more or less. "), 10000)
	for format, tool := range map[string]string{"gzip": "gzip", "xz": "xz", "zstd": "zstd"} {
		got, _, err := module.Compress(format, data)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(oracle.Tool(t, tool), "-dc")
		cmd.Stdin = bytes.NewReader(got)
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, data) {
			t.Errorf("%s: %d bytes, %v", tool, len(out), err)
		}
	}
	if _, _, err := module.Compress("lzma", data); err == nil || err.Error() != `compression "lzma" of modules, want gzip, xz or zstd` {
		t.Errorf("lzma: %v", err)
	}
}

func FuzzStrip(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Add(moduletest.ELF(wlan()))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := module.Strip(data)
		if err != nil {
			if !errors.Is(err, module.ErrFormat) {
				t.Error(err)
			}
			return
		}
		if len(got) > 2*len(data)+2<<20 {
			t.Errorf("%d bytes of %d", len(got), len(data))
		}
	})
}

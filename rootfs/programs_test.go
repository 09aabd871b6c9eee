package rootfs

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/closure"
)

const pinnedRecipe = `version: v1alpha1
name: x
programs:
- {path: /usr/bin/greet, module: greet, package: ./cmd, tags: [loud], values: {main.version: "v${VERSION}"}}
`

// pinned writes the recipe and the module it builds from.
func pinned(t *testing.T, dir string) (*Recipe, Sources) {
	t.Helper()
	write(t, dir, map[string]string{
		"recipe.yaml": pinnedRecipe, "greet/go.mod": "module example.org/greet\n\ngo 1.24\n",
		"greet/cmd/main.go":  "package main\n\nvar version string\n\nfunc main() { print(greeting + version) }\n",
		"greet/cmd/loud.go":  "//go:build loud\n\npackage main\n\nconst greeting = \"HELLO \"\n",
		"greet/cmd/quiet.go": "//go:build !loud\n\npackage main\n\nconst greeting = \"hello \"\n",
	})
	r, err := Load(filepath.Join(dir, "recipe.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return r, Sources{Arch: runtime.GOARCH, Version: "1.0"}
}

// A program of a module that the recipe pins is built once, from wherever the
// recipe is, and again when anything it is made of has changed.
func TestProgramCache(t *testing.T) {
	var log bytes.Buffer
	built := func(r *Recipe, src Sources) (program string, cached bool) {
		t.Helper()
		log.Reset()
		tr, err := r.Tree(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(extent.Reader(tr.Lookup("usr/bin/greet").Content))
		if err != nil {
			t.Fatal(err)
		}
		return string(data), strings.Contains(log.String(), "cached=true")
	}
	store := cache.Dir(filepath.Join(t.TempDir(), "cache"))
	dir := t.TempDir()
	r, src := pinned(t, dir)
	uncached, _ := built(r, src)
	src.Cache, src.Log = store, slog.New(slog.NewTextHandler(&log, nil))
	first, hit := built(r, src)
	if hit || first != uncached {
		t.Errorf("first build: cached %v, same as without a cache: %v", hit, first == uncached)
	}
	if !strings.Contains(log.String(), "package=./cmd") {
		t.Errorf("log: %s", &log)
	}
	p := filepath.Join(t.TempDir(), "greet")
	if err := os.WriteFile(p, []byte(first), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(p).CombinedOutput(); err != nil || string(out) != "HELLO v1.0" {
		t.Errorf("it prints %q, %v", out, err)
	}

	elsewhere, src2 := pinned(t, t.TempDir())
	src2.Cache, src2.Log = store, src.Log
	if again, hit := built(elsewhere, src2); !hit || again != first {
		t.Errorf("from another directory: cached %v, same %v", hit, again == first)
	}
	r.Programs[0].Tags = nil
	if _, hit := built(r, src); hit {
		t.Error("other tags: cached")
	}
	r.Programs[0].Tags = []string{"loud"}
	src.Version = "2.0"
	if _, hit := built(r, src); hit {
		t.Error("another version: cached")
	}
	src.Version = "1.0"
	src.Arch = map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	if _, hit := built(r, src); hit {
		t.Error("another architecture: cached")
	}
	src.Arch = runtime.GOARCH
	write(t, dir, map[string]string{"greet/go.mod": "module example.org/greet\n\ngo 1.25\n"})
	if _, hit := built(r, src); hit {
		t.Error("another go.mod: cached")
	}
}

// A program with parts in C is linked with the musl of the sysroot, static, and
// does not depend on where that is.
func TestProgramWithC(t *testing.T) {
	oracle.Tool(t, "gcc")
	oracle.Tool(t, "musl-gcc")
	cpu, err := muslArch(runtime.GOARCH)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	var got []string
	for range 2 {
		dir := t.TempDir()
		r, src := pinned(t, dir)
		write(t, dir, map[string]string{"greet/cmd/main.go": `package main

// #include <stdio.h>
// #ifdef __GLIBC__
// #error compiled against glibc
// #endif
// static void greet(void) { puts("from C"); fflush(stdout); }
import "C"

var version string

func main() { C.greet(); print(greeting + version) }
`})
		for _, d := range []string{"usr/include/", "usr/lib/"} {
			d += cpu + "-linux-musl"
			if err := os.CopyFS(filepath.Join(dir, "trees/sysroot", d), os.DirFS("/"+d)); err != nil {
				t.Fatal(err)
			}
		}
		src.TreeDirs = []string{filepath.Join(dir, "trees")}
		src.Cache = cache.Dir(filepath.Join(dir, "cache"))
		r.Programs[0].Sysroot = "sysroot"
		tr, err := r.Tree(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if err := closure.Check(t.Context(), tr, runtime.GOARCH); err != nil {
			t.Error(err)
		}
		data, err := io.ReadAll(extent.Reader(tr.Lookup("usr/bin/greet").Content))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(dir)) {
			t.Errorf("it names %s", dir)
		}
		got = append(got, string(data))
	}
	if got[0] != got[1] {
		t.Error("the program depends on where it was built")
	}
	p := filepath.Join(t.TempDir(), "greet")
	if err := os.WriteFile(p, []byte(got[0]), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(p).CombinedOutput(); err != nil || string(out) != "from C\nHELLO v1.0" {
		t.Errorf("it prints %q, %v", out, err)
	}
}

func TestProgramErrors(t *testing.T) {
	dir := t.TempDir()
	r, src := pinned(t, dir)
	src.Cache = cache.Dir(filepath.Join(dir, "cache"))
	fails := func(want string) {
		t.Helper()
		if _, err := r.Tree(t.Context(), src); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "DIR"), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	r.Programs[0].Module = "none"
	fails("DIR/recipe.yaml: programs[0]: open DIR/none: no such file or directory")
	r.Programs[0].Module = "greet"
	r.Programs[0].Sysroot = "sysroot"
	fails("programs[0]: no directory sysroot in any directory, as none was given to search")
	src.TreeDirs = []string{filepath.Join(dir, "trees")}
	write(t, dir, map[string]string{"trees/sysroot/usr/include/stdio.h": ""})
	fails("musl-gcc.specs: no such file or directory; it is in Debian's package musl-dev")
}

func TestCheckSize(t *testing.T) {
	r, src := pinned(t, t.TempDir())
	r.Programs = nil
	for name, size := range map[string]int{"/usr/lib/modules/6.12/a": 3e6, "/usr/lib/modules/6.12/b": 2e6, "/usr/bin/big": 4e6, "/etc/small": 1} {
		content := strings.Repeat("x", size)
		r.Files = append(r.Files, File{Path: name, Content: &content})
	}
	tr, err := r.Tree(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.CheckSize(tr, 1<<40); err != nil {
		t.Errorf("without a limit: %v", err)
	}
	r.Limits.Squashfs = 2500000
	if err := r.CheckSize(tr, 2500000); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	err = r.CheckSize(tr, 2600000)
	const want = "too large: 2.6 MB as squashfs, and limits.squashfs in r.yaml is 2.5 MB; before compression the largest are /usr/lib/modules 5.0 MB, /usr/bin/big 4.0 MB, /etc/small 0.0 MB"
	if err == nil || strings.ReplaceAll(err.Error(), r.path, "r.yaml") != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

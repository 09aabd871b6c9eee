//go:build linux

package test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/kit"
	"github.com/kilnhq/kiln/kernel/module"
)

// testDeb returns the one package that matches the pattern.
func testDeb(t *testing.T, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(oracle.Artifact(t, "KILN_TEST_DEBS"), pattern))
	if err != nil || len(list) != 1 {
		t.Fatalf("packages %s: %v, %v, want one; rootfs/userland/fetch.sh downloads it", pattern, list, err)
	}
	return list[0]
}

// extractedKit makes a kit from the distribution's packages and unpacks it.
// headers is the pattern of the headers of the kernel; symvers is what its
// symbols have to be, or nil for what they are.
func extractedKit(t *testing.T, headers string, symvers []byte) (*kit.Kit, string) {
	t.Helper()
	for _, tool := range []string{"make", "gcc", "ld", "strip", "bash"} {
		oracle.Tool(t, tool)
	}
	packages := []string{testDeb(t, headers), testDeb(t, "linux-headers-*-common_*.deb"), testDeb(t, "linux-kbuild-*.deb")}
	d, err := deb.Open(packages[0])
	if err != nil {
		t.Fatal(err)
	}
	release := strings.TrimPrefix(d.Package, "linux-headers-")
	if symvers == nil {
		name := "usr/src/linux-headers-" + release + "/Module.symvers"
		files, err := d.Tree(t.Context(), func(n string) bool { return n == name })
		if err != nil {
			t.Fatal(err)
		}
		content := files.Lookup(name).Content
		if symvers, err = io.ReadAll(io.NewSectionReader(content, 0, content.Size())); err != nil {
			t.Fatal(err)
		}
	}
	path, dir := filepath.Join(t.TempDir(), "kit"), filepath.Join(t.TempDir(), "extracted")
	req := kit.Request{Packages: packages, Arch: d.Architecture, Release: release, Symvers: symvers}
	if err := kit.Build(t.Context(), req, path); err != nil {
		t.Fatal(err)
	}
	k, err := kit.Open(path, d.Architecture)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(symvers); k.Config.Symvers != hex.EncodeToString(sum[:]) {
		t.Errorf("config %+v", k.Config)
	}
	if err := k.Extract(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return k, dir
}

// compile builds a source and returns what the modules say of themselves.
func compile(t *testing.T, k *kit.Kit, job kit.Job) (*kit.Built, map[string]*module.Info) {
	t.Helper()
	job.Output = t.TempDir()
	b, err := k.Compile(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	infos := map[string]*module.Info{}
	for _, m := range b.Modules {
		data, err := os.ReadFile(m.Path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := module.Parse(m.Path, data)
		if err != nil {
			t.Fatal(err)
		}
		if info.Release() != k.Config.Release || info.Arch() != k.Config.Arch || !strings.Contains(info.Vermagic, " modversions") {
			t.Errorf("%s: vermagic %q, arch %s, want %s and %s", m.Name, info.Vermagic, info.Arch(), k.Config.Release, k.Config.Arch)
		}
		infos[m.Name] = info
	}
	return b, infos
}

// digests returns a line for each module with the digest of its bytes.
func digests(t *testing.T, b *kit.Built) string {
	t.Helper()
	var lines []string
	for _, m := range b.Modules {
		data, err := os.ReadFile(m.Path)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s %x", m.Name, m.Dest, sha256.Sum256(data)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// source writes a source with the files to a new directory.
func source(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	for name, data := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestKernelKit builds modules for the kernel of the base.
func TestKernelKit(t *testing.T) {
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	part, err := b.Part(base.Symvers)
	if err != nil {
		t.Fatal(err)
	}
	symvers, err := part.Bytes(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	k, dir := extractedKit(t, "linux-headers-"+b.Config.Release+"_*.deb", symvers)

	t.Run("own modules", func(t *testing.T) {
		a, infos := compile(t, k, kit.Job{Source: "testdata/kilna", Kit: dir})
		info := infos["kilna"]
		if a.Name != "kilna" || a.Version != "1.0" || a.Symvers == "" || len(a.Warnings) > 0 || info == nil || len(info.Exports) != 1 ||
			info.Exports[0].Name != "kilna_level" || !info.Exports[0].GPL || info.Exports[0].CRC == 0 {
			t.Fatalf("built %+v: %+v", a, info)
		}
		_, infos = compile(t, k, kit.Job{Source: "testdata/kilnb", Kit: dir, Symvers: []string{a.Symvers}})
		if other := infos["kilnb"]; other == nil || !slices.Equal(other.Depends, []string{"kilna"}) ||
			!slices.Contains(other.Imports, module.Import{Name: "kilna_level", CRC: info.Exports[0].CRC}) {
			t.Errorf("kilnb %+v, want it to need kilna_level with CRC %#x", other, info.Exports[0].CRC)
		}
		_, err := k.Compile(t.Context(), kit.Job{Source: "testdata/kilnb", Kit: dir, Output: t.TempDir()})
		if !errors.Is(err, kit.ErrBuild) || !strings.Contains(err.Error(), `ERROR: modpost: "kilna_level" [kilnb.ko] undefined!`) {
			t.Errorf("kilnb without the symbols of kilna: %v", err)
		}
	})
	t.Run("same bytes", func(t *testing.T) {
		var all []string
		for _, name := range []string{"one", "another/and/longer"} {
			tmp := filepath.Join(t.TempDir(), name)
			if err := os.MkdirAll(filepath.Join(tmp, "src"), 0o755); err != nil {
				t.Fatal(err)
			}
			src := filepath.Join(tmp, "src", "kilna")
			if err := os.CopyFS(src, os.DirFS("testdata/kilna")); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", tmp)
			t.Setenv("LANG", map[bool]string{true: "de_DE.UTF-8"}[name == "one"])
			t.Setenv("KCFLAGS", map[bool]string{true: "-DSECRET -g"}[name == "one"])
			job := kit.Job{Source: src}
			if name == "one" {
				job.Kit, job.Jobs = dir, 1
			}
			b, _ := compile(t, k, job)
			all = append(all, digests(t, b))
			if list, err := os.ReadDir(src); err != nil || len(list) != 2 {
				t.Errorf("the build has left %v in the source, %v", list, err)
			}
			if list, err := os.ReadDir(tmp); err != nil || len(list) != 1 {
				t.Errorf("the build has left %v in TMPDIR, %v", list, err)
			}
		}
		if all[0] != all[1] {
			t.Errorf("built in one place:\n%s\nin another:\n%s", all[0], all[1])
		}
	})
	t.Run("dkms", func(t *testing.T) {
		for name, want := range map[string][]string{"rapiddisk": {"rapiddisk", "rapiddisk-cache"}, "vpoll": {"vpoll"}} {
			b, infos := compile(t, k, kit.Job{Source: testDeb(t, name+"-dkms_*.deb"), Kit: dir})
			if b.Name != name || b.Version == "" || len(infos) != len(want) {
				t.Errorf("%s: built %+v", name, b)
			}
			for _, m := range want {
				if infos[m] == nil {
					t.Errorf("%s: no module %s in %+v", name, m, b.Modules)
				}
			}
		}
	})
	const main = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n"
	const head = "PACKAGE_NAME=odd\nPACKAGE_VERSION=3\n"
	t.Run("dkms.conf", func(t *testing.T) {
		// Patches, scripts, a makefile that asks for the running kernel, and a
		// module whose name and directory change.
		b, infos := compile(t, k, kit.Job{Kit: dir, Source: source(t, map[string]string{
			"sub/odd.c":      main,
			"sub/Makefile":   "obj-m := odd.o\nHEADERS := /lib/modules/$(shell uname -r)/build\nall:\n\t$(MAKE) -C $(HEADERS) M=$(CURDIR)\n",
			"patches/1.diff": "--- a/sub/odd.c\n+++ b/sub/odd.c\n@@ -1,2 +1,3 @@\n #include <linux/module.h>\n MODULE_LICENSE(\"GPL\");\n+MODULE_DESCRIPTION(\"patched\");\n",
			"pre.sh":         "#!/bin/sh\necho \"MODULE_VERSION(\\\"$1\\\");\" >> sub/odd.c\n",
			"dkms.conf": head + "PATCH=1.diff PATCH_MATCH='^6\\.'\nPATCH[1]=none.diff PATCH_MATCH[1]='^5'\nPRE_BUILD=\"pre.sh 3.1\"\n" +
				"MAKE=\"make -C sub\"\nBUILT_MODULE_NAME=odd BUILT_MODULE_LOCATION=sub DEST_MODULE_NAME=even DEST_MODULE_LOCATION=/updates\n",
		})})
		info := infos["even"]
		if b.Name != "odd" || b.Version != "3" || len(b.Modules) != 1 || b.Modules[0].Dest != "updates" ||
			info == nil || info.Description != "patched" || info.Version != "3.1" {
			t.Errorf("built %+v: %+v", b, info)
		}
	})
	for _, tt := range []struct {
		name, want string
		files      map[string]string
	}{
		{"does not compile", "odd.c:3:1: error: ", map[string]string{"odd.c": main + "nonsense", "Kbuild": "obj-m := odd.o"}},
		{"makes none", "make made no module", map[string]string{"Makefile": "obj-m :=\n"}},
		{"no makefile", "no Kbuild, Makefile or dkms.conf", map[string]string{"odd.c": main}},
		{"looks elsewhere", "/usr/src/linux-9: No such file or directory", map[string]string{
			"Makefile": "all:\n\tmake -C /usr/src/linux-9 M=$(CURDIR)\n", "dkms.conf": head + "MAKE=make"}},
		{"looks elsewhere", "It may look for the kernel in /usr/src instead of in the kit", map[string]string{
			"Makefile": "all:\n\tmake -C /usr/src/linux-9 M=$(CURDIR)\n", "dkms.conf": head + "MAKE=make"}},
		{"promises", "dkms.conf promises odd.ko, the build made no module", map[string]string{"dkms.conf": head + "MAKE=true"}},
		{"kernel", `dkms.conf is for BUILD_EXCLUSIVE_KERNEL "^5\\.", this is 6.`, map[string]string{"dkms.conf": head + `BUILD_EXCLUSIVE_KERNEL="^5\."`}},
		{"kernel in a condition", `dkms.conf is for BUILD_EXCLUSIVE_KERNEL "never", this is 6.`, map[string]string{
			"dkms.conf": head + `if grep -q CONFIG_SMP=y $kernel_source_dir/.config; then BUILD_EXCLUSIVE_KERNEL=never; fi`}},
		{"option", "dkms.conf is for kernels with CONFIG_NONE; kernel 6.", map[string]string{"dkms.conf": head + `BUILD_EXCLUSIVE_CONFIG="CONFIG_SMP !CONFIG_OTHER CONFIG_NONE"`}},
		{"oldest", "dkms.conf is for kernels from 7.1, this is 6.", map[string]string{"dkms.conf": head + "BUILD_EXCLUSIVE_KERNEL_MIN=7.1"}},
	} {
		_, err := k.Compile(t.Context(), kit.Job{Source: source(t, tt.files), Kit: dir, Output: t.TempDir()})
		if !errors.Is(err, kit.ErrBuild) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
	// The kernel for clouds has no video devices.
	_, err = k.Compile(t.Context(), kit.Job{Source: testDeb(t, "v4l2loopback-dkms_*.deb"), Kit: dir, Output: t.TempDir()})
	if want := "REQUIRES CONFIG_VIDEO_DEV"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("v4l2loopback: %v, want %s", err, want)
	}
}

// TestKernelKitGeneric builds a driver for the kernel with all drivers.
func TestKernelKitGeneric(t *testing.T) {
	k, dir := extractedKit(t, "linux-headers-*+deb??-amd64_*.deb", nil)
	b, infos := compile(t, k, kit.Job{Source: testDeb(t, "v4l2loopback-dkms_*.deb"), Kit: dir})
	info := infos["v4l2loopback"]
	if b.Name != "v4l2loopback" || info == nil || !slices.Equal(info.Depends, []string{"videodev"}) || len(info.Parameters) < 5 {
		t.Errorf("built %+v: %+v", b, info)
	}
}

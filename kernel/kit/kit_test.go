package kit

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/kernel/deb/debtest"
)

const (
	release = "6.12.0-cloud-amd64"
	symvers = "0x11111111\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n0x22222222\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n"
	config  = "CONFIG_CC_VERSION_TEXT=\"x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14) 12.2.0\"\nCONFIG_GCC_VERSION=120200\nCONFIG_SMP=y\n"
)

// headers are packages in the manner of Debian's. edit may change the files of
// the first.
func headers(t *testing.T, edit func(files map[string]string)) []string {
	t.Helper()
	src := "usr/src/linux-headers-" + release + "/"
	files := map[string]string{
		"Makefile":                      "include /usr/src/linux-headers-6.12.0-common/Makefile\n",
		".kernelvariables":              "override ARCH = x86\nCCACHE = ccache\nCC = $(CROSS_COMPILE)gcc-12\noverride CROSS_COMPILE = x86_64-linux-gnu-\n",
		".config":                       config,
		"Module.symvers":                symvers,
		"include/config/kernel.release": release + "\n",
		"vmlinux":                       "BTF",
	}
	if edit != nil {
		edit(files)
	}
	list := []debtest.File{{Name: "lib/modules/" + release + "/build", Symlink: "/" + src}}
	for _, name := range []string{"Makefile", ".kernelvariables", ".config", "Module.symvers", "include/config/kernel.release", "vmlinux", "evil"} {
		if data, ok := files[name]; ok {
			list = append(list, debtest.File{Name: src + name, Data: data})
		}
	}
	list = append(list, debtest.File{Name: src + "scripts", Symlink: "../../lib/linux-kbuild-6.12.0/scripts"})
	dir := t.TempDir()
	return []string{
		debtest.Write(t, dir, "linux-headers-"+release, "6.12.0-1", "amd64", list...),
		debtest.Write(t, dir, "linux-headers-6.12.0-common", "6.12.0-1", "all",
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/Makefile", Data: "all:\n"},
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/arch/x86/Makefile", Data: "x\n"},
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/arch/arm/Makefile", Data: "x\n"},
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/arch/Kconfig", Data: "x\n"},
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/include/a.h", Data: "int a;\n"},
			debtest.File{Name: "usr/src/linux-headers-6.12.0-common/include/b.h", Symlink: "a.h"},
			debtest.File{Name: "usr/share/doc/linux-headers-6.12.0-common/copyright", Data: "x\n"}),
		debtest.Write(t, dir, "linux-kbuild-6.12.0", "6.12.0-1", "amd64",
			debtest.File{Name: "usr/lib/linux-kbuild-6.12.0/scripts/mod/modpost", Data: "#!/bin/sh\n", Mode: 0o755}),
	}
}

func request(packages []string) Request {
	return Request{Packages: packages, Arch: "amd64", Release: release, Symvers: []byte(symvers), Epoch: 1}
}

func TestBuildOpenExtract(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kit")
	packages := headers(t, nil)
	if err := Build(t.Context(), request(packages), path); err != nil {
		t.Fatal(err)
	}
	k, err := Open(path, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if c := k.Config; c.Release != release || c.Host != "amd64" || c.GCC != 12 || len(c.Packages) != 3 ||
		c.Compiler != "x86_64-linux-gnu-gcc-12 (Debian 12.2.0-14) 12.2.0" || len(c.Symvers) != 64 {
		t.Errorf("config %+v", c)
	}
	dir := filepath.Join(t.TempDir(), "kit")
	if err := k.Extract(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, name)
			if target, err := os.Readlink(name); err == nil {
				rel += " -> " + target
			}
			got = append(got, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"build/.config", "build/.kernelvariables", "build/Makefile", "build/Module.symvers", "build/include/config/kernel.release",
		"build/scripts -> ../kbuild/scripts",
		"common/Makefile", "common/arch/Kconfig", "common/arch/x86/Makefile", "common/include/a.h", "common/include/b.h -> a.h",
		"kbuild/scripts/mod/modpost",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("files:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, want := range map[string]string{
		"build/Makefile":         "include $(dir $(lastword $(MAKEFILE_LIST)))../common/Makefile\n",
		"build/.kernelvariables": "override ARCH = x86\nCC = $(if $(KILN_CC),$(KILN_CC),$(CROSS_COMPILE)gcc)\n",
	} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v, want %q", name, data, err, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "build/scripts/mod/modpost")); err != nil || fi.Mode().Perm()&0o100 == 0 {
		t.Errorf("modpost: %v, %v, want a program", fi, err)
	}
	if err := k.Extract(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("extracted twice: %v", err)
	}

	again := filepath.Join(t.TempDir(), "again")
	packages[0], packages[2] = packages[2], packages[0]
	if err := Build(t.Context(), request(packages), again); err != nil {
		t.Fatal(err)
	}
	if k2, err := Open(again, "amd64"); err != nil || k2.Digest != k.Digest {
		t.Errorf("made in another order: %v, %v, want %s", k2, err, k.Digest)
	}

	if _, err := Open(path, "arm64"); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), `for arm64: it is for ["amd64"]`) {
		t.Errorf("another architecture: %v", err)
	}
	if _, err := Open(filepath.Join(path, "none"), "amd64"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make one with 'kiln kernel kit'") {
		t.Errorf("missing: %v", err)
	}
	data, err := os.ReadFile(k.layer.Path())
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(k.layer.Path(), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := k.Extract(t.Context(), t.TempDir()); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "it is damaged, make or copy it again") {
		t.Errorf("damaged: %v", err)
	}
}

func TestBuildErrors(t *testing.T) {
	all := func(p []string) []string { return p }
	for _, tt := range []struct {
		name string
		edit func(map[string]string)
		take func([]string) []string
		req  func(*Request)
		want string
	}{
		{"other release", nil, all, func(r *Request) { r.Release = "6.12.1-cloud-amd64" },
			"refused: linux-headers-6.12.0-cloud-amd64_6.12.0-1_amd64 is for kernel 6.12.0-cloud-amd64, the base has 6.12.1-cloud-amd64"},
		{"other architecture", nil, all, func(r *Request) { r.Arch = "arm64" }, "is for amd64, the base is for arm64"},
		{"unknown architecture", nil, all, func(r *Request) { r.Arch = "mips" }, `architecture "mips", want amd64 or arm64`},
		{"no headers", nil, func(p []string) []string { return p[1:] }, nil, "none of the packages is linux-headers-" + release},
		{"no common", nil, func(p []string) []string { return []string{p[0], p[2]} }, nil, "give the package that has it too (linux-headers-6.12.0-common)"},
		{"no kbuild", nil, func(p []string) []string { return p[:2] }, nil,
			"scripts: refused: links to /usr/lib/linux-kbuild-6.12.0/scripts, which is in none of the packages; give the package that has it too (linux-kbuild-6.12.0)"},
		{"twice", nil, func(p []string) []string { return append(p, p[0]) }, nil, "exists already"},
		{"other CRC", func(m map[string]string) {
			m["Module.symvers"] = strings.Replace(symvers, "0x22222222", "0x33333333", 1)
		}, all, nil, `kfree is "0x33333333", in the base "0x22222222"; take the headers of the same build of kernel 6.12.0-cloud-amd64`},
		{"more symbols", func(m map[string]string) { m["Module.symvers"] += "0x1\tx\tvmlinux\tEXPORT_SYMBOL\t\n" }, all, nil, "3 symbols, in the base 2"},
		{"no symvers", func(m map[string]string) { delete(m, "Module.symvers") }, all, nil, "no file /usr/src/linux-headers-6.12.0-cloud-amd64/Module.symvers"},
		{"release inside", func(m map[string]string) { m["include/config/kernel.release"] = "6.1.0\n" }, all, nil, "the headers are for kernel 6.1.0, the base has " + release},
		{"no compiler", func(m map[string]string) { m[".config"] = "" }, all, nil, "no CONFIG_CC_VERSION_TEXT"},
	} {
		r := request(tt.take(headers(t, tt.edit)))
		if tt.req != nil {
			tt.req(&r)
		}
		if err := Build(t.Context(), r, filepath.Join(t.TempDir(), "kit")); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
	other := debtest.Write(t, t.TempDir(), "musl", "1", "amd64", debtest.File{Name: "lib/libc.so", Data: "x"})
	if err := Build(t.Context(), request([]string{other}), "none"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "musl_1_amd64: has neither") {
		t.Errorf("other package: %v", err)
	}
}

func pack(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	z, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(z)
	for _, h := range entries {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		tw.Write(make([]byte, h.Size))
	}
	tw.Close()
	z.Close()
	return buf.Bytes()
}

func TestExtractHostile(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []tar.Header
		want    string
	}{
		{"up", []tar.Header{{Name: "../x", Typeflag: tar.TypeReg}}, `"../x": leaves the kit`},
		{"absolute", []tar.Header{{Name: "/x", Typeflag: tar.TypeReg}}, `"/x": leaves the kit`},
		{"link up", []tar.Header{{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../x"}}, "a: refused: symbolic link to ../x leaves the kit"},
		{"absolute link", []tar.Header{{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}, "symbolic link to /etc leaves the kit"},
		{"through links", []tar.Header{
			{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/e/", Typeflag: tar.TypeDir}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d/e"},
			{Name: "d/m", Typeflag: tar.TypeSymlink, Linkname: "../l/../../x"}, {Name: "d/m/f", Typeflag: tar.TypeReg},
		}, "symbolic link to ../l/../../x leaves the kit"},
		{"twice", []tar.Header{{Name: "x", Typeflag: tar.TypeReg}, {Name: "x", Typeflag: tar.TypeReg}}, "x: openat x: file exists"},
		{"device", []tar.Header{{Name: "x", Typeflag: tar.TypeChar}}, "x: refused: entry of type '3'"},
		{"hard link", []tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "../y"}}, "x: refused: entry of type '1'"},
	} {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := extract(t.Context(), root, bytes.NewReader(pack(t, tt.entries...))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
}

func TestRedirect(t *testing.T) {
	dir := t.TempDir()
	in := "KDIR := /lib/modules/$(shell uname -r)/build\nA = /lib/modules/$(KVER)/build\nB=/usr/lib/modules/`uname -r`/source/x\n" +
		"C=/lib/modules/${V}/build D=/lib/modules/5.10.0-8/build E=$(INSTALL)/lib/modules/$(V)/extra F=/lib/modules/$$V/builder\n"
	want := "KDIR := /kit\nA = /kit\nB=/kit/x\nC=/kit D=/kit E=$(INSTALL)/lib/modules/$(V)/extra F=/lib/modules/$$V/builder\n"
	for _, name := range []string{"Makefile", "sub.mk", "main.c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(in), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := redirect(dir, "/kit"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"Makefile": want, "sub.mk": want, "main.c": in} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, want)
		}
	}
}

func TestToolchainErrors(t *testing.T) {
	k := Kit{Config: Config{Arch: runtime.GOARCH, Host: runtime.GOARCH, Release: release, Compiler: "gcc-12", GCC: 12}}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	program := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		if _, _, err := k.toolchain(t.Context()); !errors.Is(err, ErrBuild) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	check("make is not installed; Debian's package make has it")
	for _, name := range []string{"make", "bash", "ld"} {
		program(name, "")
	}
	check("strip is not installed; Debian's package binutils has it")
	program("strip", "")
	check("gcc-12 is not installed; Debian's package gcc-12 has it")
	program("gcc", "echo 13")
	tools, warnings, err := k.toolchain(t.Context())
	want := "compiling with gcc 13, the kernel was compiled with gcc-12; Debian's package gcc-12 has the same"
	if err != nil || tools.cc != "gcc" || len(warnings) != 1 || warnings[0] != want {
		t.Errorf("gcc 13: %+v, %q, %v", tools, warnings, err)
	}
	program("gcc-12", "echo 12")
	if tools, warnings, err := k.toolchain(t.Context()); err != nil || tools.cc != "gcc-12" || len(warnings) != 0 {
		t.Errorf("gcc 12: %+v, %q, %v", tools, warnings, err)
	}
	k.Config.Host = "riscv64"
	check("the kit's programs are for riscv64, this machine is " + runtime.GOARCH)
	k.Config.GCC, k.Config.Compiler = 0, "clang 19"
	check(`the kernel was compiled with "clang 19", want gcc`)
}

func TestOlder(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"6.12.117+deb12-amd64", "3.9", false}, {"3.9", "6.12.117+deb12-amd64", true}, {"6.2", "6.12", true},
		{"6.12", "6.12.0-1", false}, {"6.12.3", "6.12.20-x", true}, {"", "x", false},
	} {
		if got := older(tt.a, tt.b); got != tt.want {
			t.Errorf("older(%q, %q) = %v", tt.a, tt.b, got)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(pack(f, tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 3}, tar.Header{Name: "c", Typeflag: tar.TypeSymlink, Linkname: "a/b"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "kit")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = extract(t.Context(), root, bytes.NewReader(data)) // most is no archive: what counts is where files go
		if list, err := os.ReadDir(parent); err != nil || len(list) != 1 {
			t.Fatalf("files beside the kit: %v, %v", list, err)
		}
	})
}

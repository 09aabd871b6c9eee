package kernel

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/deb/debtest"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const rel = "6.12.1-test"

// bzImage returns the setup part of an x86-64 kernel of the given release.
func bzImage(release string) string {
	b := make([]byte, 5*512)
	b[0x1f1] = 4
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x400)
	b[0x236] = 0x3f
	copy(b[0x600:], release+" (someone@example.org) #1 SMP\x00")
	return string(b)
}

// arm64Image returns a kernel with the release in its banner, if it is not "".
func arm64Image(release string) string {
	b := make([]byte, 3<<20)
	copy(b[0x38:], "ARM\x64")
	copy(b[100_000:], "Linux version %s (%s)\x00")
	if release != "" {
		copy(b[1<<20-20:], "Linux version "+release+" (someone@example.org) #1 SMP\x00") // across a read's end
	}
	return string(b)
}

func kernelFiles(release, image string) []debtest.File {
	return []debtest.File{
		{Name: "./boot/vmlinuz-" + release, Data: image},
		{Name: "./boot/System.map-" + release, Data: "ffffffff81000000 T _text\n"},
		{Name: "./boot/config-" + release, Data: "CONFIG_X=y\n"},
		{Name: "./usr/share/doc/readme", Data: "x"},
	}
}

func moduleFiles(prefix, release string) []debtest.File {
	d := "./" + prefix + "lib/modules/" + release + "/"
	return []debtest.File{
		{Name: d + "kernel/fs/ext4/ext4.ko.xz", Data: "ext4"},
		{Name: d + "kernel/drivers/net/tun.ko", Data: "tun"},
		{Name: d + "modules.builtin", Data: "kernel/fs/fuse/fuse.ko\n"},
		{Name: d + "modules.builtin.modinfo", Data: "fuse\x00"},
		{Name: d + "modules.order", Data: "kernel/fs/ext4/ext4.ko\n"},
		{Name: d + "modules.dep", Data: "stale"},
		{Name: d + "modules.dep.bin", Data: "stale"},
		{Name: d + "build", Symlink: "/usr/src/linux-headers"},
	}
}

var wantModules = []string{
	".", "kernel", "kernel/drivers", "kernel/drivers/net", "kernel/drivers/net/tun.ko", "kernel/fs", "kernel/fs/ext4",
	"kernel/fs/ext4/ext4.ko.xz", "modules.builtin", "modules.builtin.modinfo", "modules.order",
}

// unpack writes files below dir.
func unpack(t *testing.T, dir string, files ...debtest.File) string {
	t.Helper()
	for _, f := range files {
		p := filepath.Join(dir, f.Name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if f.Symlink != "" {
			err = errors.Join(err, os.Symlink(f.Symlink, p))
		} else {
			err = errors.Join(err, os.WriteFile(p, []byte(f.Data), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func text(t *testing.T, c tree.Content) string {
	t.Helper()
	if c == nil {
		return "<nil>"
	}
	b, err := io.ReadAll(extent.Reader(c))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func names(tr *tree.Tree) []string {
	var s []string
	for name := range tr.All() {
		s = append(s, name)
	}
	return s
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	amd64, arm64 := bzImage(rel), arm64Image(rel)
	stub := debtest.File{Name: "./boot/System.map-" + rel, Data: "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n"}
	debian := append(kernelFiles(rel, amd64), moduleFiles("", rel)...)
	debian[1] = stub
	for _, tt := range []struct {
		name   string
		paths  []string
		arch   string
		source string
		sysmap string
	}{
		{"one package", []string{debtest.Write(t, dir, "linux-image", "6.12.1-1", "amd64", debian...)}, "amd64", "linux-image_6.12.1-1", "<nil>"},
		{"map in a second package", []string{
			debtest.Write(t, dir, "linux-image-b", "6.12.1-1", "amd64", debian...),
			debtest.Write(t, dir, "linux-image-dbg", "6.12.1-1", "amd64", debtest.File{Name: "./usr/lib/debug/boot/System.map-" + rel, Data: "real"}),
		}, "amd64", "linux-image-b_6.12.1-1", "real"},
		{"modules in a second package, merged usr", []string{
			debtest.Write(t, dir, "linux-modules", "2", "arm64", moduleFiles("usr/", rel)...),
			debtest.Write(t, dir, "linux-image", "2", "arm64", kernelFiles(rel, arm64)...),
		}, "arm64", "linux-image_2", "ffffffff81000000 T _text\n"},
		{"directory", []string{unpack(t, filepath.Join(dir, "root"), append(kernelFiles(rel, amd64), moduleFiles("", rel)...)...)},
			"amd64", filepath.Join(dir, "root"), "ffffffff81000000 T _text\n"},
		{"directory with all in lib/modules", []string{unpack(t, filepath.Join(dir, "fedora"), append(moduleFiles("", rel),
			debtest.File{Name: "./boot/vmlinuz-" + rel, Data: arm64Image("")}, // no release in the image
			debtest.File{Name: "./lib/modules/" + rel + "/vmlinuz", Data: "a copy"},
			debtest.File{Name: "./lib/modules/" + rel + "/config", Data: "CONFIG_X=y\n"},
			debtest.File{Name: "./lib/modules/" + rel + "/System.map", Data: "map"})...)}, "arm64", filepath.Join(dir, "fedora"), "map"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Import(t.Context(), tt.paths...)
			if err != nil {
				t.Fatal(err)
			}
			if p.Release != rel || p.Arch != tt.arch || p.Source != tt.source {
				t.Errorf("got release %s, arch %s, source %s", p.Release, p.Arch, p.Source)
			}
			if got := names(p.Modules); !slices.Equal(got, wantModules) {
				t.Errorf("modules %q, want %q", got, wantModules)
			}
			if got := text(t, p.Modules.Lookup("kernel/fs/ext4/ext4.ko.xz").Content); got != "ext4" {
				t.Errorf("module %q", got)
			}
			if got := text(t, p.SystemMap); got != tt.sysmap {
				t.Errorf("System.map %q, want %q", got, tt.sysmap)
			}
			if got := text(t, p.Config); got != "CONFIG_X=y\n" {
				t.Errorf("config %q", got)
			}
			if p.Vmlinuz.Size() < 2560 {
				t.Errorf("vmlinuz of %d bytes", p.Vmlinuz.Size())
			}
		})
	}
}

func TestImportErrors(t *testing.T) {
	base := t.TempDir()
	n := 0
	dir := func(files ...debtest.File) []string {
		n++
		return []string{unpack(t, filepath.Join(base, "d", string(rune('a'+n))), files...)}
	}
	vmlinuz := func(release, image string) debtest.File {
		return debtest.File{Name: "boot/vmlinuz-" + release, Data: image}
	}
	old := []byte(bzImage(rel))
	binary.LittleEndian.PutUint16(old[0x206:], 0x204)
	bad := []byte(bzImage(rel))
	binary.LittleEndian.PutUint16(bad[0x20e:], 0xfff0)
	mods := moduleFiles("", rel)
	deb := debtest.Write(t, base, "linux-image", "1", "arm64", append(kernelFiles(rel, bzImage(rel)), mods...)...)
	headers := debtest.Write(t, base, "linux-headers", "1", "all", debtest.File{Name: "./usr/src/x", Data: "x"})
	truncated := filepath.Join(base, "truncated.deb")
	b, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(truncated, b[:len(b)-50], 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		paths []string
		want  string
		is    error
	}{
		{"missing", []string{filepath.Join(base, "none")}, "none: no such file", fs.ErrNotExist},
		{"no kernel", []string{headers}, headers + ": no kernel: neither boot/vmlinuz-RELEASE nor lib/modules/RELEASE/vmlinuz is there", ErrNoKernel},
		{"truncated", []string{truncated}, "truncated.deb: data.tar.zst: truncated: wants ", nil},
		{"no modules", dir(vmlinuz(rel, bzImage(rel))),
			"kernel without modules: " + base + "/d/b/boot/vmlinuz-6.12.1-test is release 6.12.1-test, and lib/modules/6.12.1-test has no module; add the package that has them", ErrNoModules},
		{"two kernels", dir(vmlinuz("6.1", bzImage("6.1")), vmlinuz(rel, bzImage(rel))),
			"two kernels: " + base + "/d/c/boot/vmlinuz-6.1 and " + base + "/d/c/boot/vmlinuz-6.12.1-test; want one", ErrTwo},
		{"two module directories", dir(slices.Concat([]debtest.File{vmlinuz(rel, bzImage(rel))}, mods, moduleFiles("", "6.1"))...),
			"two kernels: modules of 6.1 and 6.12.1-test; want one release", ErrTwo},
		{"other release", dir(append(mods, vmlinuz(rel, bzImage("6.12.2-test")))...),
			"releases differ: " + base + "/d/e/boot/vmlinuz-6.12.1-test is release 6.12.2-test, the modules are in lib/modules/6.12.1-test", ErrRelease},
		{"other release, arm64", dir(append(mods, vmlinuz(rel, arm64Image("6.12.2-test")))...), "is release 6.12.2-test, the modules", ErrRelease},
		{"32 bit", dir(append(mods, vmlinuz(rel, string(old)))...), "unsupported architecture: an x86 kernel without a 64-bit entry point (boot protocol 2.04)", ErrArch},
		{"garbage", dir(append(mods, vmlinuz(rel, strings.Repeat("kiln", 1000)))...), "not a kernel image: begins with 6b696c6e6b696c6e", ErrFormat},
		{"short", dir(append(mods, vmlinuz(rel, "MZ"))...), "not a kernel image: 2 bytes", ErrFormat},
		{"zboot", dir(append(mods, vmlinuz(rel, "MZ\x00\x00zimg"+strings.Repeat("\x00", 1000)))...), "a compressed EFI image", ErrFormat},
		{"vmlinux", dir(append(mods, vmlinuz(rel, "\x7fELF"+strings.Repeat("\x00", 1000)))...), "an ELF file; want the bzImage", ErrFormat},
		{"bad version", dir(append(mods, vmlinuz(rel, string(bad)))...), "not a kernel image: bad version string at byte 66032", ErrFormat},
		{"arch", []string{deb}, deb + ": unsupported architecture: the package is for arm64, the kernel " + deb + "/boot/vmlinuz-6.12.1-test for amd64", ErrArch},
		{"two directories", []string{base, base}, "a directory; want .deb files only, or one directory alone", nil},
	} {
		_, err := Import(t.Context(), tt.paths...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
}

// The kernels of the distribution: every module of the package is there.
func TestImportDistribution(t *testing.T) {
	debs, err := filepath.Glob(filepath.Join(os.Getenv("KILN_TEST_DEBS"), "linux-image-*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("KILN_TEST_DEBS") == "" || len(debs) == 0 {
		t.Skip("SKIPPED: KILN_TEST_DEBS names no directory with linux-image packages")
	}
	for _, deb := range debs {
		t.Run(filepath.Base(deb), func(t *testing.T) {
			p, err := Import(t.Context(), deb)
			if err != nil {
				t.Fatal(err)
			}
			modules := 0
			for name := range p.Modules.All() {
				if isModule(name) {
					modules++
				}
			}
			if !strings.Contains(filepath.Base(deb), "linux-image-"+p.Release+"_") || modules < 1000 || p.SystemMap != nil ||
				!strings.Contains(text(t, p.Config), "CONFIG_MODULES=y\n") || p.Modules.Lookup("modules.builtin.modinfo") == nil {
				t.Errorf("release %s, %d modules", p.Release, modules)
			}
			t.Logf("%s: %s, %d modules", p.Source, p.Release, modules)
		})
	}
}

func FuzzImage(f *testing.F) {
	f.Add([]byte(bzImage(rel)))
	f.Add([]byte(arm64Image(rel))[:4096])
	f.Add([]byte("MZ\x00\x00zimg"))
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := readImage(extent.Bytes(data))
		if err == nil && (img.arch == "" || img.release != "" && !validRelease(img.release)) {
			t.Errorf("got %+v", img)
		}
	})
}

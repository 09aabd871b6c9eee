package rootfs

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/deb/debtest"
	"github.com/kilnhq/kiln/rootfs/closure"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func listing(t *testing.T, tr *tree.Tree) []string {
	t.Helper()
	var lines []string
	first := map[*tree.Inode]string{}
	for name, ino := range tr.All() {
		line := fmt.Sprintf("%s %v %d:%d %d", name, ino.Mode, ino.UID, ino.GID, ino.ModTime)
		switch {
		case ino.Target != "":
			line += " -> " + ino.Target
		case first[ino] != "":
			line += " = " + first[ino]
		case ino.Content != nil:
			b, err := io.ReadAll(extent.Reader(ino.Content))
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %.60q", b)
		}
		first[ino] = name
		lines = append(lines, line)
	}
	return lines
}

// write writes files below dir with permissions that depend on the umask.
func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o777), os.WriteFile(p, []byte(data), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// certificate returns a certificate that is not valid for anything, in PEM.
func certificate(t *testing.T, serial int64) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(nil, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

const testRecipe = `
version: v1alpha1
name: test
directories:
- {path: /usr/lib}
- {path: /usr/bin}
- {path: /usr, mode: "0711"}
- {path: /tmp, mode: "1777"}
- {path: /var/lib/x, mode: "0700", uid: 5, gid: 6}
symlinks:
- {path: /lib, target: usr/lib}
- {path: /usr/sbin, target: bin}
- {path: /sbin/init, target: "/usr/bin/init-${ARCH}"}
files:
- {path: /etc/os-release, content: "VERSION=${VERSION} ${OTHER}\n"}
- {path: /lib/copied, source: files/copied, mode: "0600"}
users:
- {name: svc, uid: 900, gid: 900, home: /var/lib/x}
- {name: root, uid: 0, gid: 0, home: /root, shell: /usr/bin/login}
groups:
- {name: tty, gid: 5, members: [svc]}
packages:
- name: musl
  files:
  - {from: "/lib/${MUSL_ARCH}-linux-musl/libc.so", to: "/lib/ld-musl-${MUSL_ARCH}.so.1"}
  - {from: "/usr/share/x/**"}
  - {from: "/usr/share/x/**/*.txt", to: /opt/txt}
  - {from: /usr/share/dir, to: /opt/}
  - {from: /usr/lib/y, to: /opt/z}
trees:
- {source: "userland-${ARCH}"}
- {source: etc, to: /etc/tree}
certificates: {package: ca-certificates}
`

// sources makes all that testRecipe needs and returns it with the recipe.
func sources(t *testing.T, dir, recipe string) (*Recipe, Sources) {
	t.Helper()
	write(t, dir, map[string]string{
		"recipe.yaml": recipe, "files/copied": "copied",
		"trees/userland-amd64/usr/sbin/tool": "tool", "trees/userland-amd64/lib/libt.so": "lib", "trees/etc/conf": "conf",
	})
	if err := os.Chmod(filepath.Join(dir, "trees/userland-amd64/usr/sbin/tool"), 0o700); err != nil {
		t.Fatal(err)
	}
	debs := filepath.Join(dir, "debs")
	if err := os.MkdirAll(debs, 0o777); err != nil {
		t.Fatal(err)
	}
	owned := func(name, data string) debtest.File { return debtest.File{Name: name, Data: data, Mode: 0o755} }
	debtest.Write(t, debs, "musl", "1.2.3-1", "amd64",
		owned("./lib/x86_64-linux-musl/libc.so", "musl"),
		debtest.File{Name: "./lib/ld-musl-x86_64.so.1", Symlink: "x86_64-linux-musl/libc.so"},
		debtest.File{Name: "./usr/share/x/a.txt", Data: "a"},
		debtest.File{Name: "./usr/share/x/sub/b.txt", Data: "b"},
		debtest.File{Name: "./usr/share/x/sub/hard", Link: "./usr/share/x/sub/b.txt"},
		debtest.File{Name: "./usr/share/x/sub/soft", Symlink: "../a.txt"},
		debtest.File{Name: "./usr/share/dir/file", Data: "f"},
		debtest.File{Name: "./lib/y/deep/file", Data: "y"},
		debtest.File{Name: "./usr/share/doc/left-out", Data: "x"})
	debtest.Write(t, debs, "musl", "1.2.3-1", "arm64")
	debtest.Write(t, debs, "ca-certificates", "2023", "all",
		debtest.File{Name: "./usr/share/ca-certificates/mozilla/B.crt", Data: strings.TrimSuffix(certificate(t, 2), "\n")},
		debtest.File{Name: "./usr/share/ca-certificates/mozilla/A.crt", Data: certificate(t, 1)},
		debtest.File{Name: "./usr/share/ca-certificates/README", Data: "x"})
	r, err := Load(filepath.Join(dir, "recipe.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return r, Sources{Arch: "amd64", Version: "1.0", ModTime: 99, PackageDirs: []string{filepath.Join(dir, "none"), debs}, TreeDirs: []string{filepath.Join(dir, "trees")}}
}

func TestTree(t *testing.T) {
	want := []string{
		". drwxr-xr-x 0:0 99",
		"etc drwxr-xr-x 0:0 99",
		`etc/group -rw-r--r-- 0:0 99 "root:x:0:\ntty:x:5:svc\nsvc:x:900:\n"`,
		`etc/os-release -rw-r--r-- 0:0 99 "VERSION=1.0 ${OTHER}\n"`,
		`etc/passwd -rw-r--r-- 0:0 99 "root:x:0:0:root:/root:/usr/bin/login\nsvc:x:900:900:svc:/var/"`,
		"etc/ssl drwxr-xr-x 0:0 99",
		"etc/ssl/certs drwxr-xr-x 0:0 99",
		fmt.Sprintf("etc/ssl/certs/ca-certificates.crt -rw-r--r-- 0:0 99 %.60q", certificate(t, 1)),
		"etc/tree drwxr-xr-x 0:0 99",
		`etc/tree/conf -rw-r--r-- 0:0 99 "conf"`,
		"lib Lrwxrwxrwx 0:0 99 -> usr/lib",
		"opt drwxr-xr-x 0:0 99",
		"opt/dir drwxr-xr-x 0:0 99",
		`opt/dir/file -rw-r--r-- 0:0 99 "f"`,
		"opt/txt drwxr-xr-x 0:0 99",
		`opt/txt/a.txt -rw-r--r-- 0:0 99 "a"`,
		"opt/txt/sub drwxr-xr-x 0:0 99",
		`opt/txt/sub/b.txt -rw-r--r-- 0:0 99 "b"`,
		"opt/z drwxr-xr-x 0:0 99",
		"opt/z/deep drwxr-xr-x 0:0 99",
		`opt/z/deep/file -rw-r--r-- 0:0 99 "y"`,
		"sbin drwxr-xr-x 0:0 99",
		"sbin/init Lrwxrwxrwx 0:0 99 -> /usr/bin/init-amd64",
		"tmp dtrwxrwxrwx 0:0 99",
		"usr drwx--x--x 0:0 99",
		"usr/bin drwxr-xr-x 0:0 99",
		`usr/bin/tool -rwxr-xr-x 0:0 99 "tool"`,
		"usr/lib drwxr-xr-x 0:0 99",
		`usr/lib/copied -rw------- 0:0 99 "copied"`,
		`usr/lib/ld-musl-x86_64.so.1 -rwxr-xr-x 0:0 99 "musl"`,
		`usr/lib/libt.so -rw-r--r-- 0:0 99 "lib"`,
		"usr/sbin Lrwxrwxrwx 0:0 99 -> bin",
		"usr/share drwxr-xr-x 0:0 99",
		"usr/share/x drwxr-xr-x 0:0 99",
		`usr/share/x/a.txt -rw-r--r-- 0:0 99 = opt/txt/a.txt`,
		"usr/share/x/sub drwxr-xr-x 0:0 99",
		`usr/share/x/sub/b.txt -rw-r--r-- 0:0 99 = opt/txt/sub/b.txt`,
		"usr/share/x/sub/hard -rw-r--r-- 0:0 99 = usr/share/x/sub/b.txt",
		"usr/share/x/sub/soft Lrwxrwxrwx 0:0 99 -> ../a.txt",
		"var drwxr-xr-x 0:0 99",
		"var/lib drwxr-xr-x 0:0 99",
		"var/lib/x drwx------ 5:6 99",
	}
	for _, umask := range []int{0o022, 0o077} {
		old := syscall.Umask(umask)
		r, src := sources(t, t.TempDir(), testRecipe)
		syscall.Umask(old)
		tr, err := r.Tree(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if got := listing(t, tr); !slices.Equal(got, want) {
			t.Errorf("umask %03o: got\n%s\nwant\n%s", umask, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		bundle, err := io.ReadAll(extent.Reader(tr.Lookup("etc/ssl/certs/ca-certificates.crt").Content))
		if err != nil || string(bundle) != certificate(t, 1)+certificate(t, 2) {
			t.Errorf("certificates: %v\n%s", err, bundle)
		}
	}
}

func TestTreeErrors(t *testing.T) {
	const head = "version: v1alpha1\nname: x\n"
	for _, tt := range []struct{ recipe, want string }{
		{head + "files: [{path: /a, content: x}]\nsymlinks: [{path: /a, target: b}]\n", "recipe.yaml: /a: provided by symlinks[0] and by files[0]"},
		{head + "files: [{path: /etc/passwd, content: x}]\nusers: [{name: root}]\n", "/etc/passwd: provided by files[0] and by users"},
		{head + "directories: [{path: /a}, {path: /a/}]\n", "/a: provided by directories[0] and by directories[1]"},
		{head + "directories: [{path: /lib/x}]\nsymlinks: [{path: /lib, target: usr/lib}]\n", "/lib: provided by the directories above other files and by symlinks[0]"},
		{head + "symlinks: [{path: /lib, target: usr/lib}]\nfiles: [{path: /lib/x, content: a}, {path: /usr/lib/x, content: b}]\n", "/usr/lib/x: provided by files[0] and by files[1]"},
		{head + "symlinks: [{path: /a, target: b}, {path: /b, target: a}]\nfiles: [{path: /a/x, content: a}]\n", "files[0]: a: too many symbolic links"},
		{head + "files: [{path: /a, content: x}, {path: /a/b, content: x}]\n", "files[1]: /a/b: a: parent is not a directory"},
		{head + "files: [{path: \"/${ARHC}/b\", content: x}]\n", "files[0]: ${ARHC}/b: unknown variable; known: ${ARCH}, ${MUSL_ARCH}, ${VERSION}"},
		{head + "files: [{path: /a, source: none}]\n", "files[0]: openat none: no such file or directory"},
		{head + "files: [{path: /a, source: out}]\n", "files[0]: openat out: path escapes from parent"},
		{head + "packages: [{name: glibc, files: [{from: /x}]}]\n", "packages[0]: package glibc: not found: no glibc_VERSION_amd64.deb in DIR/none, DIR/debs; apt-get download glibc fetches it"},
		{head + "packages: [{name: musl, files: [{from: /etc/**}]}]\n", "packages[0]: package musl_1.2.3-1_amd64: from /etc/**: nothing in the package matches"},
		{head + "packages: [{name: musl, files: [{from: /usr/share/x/a.txt, to: /a}, {from: /usr/share/x/sub/b.txt, to: /a}]}]\n",
			"packages[0]: /a: provided by package musl_1.2.3-1_amd64 and by package musl_1.2.3-1_amd64"},
		{head + "packages: [{name: two, files: [{from: /x}]}]\n", "package two: both DIR/debs/two_1_amd64.deb and DIR/debs/two_2_all.deb are there; remove one"},
		{head + "packages: [{name: wrong, files: [{from: /x}]}]\n", "DIR/debs/wrong_1_amd64.deb: holds package two for amd64, want wrong for amd64"},
		{head + "trees: [{source: none}]\n", "trees[0] (none): no directory none in DIR/trees"},
		{head + "trees: [{source: etc, to: /a}]\nfiles: [{path: /a/conf, content: x}]\n", "/a/conf: provided by files[0] and by trees[0] (etc)"},
		{head + "certificates: {package: musl}\n", "certificates: package musl_1.2.3-1_amd64 has no /usr/share/ca-certificates/mozilla/*.crt"},
		{head + "certificates: {package: bad-certs}\n", "certificates: x.crt: no PEM certificate"},
	} {
		dir := t.TempDir()
		r, src := sources(t, dir, tt.recipe)
		two := debtest.Write(t, src.PackageDirs[1], "two", "1", "amd64")
		debtest.Write(t, src.PackageDirs[1], "two", "2", "all")
		debtest.Write(t, src.PackageDirs[1], "bad-certs", "1", "all", debtest.File{Name: "usr/share/ca-certificates/mozilla/x.crt", Data: "x"})
		data, err := os.ReadFile(two)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "debs/wrong_1_amd64.deb"), data, 0o644), os.Symlink("/etc/passwd", filepath.Join(dir, "out"))); err != nil {
			t.Fatal(err)
		}
		_, err = r.Tree(t.Context(), src)
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "DIR"), tt.want) {
			t.Errorf("got %v\nwant %s", err, tt.want)
		}
	}
	r, src := sources(t, t.TempDir(), testRecipe)
	src.Arch = "mips"
	if _, err := r.Tree(t.Context(), src); err == nil || !strings.Contains(err.Error(), `unknown architecture "mips", want amd64 or arm64`) {
		t.Errorf("got %v", err)
	}
}

// A Go program is static, for the right machine, and the same bytes wherever
// it is built.
func TestPrograms(t *testing.T) {
	recipe := "version: v1alpha1\nname: x\nprograms:\n- {path: /usr/bin/init, package: ./cmd/init, values: {main.version: \"v${VERSION}\"}}\n"
	var got []string
	for _, umask := range []int{0o022, 0o077} {
		dir := t.TempDir()
		old := syscall.Umask(umask)
		r, src := sources(t, dir, recipe)
		src.GoDir = write(t, filepath.Join(dir, "src"), map[string]string{
			"go.mod": "module example.org/x\n\ngo 1.24\n", "cmd/init/main.go": "package main\n\nvar version string\n\nfunc main() { print(version) }\n",
		})
		syscall.Umask(old)
		t.Setenv("GOFLAGS", "-tags=umask"+fmt.Sprint(umask)) // must not count
		tr, err := r.Tree(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		ino := tr.Lookup("usr/bin/init")
		if ino == nil || ino.Mode != 0o755 {
			t.Fatalf("no program, or a bad mode: %+v", ino)
		}
		b, err := io.ReadAll(extent.Reader(ino.Content))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(b))
		if err := closure.Check(t.Context(), tr, "amd64"); err != nil {
			t.Error(err)
		}
		src.Arch = "arm64"
		if tr, err = r.Tree(t.Context(), src); err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(tr.Lookup("usr/bin/init").Content)
		if err != nil || f.Machine != elf.EM_AARCH64 {
			t.Errorf("arm64: %v, %v", f, err)
		}
		src.Arch = "amd64"
		src.GoDir = filepath.Join(src.GoDir, "cmd")
		_, err = r.Tree(t.Context(), src)
		if want := "programs[0]: go build ./cmd/init in " + src.GoDir + ": exit status 1\n"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if got[0] != got[1] {
		t.Error("the program depends on where it was built")
	}
	if runtime.GOARCH != "amd64" {
		return
	}
	p := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(p, []byte(got[0]), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(p).CombinedOutput(); err != nil || string(out) != "v1.0" {
		t.Errorf("it prints %q, %v", out, err)
	}
}

func TestFirmwareTree(t *testing.T) {
	dir := t.TempDir()
	r, src := sources(t, dir, "version: v1alpha1\nname: x\nfirmware: {packages: [fw-a, fw-b], include: [\"ucode/*.bin\"]}\n")
	debtest.Write(t, src.PackageDirs[1], "fw-a", "1", "all",
		debtest.File{Name: "./lib/firmware/tg3.bin", Data: "tg3"},
		debtest.File{Name: "./lib/firmware/ucode/a.bin", Data: "a"},
		debtest.File{Name: "./lib/firmware/card/v1.fw", Symlink: "../card-v2/v2.fw"},
		debtest.File{Name: "./lib/firmware/card-v2/v2.fw", Data: "v2"},
		debtest.File{Name: "./lib/firmware/unused", Data: "x"})
	debtest.Write(t, src.PackageDirs[1], "fw-b", "1", "all",
		debtest.File{Name: "./usr/lib/firmware/tg3.bin", Data: "other"},
		debtest.File{Name: "./usr/lib/firmware/z.fw.zst", Data: "z"})
	tr, missing, err := r.FirmwareTree(t.Context(), src, []string{"tg3.bin", "card/v1.fw", "z.fw", "none.bin", "none.bin", "absent"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range listing(t, tr) {
		if !strings.Contains(line, " d") {
			got = append(got, line)
		}
	}
	want := []string{
		`usr/lib/firmware/card/v1.fw Lrwxrwxrwx 0:0 99 -> ../card-v2/v2.fw`,
		`usr/lib/firmware/card-v2/v2.fw -rw-r--r-- 0:0 99 "v2"`,
		`usr/lib/firmware/tg3.bin -rw-r--r-- 0:0 99 "tg3"`,
		`usr/lib/firmware/ucode/a.bin -rw-r--r-- 0:0 99 "a"`,
		`usr/lib/firmware/z.fw.zst -rw-r--r-- 0:0 99 "z"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if want := []string{"absent", "none.bin"}; !slices.Equal(missing, want) {
		t.Errorf("missing %q, want %q", missing, want)
	}
	r.Firmware.Include = append(r.Firmware.Include, "amd/*")
	if _, _, err := r.FirmwareTree(t.Context(), src, nil); err == nil || !strings.Contains(err.Error(), "firmware: include amd/*: no package has such a file") {
		t.Errorf("got %v", err)
	}
}

// The recipe kiln ships, with real musl if it is there and stand-ins for the
// rest.
func TestDefaultRecipe(t *testing.T) {
	r, err := Load("recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, src := sources(t, dir, testRecipe)
	if err := os.Rename(filepath.Join(dir, "trees/userland-amd64"), filepath.Join(dir, "trees/userland")); err != nil {
		t.Fatal(err)
	}
	src.GoDir = write(t, filepath.Join(dir, "src"), map[string]string{"go.mod": "module example.org/x\n\ngo 1.24\n", "cmd/init/main.go": "package main\n\nfunc main() {}\n"})
	for i, p := range r.Programs {
		r.Programs[i] = Program{Path: p.Path, Package: "./cmd/init"}
	}
	write(t, filepath.Join(dir, "trees"), map[string]string{
		"iptables/usr/bin/iptables": "iptables", "sysroot/usr/share/doc/libseccomp/copyright": "Package: libseccomp\n",
	})
	if debs := os.Getenv("KILN_TEST_DEBS"); debs != "" {
		src.PackageDirs = []string{debs, src.PackageDirs[1]}
	}
	tr, err := r.Tree(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	for link, want := range map[string]string{
		"sbin/init": "usr/bin/init", "bin/modprobe": "usr/bin/modprobe", "usr/sbin/poweroff": "usr/bin/init", "lib/ld-musl-x86_64.so.1": "usr/lib/ld-musl-x86_64.so.1",
		"etc/os-release": "usr/lib/os-release", "sbin/tool": "usr/bin/tool", "etc/resolv.conf": "run/resolv.conf",
	} {
		if got, err := tr.Resolve(link); got != want || err != nil {
			t.Errorf("/%s is %s, %v, want %s", link, got, err, want)
		}
	}
	for name, want := range map[string]string{"tmp": "dtrwxrwxrwx", "root": "drwx------", "usr/bin/init": "-rwxr-xr-x", "etc/machine-id": "-r--r--r--"} {
		if got := tr.Lookup(name).Mode.String(); got != want {
			t.Errorf("/%s has mode %s, want %s", name, got, want)
		}
	}
	if err := closure.Check(t.Context(), tr, "amd64"); err != nil {
		t.Error(err)
	}
}

//go:build linux

package test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
	"github.com/kilnhq/kiln/kernel/sign"
)

// Exit codes, as documented.
const (
	usage       = 2
	notFound    = 3
	refused     = 4
	outputFails = 5
	interrupted = 130
)

// bench is a place to run kiln in: everything it may leave behind is in dir.
type bench struct {
	kiln, base, extension string
	dir                   string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{
		kiln: oracle.Artifact(t, "KILN_BIN"), base: oracle.Artifact(t, "KILN_BASE"),
		extension: oracle.Artifact(t, "KILN_EXTENSION"), dir: t.TempDir(),
	}
}

// file writes a file that is an input and returns its name.
func (b *bench) file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// command returns kiln with everything it writes below dir.
func (b *bench) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.kiln, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+b.dir, "XDG_CACHE_HOME="+b.dir)
	return cmd
}

// fails runs kiln and wants it to fail with the code, with a message that holds
// all the words and is from kiln itself, and to leave nothing.
func (b *bench) fails(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	cmd := b.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("kiln %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, stderr.String())
	}
	for _, w := range append(words, "kiln: ") {
		if !strings.Contains(stderr.String(), w) {
			t.Errorf("kiln %s: message without %q:\n%s", strings.Join(args, " "), w, stderr.String())
		}
	}
	if strings.Contains(stderr.String(), "goroutine ") {
		t.Errorf("kiln %s: panic\n%s", strings.Join(args, " "), stderr.String())
	}
	b.empty(t)
}

// empty wants nothing in dir but, perhaps, a cache of whole files.
func (b *bench) empty(t *testing.T) {
	t.Helper()
	filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
			return nil
		}
		inCache := filepath.Dir(path) == filepath.Join(b.dir, "kiln") && !strings.HasPrefix(d.Name(), ".")
		if !d.IsDir() && !inCache {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

func (b *bench) build(args ...string) []string {
	return append([]string{"build", "metal", "--base", b.base, "--output", filepath.Join(b.dir, "metal.raw")}, args...)
}

func TestUsageErrors(t *testing.T) {
	b := newBench(t)
	b.fails(t, usage, []string{`unknown profile "metla"; did you mean "metal"?`}, "build", "metla", "--base", b.base)
	b.fails(t, usage, []string{`unknown profile "nonsense"; known: akamai, alibaba, aws`}, "build", "nonsense", "--base", b.base)
	b.fails(t, usage, []string{"unknown flag: --bse", "kiln build --help"}, "build", "metal", "--bse", b.base)
	b.fails(t, usage, []string{"takes one profile, got 0 arguments"}, "build")
	b.fails(t, usage, []string{"unknown command"}, "biuld")
	b.fails(t, usage, []string{"required flag", "kernel"}, "base", "build")
	b.fails(t, usage, []string{`--size: size "big"`, "for example 100MiB"}, b.build("--size", "big")...)
	b.fails(t, usage, []string{`output.format "qcow"; did you mean "qcow2"`}, b.build("--format", "qcow")...)
	profile := b.file(t, "p.yaml", []byte("version: v1alpha1\nname: x\nplatform: metal\nkernel:\n  agrs: [quiet]\n"))
	b.fails(t, refused, []string{"kernel argument kiln.reset=state: would erase the node's configuration and identity at every start", "uki.profiles", "reset-request=state"},
		b.build("--kernel-arg", "kiln.reset=state")...)
	b.fails(t, usage, []string{profile + `:5:3: unknown key "agrs" in kernel; did you mean "args"?`}, "build", profile, "--base", b.base)
	recipe := b.file(t, "recipe.yaml", []byte("version: v1alpha1\nname: x\nmodulse: {}\n"))
	b.fails(t, usage, []string{recipe + `:3:1: unknown key "modulse"; did you mean "modules"?`}, "base", "build", "--recipe", recipe, "--kernel", "x")
}

func TestMissingInputs(t *testing.T) {
	b := newBench(t)
	b.fails(t, notFound, []string{"base none", "kiln base build"}, "build", "metal", "--base", "none")
	b.fails(t, notFound, []string{"extension none"}, b.build("--extension", "none")...)
	b.fails(t, notFound, []string{"none.yaml"}, "build", "./none.yaml", "--base", b.base)
	b.fails(t, notFound, []string{"none.raw"}, "inspect", "none.raw")
}

// extensionWith makes an extension directory with one module.
func (b *bench) extensionWith(t *testing.T, path string, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"manifest.yaml":                  []byte("version: v1alpha1\nmetadata: {name: demo, version: 1.0.0}\n"),
		"rootfs/usr/lib/modules/" + path: data,
	} {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// signedBy signs a module.
func signedBy(t *testing.T, s *sign.Signer, data []byte) []byte {
	t.Helper()
	data, err := s.Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRefusedModules(t *testing.T) {
	b := newBench(t)
	foreign := signer(t, "foreign")
	release, _ := expect(t)
	ko := func(change func(*module.Info)) []byte {
		info := &module.Info{
			Name: "foo", Machine: elf.EM_X86_64, License: "GPL", Vermagic: release + " SMP preempt mod_unload modversions ",
		}
		change(info)
		return moduletest.ELF(info)
	}
	for what, tt := range map[string]struct {
		path string
		data []byte
		want []string
	}{
		"another release": {
			"6.1.0-56-amd64/extra/foo.ko", ko(func(i *module.Info) { i.Vermagic = "6.1.0-56-amd64 SMP mod_unload " }),
			[]string{"demo@sha256:", "usr/lib/modules/6.1.0-56-amd64/extra/foo.ko: built for 6.1.0-56-amd64, the base has " + release, "rebuild"},
		},
		"wrong directory": {
			"6.1.0/extra/foo.ko", ko(func(*module.Info) {}),
			[]string{"6.1.0/extra/foo.ko: not below usr/lib/modules/" + release, "move it to usr/lib/modules/" + release + "/updates/foo.ko"},
		},
		"another architecture": {
			release + "/extra/foo.ko", ko(func(i *module.Info) { i.Machine = elf.EM_AARCH64 }),
			[]string{"foo.ko: built for arm64, the base is for amd64"},
		},
		"missing module": {
			release + "/extra/foo.ko", ko(func(i *module.Info) { i.Imports = module.Imports{{Name: "cifs_arc4_setkey", CRC: 1}} }),
			[]string{"foo.ko: needs module cifs_arc4, for cifs_arc4_setkey, which is neither in the base nor in an extension", "[depends]"},
		},
		"missing symbol": {
			release + "/extra/foo.ko", ko(func(i *module.Info) { i.Imports = module.Imports{{Name: "no_such_symbol", CRC: 1}} }),
			[]string{"foo.ko: needs symbol no_such_symbol, which neither the kernel nor any module exports", "[symbol-missing]"},
		},
		"changed CRC": {
			release + "/extra/foo.ko", ko(func(i *module.Info) { i.Imports = module.Imports{{Name: "_printk", CRC: 1}} }),
			[]string{"foo.ko: built against another version of _printk, the base's kernel has different CRCs", "[symbol-version]"},
		},
		"missing firmware": {
			release + "/extra/foo.ko", ko(func(i *module.Info) { i.Firmware = []string{"foo.bin"} }),
			[]string{"foo.ko: may ask for firmware foo.bin, neither the base nor an extension has any of it", "[firmware]"},
		},
		"bad signature": {
			release + "/extra/foo.ko", signedBy(t, foreign, ko(func(*module.Info) {})),
			[]string{"foo.ko: signed by foreign", "the kernel refuses it: module.sig_enforce=1", "[signature-unknown]"},
		},
		"no signature": {
			release + "/extra/foo.ko", ko(func(*module.Info) {}),
			[]string{"foo.ko: not signed", "the kernel refuses it: module.sig_enforce=1", "[signature-missing]"},
		},
		"no module": {
			release + "/extra/foo.ko", []byte("#!/bin/sh\n"),
			[]string{"usr/lib/modules/" + release + "/extra/foo.ko", "not a kernel module"},
		},
		"shadowed": {
			release + "/extra/overlay.ko", ko(func(i *module.Info) { i.Name = "overlay" }),
			[]string{"extra/overlay.ko", "kernel/fs/overlayfs/overlay.ko", "updates/"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			b.fails(t, refused, tt.want, b.build("--kernel-arg", "module.sig_enforce=1", "--extension", b.extensionWith(t, tt.path, tt.data))...)
		})
	}
}

func TestRefusedArchives(t *testing.T) {
	b := newBench(t)
	for what, tt := range map[string]struct {
		hdr  tar.Header
		want string
	}{
		"absolute": {tar.Header{Name: "/etc/passwd", Typeflag: tar.TypeReg}, "/etc/passwd: absolute path"},
		"dot dot":  {tar.Header{Name: "rootfs/../../x", Typeflag: tar.TypeReg}, `rootfs/../../x: ".." in a path`},
		"link":     {tar.Header{Name: "rootfs/l/x", Typeflag: tar.TypeReg}, "rootfs/l is a symbolic link to /, want a directory"},
		"escape":   {tar.Header{Name: "rootfs/m", Typeflag: tar.TypeSymlink, Linkname: "../../x"}, "symbolic link to ../../x leads out of the root"},
	} {
		t.Run(what, func(t *testing.T) {
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			const manifest = "version: v1alpha1\nmetadata: {name: demo, version: 1.0.0}\n"
			for _, hdr := range []*tar.Header{
				{Name: "manifest.yaml", Typeflag: tar.TypeReg, Size: int64(len(manifest)), Mode: 0o644},
				{Name: "rootfs", Typeflag: tar.TypeDir, Mode: 0o755},
				{Name: "rootfs/l", Typeflag: tar.TypeSymlink, Linkname: "/"},
				&tt.hdr,
			} {
				if err := tw.WriteHeader(hdr); err != nil {
					t.Fatal(err)
				}
				if hdr.Size > 0 {
					tw.Write([]byte(manifest))
				}
			}
			if err := tw.Close(); err != nil {
				t.Fatal(err)
			}
			b.fails(t, refused, []string{"extension ", tt.want}, b.build("--extension", b.file(t, "x.tar", buf.Bytes()))...)
		})
	}
}

func TestRefusedKernels(t *testing.T) {
	b := newBench(t)
	build := func(kernel string) []string {
		return []string{"base", "build", "--recipe", b.file(t, "r.yaml", []byte("version: v1alpha1\nname: x\n")), "--kernel", kernel, "--output", filepath.Join(b.dir, "base")}
	}
	debs, err := filepath.Glob(filepath.Join(oracle.Artifact(t, "KILN_TEST_DEBS"), "linux-image-*-cloud-*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("kernel packages: %v, %v", debs, err)
	}
	data, err := os.ReadFile(debs[0])
	if err != nil {
		t.Fatal(err)
	}
	b.fails(t, refused, []string{"cut.deb", "data.tar"}, build(b.file(t, "cut.deb", data[:len(data)/2]))...)
	b.fails(t, refused, []string{"text.deb"}, build(b.file(t, "text.deb", []byte("this is not an ar archive, only a text")))...)

	kernels := strings.Split(os.Getenv("KILN_TEST_KERNELS"), ":")
	vmlinuz, err := filepath.Glob(filepath.Join(kernels[0], "boot/vmlinuz-*"))
	if err != nil || len(vmlinuz) != 1 {
		t.Fatalf("kernels: %v, %v", vmlinuz, err)
	}
	if data, err = os.ReadFile(vmlinuz[0]); err != nil {
		t.Fatal(err)
	}
	bare := b.file(t, "boot/"+filepath.Base(vmlinuz[0]), data)
	b.fails(t, refused, []string{"kernel without modules", "lib/modules"}, build(filepath.Dir(filepath.Dir(bare)))...)
}

func TestRefusedBaseAndSizes(t *testing.T) {
	b := newBench(t)
	damaged := filepath.Join(t.TempDir(), "base")
	run(t, oracle.Tool(t, "cp"), "-r", b.base, damaged)
	blobs, err := filepath.Glob(filepath.Join(damaged, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	var largest string
	var size int64
	for _, name := range blobs {
		if fi, err := os.Stat(name); err == nil && fi.Size() > size {
			largest, size = name, fi.Size()
		}
	}
	data := read(t, largest)
	data[len(data)/2] ^= 1
	if err := os.WriteFile(largest, data, 0o644); err != nil {
		t.Fatal(err)
	}
	b.fails(t, refused, []string{"rootfs.sqsh", "content is sha256:", "damaged"}, "build", "metal", "--base", damaged, "--output", filepath.Join(b.dir, "x.raw"))
	if err := os.Truncate(largest, size-1); err != nil {
		t.Fatal(err)
	}
	b.fails(t, refused, []string{"the manifest says", "damaged"}, "build", "metal", "--base", damaged, "--output", filepath.Join(b.dir, "x.raw"))

	b.fails(t, refused, []string{"disk.size 64MiB is too small", "EPHEMERAL", "MiB are needed"}, b.build("--size", "64MiB")...)
	profile := b.file(t, "p.yaml", []byte("version: v1alpha1\nname: x\nplatform: metal\ndisk: {partitions: {efi: 40MiB}}\n"))
	b.fails(t, refused, []string{"disk.partitions.efi: 40MiB is too small: two slots need"}, "build", profile, "--base", b.base)
	b.fails(t, refused, []string{"kernel argument"}, b.build("--kernel-arg", "")...)
}

func TestFullDisk(t *testing.T) {
	oracle.Root(t)
	b := newBench(t)
	run(t, oracle.Tool(t, "mount"), "-t", "tmpfs", "-o", "size=8m", "kiln-test", b.dir)
	t.Cleanup(func() { run(t, oracle.Tool(t, "umount"), b.dir) })
	for _, format := range []string{"raw", "raw.zst"} {
		b.fails(t, outputFails, []string{"cannot write the image", "metal.raw", "no space left on device"}, b.build("--format", format)...)
	}
}

func TestUnwritableOutput(t *testing.T) {
	b := newBench(t)
	b.fails(t, outputFails, []string{"cannot write the image", "no such file or directory"},
		"build", "metal", "--base", b.base, "--output", filepath.Join(b.dir, "none/metal.raw"))
}

func TestNotAnImage(t *testing.T) {
	b := newBench(t)
	b.fails(t, refused, []string{"x.raw"}, "inspect", b.file(t, "x.raw", make([]byte, 1<<20)))
}

// TestInterrupt stops kiln in the middle of writing.
func TestInterrupt(t *testing.T) {
	b := newBench(t)
	// Compressing the zeros of a disk of this size takes minutes.
	cmd := b.command(b.build("--size", "2TiB", "--format", "raw.zst", "--progress", "none")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if found, _ := filepath.Glob(filepath.Join(b.dir, ".metal.raw.tmp-*")); len(found) > 0 {
			break
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatal("it does not begin to write")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != interrupted {
		t.Errorf("%v, want exit code %d\n%s", err, interrupted, stderr.String())
	}
	b.empty(t)
}

package closure

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// object describes a small ELF file.
type object struct {
	machine elf.Machine // 0 is x86-64
	kind    elf.Type    // 0 is ET_DYN
	interp  string
	needed  []string
	rpath   string
	version string // needed symbol version
}

const musl = "/lib/ld-musl-x86_64.so.1"

// build returns the file: headers, one PT_LOAD over everything at address
// 0x1000, PT_INTERP and PT_DYNAMIC; no sections.
func (o object) build() []byte {
	if o.machine == 0 {
		o.machine = elf.EM_X86_64
	}
	if o.kind == 0 {
		o.kind = elf.ET_DYN
	}
	le := binary.LittleEndian
	const base, header = 0x1000, 64 + 3*56
	text := []byte{0}
	str := func(s string) uint64 {
		off := len(text)
		text = append(append(text, s...), 0)
		return uint64(off)
	}
	var dyn []uint64
	for _, n := range o.needed {
		dyn = append(dyn, uint64(elf.DT_NEEDED), str(n))
	}
	if o.rpath != "" {
		dyn = append(dyn, uint64(elf.DT_RUNPATH), str(o.rpath))
	}
	var need []byte
	if o.version != "" {
		need = make([]byte, 32)
		le.PutUint16(need[0:], 1)
		le.PutUint16(need[2:], 1)
		le.PutUint32(need[8:], 16)
		le.PutUint32(need[24:], uint32(str(o.version)))
	}
	body := []byte(o.interp + "\x00")
	needAt := uint64(header + len(body))
	body = append(body, need...)
	textAt := uint64(header + len(body))
	body = append(body, text...)
	dynAt := uint64(header + len(body))
	if o.version != "" {
		dyn = append(dyn, uint64(elf.DT_VERNEED), base+needAt, uint64(elf.DT_VERNEEDNUM), 1)
	}
	dyn = append(dyn, uint64(elf.DT_STRTAB), base+textAt, uint64(elf.DT_STRSZ), uint64(len(text)), 0, 0)
	for _, v := range dyn {
		body = le.AppendUint64(body, v)
	}
	b := make([]byte, header, header+len(body))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], uint16(o.kind))
	le.PutUint16(b[18:], uint16(o.machine))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[58:], 64)
	prog := func(kind elf.ProgType, off, size uint64) {
		p := b[64+56*int(le.Uint16(b[56:])):]
		le.PutUint32(p[0:], uint32(kind))
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], base+off)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
		le.PutUint16(b[56:], le.Uint16(b[56:])+1)
	}
	prog(elf.PT_LOAD, 0, uint64(header+len(body)))
	if o.interp != "" {
		prog(elf.PT_INTERP, header, uint64(len(o.interp)+1))
	}
	prog(elf.PT_DYNAMIC, dynAt, uint64(8*len(dyn)))
	return append(b, body...)
}

// root returns a merged-usr tree with the given ELF files and symbolic links;
// a string that is no link is a file's content.
func root(t testing.TB, files map[string]any) *tree.Tree {
	t.Helper()
	tr := tree.New()
	add := func(name string, ino *tree.Inode) {
		if err := errors.Join(tr.MkdirAll(path.Dir(name), 0o755), tr.Add(name, ino)); err != nil {
			t.Fatal(err)
		}
	}
	add("lib", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "usr/lib"})
	for name, f := range files {
		switch f := f.(type) {
		case object:
			add(name, &tree.Inode{Mode: 0o755, Content: extent.Bytes(f.build())})
		case []byte:
			add(name, &tree.Inode{Mode: 0o755, Content: extent.Bytes(f)})
		case string:
			if target, ok := strings.CutPrefix(f, "-> "); ok {
				add(name, &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: target})
			} else {
				add(name, &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(f))})
			}
		}
	}
	return tr
}

func TestCheck(t *testing.T) {
	prog := func(needed ...string) object { return object{interp: musl, needed: needed} }
	lib := func(needed ...string) object { return object{needed: needed} }
	const ld = "usr/lib/ld-musl-x86_64.so.1"
	for _, tt := range []struct {
		name  string
		files map[string]any
		want  string
	}{
		{"nothing", nil, ""},
		{"static", map[string]any{"sbin/init": object{kind: elf.ET_EXEC}, "usr/bin/pie": object{}}, ""},
		{"musl", map[string]any{ld: lib(), "usr/bin/a": prog("libc.so", "libm.so", "libc.musl-x86_64.so.1")}, ""},
		{"musl by links", map[string]any{ld: "-> x86_64-linux-musl/libc.so", "usr/lib/x86_64-linux-musl/libc.so": lib(), "usr/bin/a": prog("libc.so")}, ""},
		{"no loader", map[string]any{"usr/bin/a": prog("libc.so")},
			"usr/bin/a: needs the interpreter /lib/ld-musl-x86_64.so.1, which is not in the tree; add the package musl"},
		{"dangling loader", map[string]any{ld: "-> libc.so", "usr/bin/a": prog()}, "usr/bin/a: needs the interpreter /lib/ld-musl-x86_64.so.1, which is not in the tree; add the package musl"},
		{"loader loop", map[string]any{ld: "-> /lib/ld-musl-x86_64.so.1", "usr/bin/a": prog()}, "usr/bin/a: interpreter /lib/ld-musl-x86_64.so.1: /lib/ld-musl-x86_64.so.1: too many symbolic links"},
		{"loader is text", map[string]any{ld: "text", "usr/bin/a": prog()}, "usr/bin/a: interpreter /lib/ld-musl-x86_64.so.1: usr/lib/ld-musl-x86_64.so.1 is not an ELF executable or shared object"},
		{"other loader", map[string]any{"usr/bin/a": object{interp: "/lib/ld-uClibc.so.0"}}, "usr/bin/a: interpreter /lib/ld-uClibc.so.0 is not musl's; want /lib/ld-musl-x86_64.so.1"},
		{"library missing", map[string]any{ld: lib(), "usr/bin/foo": prog("libbar.so.1", "libc.so")}, "usr/bin/foo: needs libbar.so.1, which is not in the tree"},
		{"default directories", map[string]any{ld: lib(), "usr/bin/a": prog("l1.so", "l2.so", "l3.so"),
			"usr/lib/l1.so": "-> l1.so.1", "usr/lib/l1.so.1": lib("l2.so"), "usr/local/lib/l2.so": lib("l1.so"), "opt/lib/l3.so": lib()},
			"usr/bin/a: needs l3.so, which is not in the tree"},
		{"path file", map[string]any{ld: lib(), "etc/ld-musl-x86_64.path": "/opt/lib:/x\n/lib64\n", "usr/bin/a": prog("l1.so", "l2.so", "l3.so"),
			"opt/lib/l1.so": lib(), "lib64/l2.so": lib(), "usr/lib/l3.so": lib()}, "usr/bin/a: needs l3.so, which is not in the tree"},
		{"rpath inherited", map[string]any{ld: lib(),
			"opt/x/bin/a": object{interp: musl, needed: []string{"l1.so"}, rpath: "/none:$ORIGIN/../lib"}, "opt/x/lib/l1.so": lib("l2.so"), "opt/x/lib/l2.so": lib("l1.so")}, ""},
		{"rpath of another program does not help", map[string]any{ld: lib(),
			"usr/bin/a": object{interp: musl, needed: []string{"l1.so"}, rpath: "${ORIGIN}/../private"}, "usr/lib/l1.so": lib("l2.so"), "usr/private/l2.so": lib(),
			"usr/bin/b": prog("l1.so")}, "usr/lib/l1.so: needs l2.so, which is not in the tree"},
		{"plugin", map[string]any{"usr/lib/x/plugin.so": lib("l1.so")}, "usr/lib/x/plugin.so: needs l1.so, which is not in the tree"},
		{"library by path", map[string]any{ld: lib(), "usr/bin/a": prog("/opt/l1.so", "/opt/l2.so"), "opt/l1.so": lib()}, "usr/bin/a: needs /opt/l2.so, which is not in the tree"},
		{"linker script", map[string]any{ld: lib(), "usr/bin/a": prog("l1.so"), "usr/lib/l1.so": "INPUT(x)"}, "usr/bin/a: needs l1.so, but usr/lib/l1.so is not an ELF executable or shared object"},
		{"glibc program", map[string]any{"usr/bin/foo": object{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so", "libc.so.6"}}},
			"usr/bin/foo: built for glibc (interpreter /lib64/ld-linux-x86-64.so.2), the root file system is musl; build it with musl-gcc or statically"},
		{"glibc library", map[string]any{"usr/lib/l.so": lib("libc.so.6")}, "usr/lib/l.so: built for glibc (needs libc.so.6), the root file system is musl; build it with musl-gcc or statically"},
		{"glibc version", map[string]any{"usr/lib/l.so": object{needed: []string{"libm.so.6"}, version: "GLIBC_2.29"}},
			"usr/lib/l.so: built for glibc (needs GLIBC_2.29), the root file system is musl; build it with musl-gcc or statically"},
		{"other version", map[string]any{"usr/lib/l.so": object{version: "LIBX_1"}}, ""},
		{"machines, all at once", map[string]any{"usr/bin/a": object{machine: elf.EM_AARCH64, interp: "/lib/ld-linux-aarch64.so.1"}, "usr/bin/b": object{machine: elf.EM_386}},
			"usr/bin/a: built for aarch64, the root file system is for x86-64\nusr/bin/b: built for i386, the root file system is for x86-64"},
		{"not for a loader", map[string]any{"usr/lib/modules/6/x.ko": object{kind: elf.ET_REL, machine: elf.EM_AARCH64},
			"usr/lib/firmware/dsp.elf": object{machine: elf.EM_MIPS}, "usr/lib/x.o": object{kind: elf.ET_REL}, "usr/bin/sh": "#!/bin/sh\n", "e": ""}, ""},
		{"damaged", map[string]any{"usr/bin/a": []byte("\x7fELF\x02\x01\x01"), "usr/bin/b": prog("x").build()[:300]},
			"usr/bin/a: damaged ELF file: EOF\nusr/bin/b: damaged ELF file: dynamic section: EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(t.Context(), root(t, tt.files), "amd64")
			if got := text(err); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			var all *Error
			if tt.want != "" && !errors.As(err, &all) {
				t.Errorf("error of type %T", err)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCheckArm64(t *testing.T) {
	tr := root(t, map[string]any{
		"usr/lib/ld-musl-aarch64.so.1": object{machine: elf.EM_AARCH64},
		"usr/bin/a":                    object{machine: elf.EM_AARCH64, interp: "/lib/ld-musl-aarch64.so.1"},
		"usr/bin/b":                    object{interp: musl},
	})
	want := "usr/bin/b: built for x86-64, the root file system is for aarch64"
	if got := text(Check(t.Context(), tr, "arm64")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := text(Check(t.Context(), tr, "riscv64")); got != `unknown architecture "riscv64", want amd64 or arm64` {
		t.Errorf("got %s", got)
	}
}

// Programs that real linkers made, judged also by running them.
func TestCheckLinked(t *testing.T) {
	muslGCC, gcc := oracle.Tool(t, "musl-gcc"), oracle.Tool(t, "gcc")
	dir := t.TempDir()
	for name, src := range map[string]string{"lib.c": "int answer(void) { return 42; }\n",
		"main.c": "#include <stdio.h>\nint answer(void);\nint main(void) { return printf(\"%d\\n\", answer()) != 3; }\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	compile := func(cc string, args ...string) {
		t.Helper()
		cmd := exec.Command(cc, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", cc, args, err, out)
		}
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	compile(muslGCC, "-shared", "-fPIC", "-o", "libanswer.so", "lib.c")
	compile(muslGCC, "-o", "dynamic", "main.c", "-L.", "-lanswer", "-Wl,-rpath,$ORIGIN")
	compile(muslGCC, "-static", "-o", "static", "main.c", "lib.c")
	compile(gcc, "-o", "glibc", "main.c", "lib.c")
	compile(gcc, "-shared", "-fPIC", "-o", "libglibc.so", "-Wl,--no-as-needed", "lib.c", "-lm")
	for _, name := range []string{"dynamic", "static"} {
		if out, err := exec.Command(filepath.Join(dir, name)).Output(); err != nil || string(out) != "42\n" {
			t.Fatalf("%s: %v, %q", name, err, out)
		}
	}
	loader, err := exec.Command("readlink", "-f", musl).Output()
	if err != nil {
		t.Fatal(err)
	}
	ld, err := os.ReadFile(strings.TrimSpace(string(loader)))
	if err != nil {
		t.Skipf("SKIPPED: the test wants an amd64 host: %v", err)
	}
	files := map[string]any{"usr/lib/ld-musl-x86_64.so.1": ld, "usr/bin/dynamic": read("dynamic"), "usr/bin/static": read("static"), "usr/bin/libanswer.so": read("libanswer.so")}
	if err := Check(t.Context(), root(t, files), "amd64"); err != nil {
		t.Error(err)
	}
	delete(files, "usr/bin/libanswer.so")
	files["usr/bin/glibc"], files["usr/lib/libglibc.so"] = read("glibc"), read("libglibc.so")
	want := "usr/bin/dynamic: needs libanswer.so, which is not in the tree\n" +
		"usr/bin/glibc: built for glibc (interpreter /lib64/ld-linux-x86-64.so.2), the root file system is musl; build it with musl-gcc or statically\n" +
		"usr/lib/libglibc.so: built for glibc (needs libc.so.6), the root file system is musl; build it with musl-gcc or statically"
	if got := text(Check(t.Context(), root(t, files), "amd64")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func FuzzReadELF(f *testing.F) {
	f.Add(object{interp: musl, needed: []string{"libc.so", "libz.so.1"}, rpath: "$ORIGIN/../lib:/x", version: "GLIBC_2.2.5"}.build())
	f.Add(object{kind: elf.ET_EXEC}.build())
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := readELF(extent.Bytes(data))
		if err == nil && (len(b.interp) > maxInterp || len(b.needed) > maxDynamic) {
			t.Errorf("got %d bytes, %d names", len(b.interp), len(b.needed))
		}
		_ = Check(t.Context(), root(t, map[string]any{"a": data, "usr/lib/libz.so.1": data}), "amd64")
	})
}

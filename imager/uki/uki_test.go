package uki

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

const stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func readStub(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(oracle.File(t, stubPath))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// blob returns n bytes that differ from place to place and by seed.
func blob(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>8) ^ seed
	}
	return b
}

func typical(t testing.TB) []Section {
	t.Helper()
	// An initramfs is a map of maps with holes in reality.
	archive, err := extent.Concat(4, extent.Bytes(blob(70001, 3)), extent.Bytes(blob(5, 4)))
	if err != nil {
		t.Fatal(err)
	}
	holes := extent.New(archive.Size() + 10000)
	if err := holes.Put(0, archive); err != nil {
		t.Fatal(err)
	}
	return []Section{
		{".osrel", extent.Bytes([]byte("ID=kiln\nVERSION_ID=1\n"))},
		{".uname", extent.Bytes([]byte("6.12.117"))},
		{".cmdline", extent.Bytes([]byte("console=ttyS0 panic=10"))},
		{".linux", extent.Bytes(blob(123457, 1))},
		{".initrd", holes},
	}
}

func profiles(t testing.TB) []Section {
	s := typical(t)
	for i := range 8 {
		s = append(s,
			Section{".profile", extent.Bytes(fmt.Appendf(nil, "ID=p%d\nTITLE=Profile %d\n", i, i))},
			Section{".cmdline", extent.Bytes(fmt.Appendf(nil, "profile=%d", i))})
	}
	return s
}

func build(t testing.TB, stub []byte, sections []Section) []byte {
	t.Helper()
	m, err := Build(stub, sections)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func content(t testing.TB, s Section) []byte {
	t.Helper()
	b, err := io.ReadAll(extent.Reader(s.Content))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cases are images with enough free section headers in the stub, and with too
// few.
func cases(t testing.TB) map[string][]Section {
	return map[string][]Section{"five sections": typical(t), "eight profiles": profiles(t)}
}

func TestBuildIsReadByDebugPE(t *testing.T) {
	stub := readStub(t)
	before := sha256.Sum256(stub)
	for name, sections := range cases(t) {
		t.Run(name, func(t *testing.T) {
			image := build(t, stub, sections)
			f, err := pe.NewFile(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			opt := f.OptionalHeader.(*pe.OptionalHeader64)
			old, err := Read(bytes.NewReader(stub), int64(len(stub)))
			if err != nil {
				t.Fatal(err)
			}
			n := len(old.Sections)
			if len(f.Sections) != n+len(sections) {
				t.Fatalf("%d sections, want %d", len(f.Sections), n+len(sections))
			}
			fileEnd, memoryEnd := opt.SizeOfHeaders, uint32(0)
			for i, s := range f.Sections {
				var want Section
				if i < n {
					want = old.Sections[i].Section
				} else {
					want = sections[i-n]
				}
				data, err := s.Data()
				if err != nil {
					t.Fatal(err)
				}
				if i < n { // the stub's sections: in memory where they were
					if s.VirtualAddress != old.Sections[i].Address {
						t.Errorf("%s moved in memory to %x", s.Name, s.VirtualAddress)
					}
				} else if s.VirtualAddress%4096 != 0 || s.VirtualAddress < memoryEnd {
					t.Errorf("%s at address %x after %x", s.Name, s.VirtualAddress, memoryEnd)
				}
				if s.Offset != fileEnd {
					t.Errorf("%s at file offset %d, want %d: a gap", s.Name, s.Offset, fileEnd)
				}
				if s.Name != want.Name || !bytes.Equal(data[:s.VirtualSize], content(t, want)) {
					t.Errorf("section %d (%s) differs from %s", i, s.Name, want.Name)
				}
				if len(bytes.Trim(data[s.VirtualSize:], "\x00")) > 0 {
					t.Errorf("%s: padding is not zero", s.Name)
				}
				fileEnd, memoryEnd = s.Offset+s.Size, s.VirtualAddress+s.VirtualSize
			}
			if int(fileEnd) != len(image) || len(image)%512 != 0 {
				t.Errorf("image of %d bytes, sections end at %d", len(image), fileEnd)
			}
			if opt.SizeOfImage < memoryEnd || opt.SizeOfImage > memoryEnd+4096 || opt.CheckSum != 0 {
				t.Errorf("SizeOfImage %x, sections end at %x; CheckSum %x", opt.SizeOfImage, memoryEnd, opt.CheckSum)
			}
			if f.PointerToSymbolTable != 0 || f.NumberOfSymbols != 0 {
				t.Error("the symbol table is still mentioned")
			}
		})
	}
	if sha256.Sum256(stub) != before {
		t.Error("Build changed the stub")
	}
}

func TestReadReturnsWhatBuildTook(t *testing.T) {
	image := build(t, readStub(t), profiles(t))
	m, err := Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if m.Arch != "amd64" || m.Signed || !strings.HasPrefix(m.LoaderInfo(), "systemd-stub 2") {
		t.Errorf("arch %q, signed %v, loader info %q", m.Arch, m.Signed, m.LoaderInfo())
	}
	want := profiles(t)
	added := m.Sections[len(m.Sections)-len(want):]
	for i, s := range added {
		b := content(t, s.Section)
		if s.Name != want[i].Name || !bytes.Equal(b, content(t, want[i])) {
			t.Errorf("section %d: %s differs", i, s.Name)
		}
		if !bytes.Equal(image[s.Offset:][:len(b)], b) {
			t.Errorf("section %d: %s is not at offset %d", i, s.Name, s.Offset)
		}
	}
	if got := string(content(t, m.Section(".cmdline").Section)); got != "console=ttyS0 panic=10" {
		t.Errorf("default .cmdline %q", got)
	}
	if m.Section(".dtb") != nil {
		t.Error("found a section that is not there")
	}
}

// TestBuildNested puts an image into another map, as a file system does.
func TestBuildNested(t *testing.T) {
	stub := readStub(t)
	m, err := Build(stub, typical(t))
	if err != nil {
		t.Fatal(err)
	}
	disk := extent.New(m.Size() + 8192)
	if err := disk.Put(4096, m); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, m.Size())
	if _, err := disk.ReadAt(got, 4096); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, build(t, stub, typical(t))) {
		t.Error("nested image differs")
	}
	var largest extent.Extent
	for _, e := range disk.Extents() {
		if e.Length > largest.Length {
			largest = e
		}
	}
	if largest.Length != 123457 { // the stub is smaller: 83 KiB
		t.Errorf("largest extent has %d bytes: the kernel is not referred to", largest.Length)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	stub := readStub(t)
	if !bytes.Equal(build(t, stub, profiles(t)), build(t, stub, profiles(t))) {
		t.Error("two images of the same input differ")
	}
}

func TestObjdumpAndObjcopy(t *testing.T) {
	objdump, objcopy := oracle.Tool(t, "objdump"), oracle.Tool(t, "objcopy")
	for name, sections := range cases(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "k.efi")
			if err := os.WriteFile(file, build(t, readStub(t), sections), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(objdump, "-h", file).CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("warning")) {
				t.Fatalf("%v\n%s", err, out)
			}
			done := map[string]bool{}
			for _, s := range sections {
				if !bytes.Contains(out, fmt.Appendf(nil, "%-13s %08x", s.Name, s.Content.Size())) {
					t.Errorf("no section %s of %x bytes in\n%s", s.Name, s.Content.Size(), out)
				}
				if done[s.Name] || s.Name == ".profile" || len(sections) > 5 && s.Name == ".cmdline" {
					continue // objcopy takes all of one name
				}
				done[s.Name] = true
				dump := filepath.Join(t.TempDir(), "dump")
				if out, err := exec.Command(objcopy, "-O", "binary", "--only-section="+s.Name, file, dump).CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				got, err := os.ReadFile(dump)
				if err != nil {
					t.Fatal(err)
				}
				if want := content(t, s); !bytes.Equal(got, want) {
					t.Errorf("%s: objcopy extracted %d bytes that are not the %d put in", s.Name, len(got), len(want))
				}
			}
		})
	}
}

func TestSbsign(t *testing.T) {
	sbsign, sbverify, openssl := oracle.Tool(t, "sbsign"), oracle.Tool(t, "sbverify"), oracle.Tool(t, "openssl")
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kiln test", "-keyout", "key", "-out", "cert")
	for name, sections := range cases(t) {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "k.efi"), build(t, readStub(t), sections), 0o644); err != nil {
				t.Fatal(err)
			}
			out := run(sbsign, "--key", "key", "--cert", "cert", "--output", "signed.efi", "k.efi")
			if strings.Contains(strings.ToLower(out), "warning") || strings.Contains(out, "gap") {
				t.Errorf("sbsign: %s", out)
			}
			if out := run(sbverify, "--cert", "cert", "signed.efi"); !strings.Contains(out, "Signature verification OK") || strings.Contains(out, "gap") {
				t.Errorf("sbverify: %s", out)
			}
			if out := run(sbverify, "--list", "signed.efi"); !strings.Contains(out, "CN=kiln test") {
				t.Errorf("sbverify --list: %s", out)
			}
			b, err := os.ReadFile(filepath.Join(dir, "signed.efi"))
			if err != nil {
				t.Fatal(err)
			}
			m, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil || !m.Signed {
				t.Errorf("signed image: signed %v, %v", m != nil && m.Signed, err)
			}
			if _, err := Build(b, nil); err == nil || !strings.Contains(err.Error(), "it is signed") {
				t.Errorf("signed stub: %v", err)
			}
		})
	}
}

// huge is a content of a size that no test wants to have in memory.
type huge int64

func (h huge) Size() int64                         { return int64(h) }
func (huge) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestBuildRefuses(t *testing.T) {
	stub := readStub(t)
	x := extent.Bytes([]byte("x"))
	many := make([]Section, 90)
	for i := range many {
		many[i] = Section{fmt.Sprintf(".s%d", i), x}
	}
	for _, tt := range []struct {
		name     string
		sections []Section
		want     string
	}{
		{"long name", []Section{{".commandline", x}}, `".commandline": a name has 1 to 8`},
		{"no name", []Section{{"", x}}, `"": a name has`},
		{"NUL in a name", []Section{{".a\x00b", x}}, `".a\x00b": a name has`},
		{"empty", []Section{{".cmdline", extent.Bytes(nil)}}, ".cmdline: it is empty"},
		{"nil", []Section{{".cmdline", nil}}, ".cmdline: it is empty"},
		{"twice", []Section{{".initrd", x}, {".initrd", x}}, ".initrd: it is there twice"},
		{"twice in a profile", []Section{{".initrd", x}, {".profile", x}, {".initrd", x}, {".initrd", x}}, ".initrd: it is there twice"},
		{"of the stub", []Section{{".sdmagic", x}}, ".sdmagic: the stub has a section of that name"},
		{"much SBAT", []Section{{".sbat", extent.Bytes(bytes.Repeat([]byte("x,1\n"), 150))}}, ".sbat: 600 bytes, the stub has room for "},
		{"of the stub in a profile", []Section{{".profile", x}, {".text", x}}, ".text: the stub has"},
		{"over 4 GiB", []Section{{".initrd", huge(5 << 30)}}, ".initrd: 5368709120 bytes, the limit"},
		{"together over 4 GiB", []Section{{".linux", huge(2 << 30)}, {".initrd", huge(2 << 30)}}, ".initrd: with its 2147483648 bytes the image reaches 4 GiB"},
		{"too many", many, "98 sections with those of the stub, the limit is 96"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Build(stub, tt.sections)
			if !errors.Is(err, ErrSection) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Build(stub, []Section{{".dtbauto", x}, {".dtbauto", x}}); err != nil {
		t.Errorf("several .dtbauto are allowed: %v", err)
	}
}

func TestBuildRefusesStub(t *testing.T) {
	stub := readStub(t)
	h, err := readHeader(bytes.NewReader(stub), int64(len(stub)))
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile(oracle.File(t, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"))
	if err != nil {
		t.Fatal(err)
	}
	change := func(off int, b ...byte) []byte {
		c := bytes.Clone(stub)
		copy(c[off:], b)
		return c
	}
	for _, tt := range []struct {
		name string
		stub []byte
		want string
	}{
		{"empty", nil, "stub: not a usable PE file: 0 bytes are too few"},
		{"ELF", append([]byte("\x7fELF"), make([]byte, 100)...), `begins with "\x7fE", want "MZ"`},
		{"header offset", change(dosNewHeader, 0xff, 0xff, 0xff, 0x7f), "PE header at 2147483647 in a file of"},
		{"signature", change(h.pe, 'N', 'E'), `signature "NE\x00\x00" at 128`},
		{"PE32", change(h.opt, 0x0b, 0x01), "magic 0x10b, want 0x20b (PE32+)"},
		{"machine", change(h.pe+coffMachine, 0x4c, 0x01), "built for machine 0x014c, want amd64 (0x8664) or arm64 (0xaa64)"},
		{"alignment", change(h.opt+optFileAlignment, 3, 0), "FileAlignment is 3, want a power of two from 512"},
		{"truncated", stub[:0x8000], "section .text: extent out of bounds"},
		{"truncated in the headers", stub[:0x200], "table of 8 sections ends at"},
		{"systemd-boot", loader, `it says of itself in .sdmagic "systemd-boot 2`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Build(tt.stub, typical(t))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	if stub, err := os.ReadFile(stubPath); err == nil {
		f.Add(stub[:0x400])
		f.Add(stub)
	}
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v is no ErrFormat", err)
			}
			return
		}
		m.LoaderInfo()
		for _, s := range m.Sections {
			content(t, s.Section)
		}
		// What can be built on can be read again.
		image, err := Build(b, []Section{{".linux", extent.Bytes([]byte("kernel"))}})
		if err != nil {
			return
		}
		again, err := Read(image, image.Size())
		if err != nil {
			t.Fatal(err)
		}
		if s := again.Section(".linux"); s == nil || string(content(t, s.Section)) != "kernel" {
			t.Error(".linux is lost")
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	stub := readStub(b)
	sections := []Section{{".linux", huge(12 << 20)}, {".initrd", huge(300 << 20)}}
	for b.Loop() {
		if _, err := Build(stub, sections); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBuildMovesDebugDirectory checks the file offset inside the contents that
// has to follow when the headers grow.
func TestBuildMovesDebugDirectory(t *testing.T) {
	stub := readStub(t)
	h, err := readHeader(bytes.NewReader(stub), int64(len(stub)))
	if err != nil {
		t.Fatal(err)
	}
	var data sectionHeader
	for _, s := range h.sections {
		if s.name == ".data" {
			data = s
		}
	}
	dir := h.opt + optDirectoryTable + 8*dirDebug
	le.PutUint32(stub[dir:], data.virtualAddress+64)
	le.PutUint32(stub[dir+4:], 2*debugEntrySize)
	first := data.rawOffset + 64 + debugRawOffset
	le.PutUint32(stub[first:], data.rawOffset+200)
	le.PutUint32(stub[first+debugEntrySize:], 0) // not in the file
	before := bytes.Clone(stub)
	image := build(t, stub, profiles(t))
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	moved := f.Section(".data").Offset
	if moved == data.rawOffset {
		t.Fatal("nothing moved; the test needs more sections")
	}
	entry := image[moved+64+debugRawOffset:]
	if got := le.Uint32(entry); got != moved+200 {
		t.Errorf("file offset in the debug directory %d, want %d", got, moved+200)
	}
	if got := le.Uint32(entry[debugEntrySize:]); got != 0 {
		t.Errorf("an offset of 0 became %d", got)
	}
	if !bytes.Equal(stub, before) {
		t.Error("Build changed the stub")
	}
	le.PutUint32(stub[dir:], 0x7fffffff)
	if _, err := Build(stub, profiles(t)); err == nil || !strings.Contains(err.Error(), "debug directory at address 0x7fffffff is in no section") {
		t.Errorf("error %v", err)
	}
}

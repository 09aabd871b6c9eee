package module_test

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
)

// wlan is a module with something in every field.
func wlan() *module.Info {
	return &module.Info{
		Name:        "wlan_net",
		Machine:     elf.EM_X86_64,
		Vermagic:    "6.12.1-test SMP preempt mod_unload modversions ",
		License:     "GPL v2",
		Version:     "1.4-k",
		Intree:      true,
		Signed:      true,
		Description: "WLAN of \u00c9cole",
		Depends:     []string{"cfg80211", "mac80211"},
		Softdeps:    []string{"pre: crypto-ccm arc4 post: led_class", "nls"},
		Weakdeps:    []string{"rfkill"},
		Aliases:     []string{"pci:v00008086d*sv*sd*bc*sc*i*", "usb:v0BDAp8179d[0-9]*dc*"},
		Firmware:    []string{"wlan/one.bin", "wlan/two.bin"},
		Parameters:  []module.Parameter{{Name: "debug", Type: "int"}, {Name: "names", Type: "array of charp"}, {Name: "raw"}},
		Exports: module.Exports{
			{Name: "wlan_start", CRC: 0x12345678},
			{Name: "wlan_stop", CRC: 0xfedcba98, GPL: true},
			{Name: "__wlan_secret", CRC: 1, GPL: true, Namespace: "WLAN"},
		},
		Imports: module.Imports{
			{Name: "_printk", CRC: 0x92997ed8},
			{Name: "maybe_there", Weak: true},
			{Name: "module_layout", CRC: 0xffffffff},
		},
		ImportNS: []string{"CRYPTO_INTERNAL"},
	}
}

func TestParse(t *testing.T) {
	want := wlan()
	got, err := module.Parse("kernel/wlan-net.ko", moduletest.ELF(want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v\nwanted %+v", got, want)
	}
	if got.Release() != "6.12.1-test" || got.Arch() != "amd64" || !got.Versioned() {
		t.Errorf("Release %q, Arch %q, Versioned %v", got.Release(), got.Arch(), got.Versioned())
	}
	pre, post, other := got.SoftDeps()
	for _, c := range []struct {
		got  []string
		want string
	}{{pre, "crypto-ccm arc4"}, {post, "led_class"}, {other, "nls"}} {
		if strings.Join(c.got, " ") != c.want {
			t.Errorf("soft dependencies: found %q, wanted %q", c.got, c.want)
		}
	}
}

func TestJSON(t *testing.T) {
	want := wlan()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`"exports":"12345678:wlan_start fedcba98!wlan_stop 00000001!__wlan_secret@WLAN"`,
		`"imports":"92997ed8:_printk 00000000?maybe_there ffffffff:module_layout"`,
	} {
		if !strings.Contains(string(text), s) {
			t.Errorf("%s lacks %s", text, s)
		}
	}
	got := new(module.Info)
	if err := json.Unmarshal(text, got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v\nwanted %+v", got, want)
	}
	for _, bad := range []string{`"abc"`, `"92997ed8 x"`, `"xxxxxxxx:a"`, `"92997ed8!a"`, `"92997ed8:"`} {
		var list module.Imports
		if err := json.Unmarshal([]byte(bad), &list); err == nil {
			t.Errorf("Imports %s: no error", bad)
		}
	}
}

// TestParseUnversioned checks what is left without CONFIG_MODVERSIONS.
func TestParseUnversioned(t *testing.T) {
	in := wlan()
	for i := range in.Exports {
		in.Exports[i].CRC = 0
	}
	in.Imports = in.Imports[1:2]
	got, err := module.Parse("wlan.ko", moduletest.ELF(in))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Exports, in.Exports) || !reflect.DeepEqual(got.Imports, in.Imports) || got.Versioned() {
		t.Errorf("found %+v, %+v", got.Exports, got.Imports)
	}
}

func TestModinfo(t *testing.T) {
	tool := oracle.Tool(t, "modinfo")
	info := wlan()
	info.Signed = false // modinfo wants a real one
	file := filepath.Join(t.TempDir(), "wlan-net.ko")
	if err := os.WriteFile(file, moduletest.ELF(info), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ field, want string }{
		{"name", info.Name},
		{"alias", strings.Join(info.Aliases, "\n")},
		{"depends", "cfg80211,mac80211"},
		{"vermagic", info.Vermagic},
		{"firmware", "wlan/one.bin\nwlan/two.bin"},
		{"softdep", strings.Join(info.Softdeps, "\n")},
	} {
		out, err := exec.Command(tool, "-F", c.field, file).CombinedOutput()
		if got := strings.TrimSuffix(string(out), "\n"); err != nil || got != c.want {
			t.Errorf("modinfo -F %s: found %q, %v, wanted %q", c.field, got, err, c.want)
		}
	}
}

func TestCompression(t *testing.T) {
	plain := moduletest.ELF(wlan())
	var gz bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": enc.EncodeAll(plain, nil)}
	for _, args := range [][]string{{"--check=crc32", "--lzma2=dict=1MiB"}, {"--check=crc64"}, {"--check=sha256"}, {"--check=none"}, {"--x86", "--lzma2"}, {"--lzma2=lc=0,lp=2,pb=0"}, {"-0", "--block-size=500"}} {
		cmd := exec.Command(oracle.Tool(t, "xz"), append(args, "-c")...)
		cmd.Stdin = bytes.NewReader(plain)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		files["xz "+strings.Join(args, " ")] = out
	}
	var p module.Parser // shared, to see that nothing is left of the file before
	for name, data := range files {
		info, err := p.Parse("wlan.ko", data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(info, wlan()) {
			t.Errorf("%s: found %+v", name, info)
		}
		if got, err := module.Decompress("x", data, int64(len(plain))); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: Decompress: %d bytes, %v", name, len(got), err)
		}
		if _, err := module.Decompress("x", data, int64(len(plain))-1); !errors.Is(err, module.ErrLimit) {
			t.Errorf("%s: Decompress to less: %v, wanted %v", name, err, module.ErrLimit)
		}
		if name == "plain" {
			continue
		}
		for _, cut := range []int{7, len(data) / 2, len(data) - 1} {
			if _, err := module.Decompress("x.ko", data[:cut], 1<<20); err == nil {
				t.Errorf("%s: no error for the first %d of %d bytes", name, cut, len(data))
			} else if !strings.HasPrefix(err.Error(), "x.ko: ") {
				t.Errorf("%s: error %q does not name the file", name, err)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	good := moduletest.ELF(wlan())
	change := func(at int, b ...byte) []byte {
		bad := bytes.Clone(good)
		copy(bad[at:], b)
		return bad
	}
	symtab := func(f func(file *elf.File, bad []byte)) []byte {
		bad := bytes.Clone(good)
		file, err := elf.NewFile(bytes.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		f(file, bad)
		return bad
	}
	long := wlan()
	long.Imports = append(long.Imports, module.Import{Name: strings.Repeat("x", 512)})
	odd := wlan()
	odd.Imports = append(odd.Imports, module.Import{Name: "a\nb"})
	headers := int(binary.LittleEndian.Uint64(good[40:]))
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "found an empty file, wanted an ELF file"},
		{"zeros", make([]byte, 4096), "found 4096 zero bytes, wanted an ELF file"},
		{"text", []byte("#!/bin/sh\n"), `found "#!/bin/s", wanted an ELF file`},
		{"header only", good[:40], "found 40 bytes, wanted an ELF header of 64"},
		{"truncated", good[:headers+10], "section headers at"},
		{"class", change(4, 3), "found ELF class"},
		{"byte order", change(5, 0), "found ELF byte order ELFDATANONE, wanted little or big endian"},
		{"executable", change(16, 2), "found ELF type ET_EXEC, wanted ET_REL (relocatable)"},
		{"header size", change(58, 40), "found section headers of 40 bytes, wanted 64"},
		{"names", change(62, 0xff, 0xff), "found no section names in section 65535 of"},
		{"offset", change(40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "section headers at 18446744073709551615"},
		{"no modinfo", bytes.ReplaceAll(good, []byte(".modinfo\x00"), []byte(".notinfo\x00")), "found no section .modinfo"},
		{"long symbol", moduletest.ELF(long), "found a symbol of more than 511 bytes"},
		{"odd symbol", moduletest.ELF(odd), `found a symbol "a\nb", wanted printable ASCII without '@'`},
		{"symbol's name", symtab(func(f *elf.File, bad []byte) {
			binary.LittleEndian.PutUint32(bad[f.Section(".symtab").Offset+24:], 1<<30)
		}), "found a symbol's name at 1073741824 of"},
	} {
		_, err := module.Parse("kernel/wlan.ko", c.data)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "kernel/wlan.ko: ") {
			t.Errorf("%s: error %v, wanted %q", c.name, err, c.want)
		} else if !errors.Is(err, module.ErrFormat) {
			t.Errorf("%s: error %v is not %v", c.name, err, module.ErrFormat)
		}
	}
}

// TestParseSharedNames has many symbols with one long name, which would take
// more memory than the file's size if each had its copy.
func TestParseSharedNames(t *testing.T) {
	info := &module.Info{Name: "x", Machine: elf.EM_X86_64, Imports: make(module.Imports, 1000)}
	for i := range info.Imports {
		info.Imports[i].Name = strings.Repeat("y", 500)
	}
	data := moduletest.ELF(info)
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	// Let all share the name of the first, and drop the others.
	symtab, strtab := file.Section(".symtab"), file.Section(".strtab")
	for i := uint64(1); i <= 1000; i++ {
		binary.LittleEndian.PutUint32(data[symtab.Offset+24*i:], 1)
	}
	headers := binary.LittleEndian.Uint64(data[40:])
	cut := strtab.Offset + 1000
	tail := bytes.Clone(data[strtab.Offset+strtab.Size:])
	data = append(data[:cut], tail...)
	headers -= strtab.Size - 1000
	binary.LittleEndian.PutUint64(data[40:], headers)
	for i, s := range file.Sections {
		h := data[int(headers)+64*i:]
		if s.Name == ".strtab" {
			binary.LittleEndian.PutUint64(h[32:], 1000)
		}
		if s.Offset > strtab.Offset {
			binary.LittleEndian.PutUint64(h[24:], s.Offset-(strtab.Size-1000))
		}
	}
	_, err = module.Parse("x.ko", data)
	if err == nil || !strings.Contains(err.Error(), "found more symbol names than the file has bytes") {
		t.Errorf("error %v", err)
	}
}

func TestName(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/fs/ext4/ext4.ko":                  "ext4",
		"kernel/drivers/net/can-dev.ko.xz":        "can_dev",
		"snd-hda-intel":                           "snd_hda_intel",
		"kernel/arch/x86/crypto/a-b.ko\n":         "a_b",
		"updates/dkms/nvidia-current-drm.ko.zst":  "nvidia_current_drm",
		"kernel/drivers/net/dsa/sja1105-x.y.ko.x": "sja1105_x",
	} {
		if got := module.Name(file); got != want {
			t.Errorf("Name(%q) = %q, wanted %q", file, got, want)
		}
	}
	for name, want := range map[string]bool{"a.ko": true, "x/a.ko.xz": true, "a.ko.zst": true, "a.ko.gz": true, ".ko": false, "a.xz": false, "a.kold": false, "modules.dep": false} {
		if got := module.IsFile(name); got != want {
			t.Errorf("IsFile(%q) = %v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(moduletest.ELF(wlan()))
	f.Add(moduletest.ELF(&module.Info{Name: "a", Machine: elf.EM_AARCH64, Exports: module.Exports{{Name: "x", Namespace: "N"}}}))
	big := []byte{0x7f, 'E', 'L', 'F', 1, 2, 1, 15: 0, 17: 1}
	f.Add(append(big, make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := module.Parse("fuzz.ko", data)
		if err != nil {
			return
		}
		// What can be read can be stored.
		text, err := json.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		again := new(module.Info)
		if err := json.Unmarshal(text, again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(text, second) {
			t.Fatalf("%s\nbecame\n%s (%v)", text, second, err)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x00a\x00\x00\x00\x00"))
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00a"))
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := module.Decompress("fuzz.ko", data, 1<<20)
		if err == nil && len(out) > 1<<20 {
			t.Fatalf("%d bytes", len(out))
		}
	})
}

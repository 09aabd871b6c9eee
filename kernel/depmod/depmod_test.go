package depmod_test

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
)

const release = "6.12.1-test"

// testModule is a module in short: words with the prefix "+" are exports,
// "-" imports, "?" weak imports, "@" aliases, "~" soft dependencies.
func testModule(path string, words ...string) depmod.Module {
	info := &module.Info{Name: module.Name(path), Machine: elf.EM_X86_64, Vermagic: release + " SMP "}
	for _, w := range words {
		rest := w[1:]
		switch w[0] {
		case '+':
			info.Exports = append(info.Exports, module.Export{Name: rest, CRC: 7})
		case '-':
			info.Imports = append(info.Imports, module.Import{Name: rest})
		case '?':
			info.Imports = append(info.Imports, module.Import{Name: rest, Weak: true})
		case '@':
			info.Aliases = append(info.Aliases, rest)
		case '~':
			info.Softdeps = append(info.Softdeps, rest)
		default:
			panic(w)
		}
	}
	return depmod.Module{Path: path, Info: info}
}

// install writes the modules and files of an input to a directory as depmod
// wants it and returns the latter.
func install(t *testing.T, in depmod.Input) string {
	dir := filepath.Join(t.TempDir(), "lib/modules", release)
	write := func(name string, data []byte) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range in.Modules {
		write(m.Path, moduletest.ELF(m.Info))
	}
	for name, data := range map[string][]byte{"modules.order": in.Order, "modules.builtin": in.Builtin, "modules.builtin.modinfo": in.BuiltinModinfo} {
		if data != nil {
			write(name, data)
		}
	}
	return dir
}

var builtinModinfo = []byte("fuse.license=GPL\x00fuse.alias=devname:fuse\x00fuse.alias=char-major-10-229\x00" +
	"8250.alias=acpi*:PNP0[5-7]-01:*\x008250.alias=broken[\x008250.alias=fs-x\x00fuse.alias=fs-x\x00cut.alias=off")

func TestIndex(t *testing.T) {
	chain := []depmod.Module{
		testModule("kernel/a/top.ko", "-mid_left", "-mid_right", "-printk", "@pci:v00001AF4d*sv*"),
		testModule("kernel/b/mid-left.ko", "+mid_left", "-bottom1"),
		testModule("kernel/c/mid-right.ko", "+mid_right", "-bottom2", "-mid_left", "?maybe"),
		testModule("kernel/bottom.ko", "+bottom1", "+bottom2", "+unused"),
		testModule("kernel/alone.ko"),
	}
	var many []depmod.Module
	var manyOrder []byte
	for i := range 700 {
		path := fmt.Sprintf("kernel/drivers/dir-%d/driver-%d-x%x.ko", i%7, i, i*i)
		words := []string{fmt.Sprintf("+symbol_%d", i*31), fmt.Sprintf("+do%d", i), fmt.Sprintf("@usb:v%04Xp%04Xd*", i*7%1000, i)}
		// Few levels: kmod counts paths, whose number grows exponentially.
		for j := i + 100 + i%5; j < 700 && j < i+140; j += 13 {
			words = append(words, fmt.Sprintf("-symbol_%d", j*31))
		}
		many = append(many, testModule(path, words...))
		if i%3 == 0 {
			manyOrder = fmt.Appendf(manyOrder, "kernel/drivers/dir-%d/driver-%d-x%x.ko\n", (700-i)%7, 700-i, (700-i)*(700-i))
		}
	}
	unversioned := testModule("kernel/plain.ko", "+foo", "+foo_bar")
	unversioned.Info.Exports = module.Exports{{Name: "plain_a"}, {Name: "plain_b", Namespace: "SPACE", GPL: true}}

	for _, c := range []struct {
		name string
		in   depmod.Input
	}{
		{"no modules", depmod.Input{}},
		{"no modules.order", depmod.Input{Modules: chain}},
		{"modules.order", depmod.Input{Modules: chain, Order: []byte("kernel/alone.ko\nkernel/bottom.ko\nkernel/gone.ko\nkernel/c/mid-right.ko\n")}},
		{"damaged modules.order", depmod.Input{Modules: chain, Order: []byte("kernel/alone.ko\nkernel/bottom.ko\nkernel/c/mid-right.ko")}},
		{"repeated lines", depmod.Input{Modules: chain, Order: []byte("kernel/bottom.ko\nkernel/alone.ko\n\nkernel/bottom.ko\n")}},
		{"many", depmod.Input{Modules: many}},
		{"many with modules.order", depmod.Input{Modules: many, Order: manyOrder}},
		{"exports of no version", depmod.Input{Modules: []depmod.Module{unversioned, testModule("kernel/user.ko", "-plain_b")}}},
		{"one symbol, two modules", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/x.ko", "+same"), testModule("kernel/y.ko", "+same"), testModule("kernel/z.ko", "-same")},
			Order: []byte("kernel/y.ko\nkernel/x.ko\nkernel/z.ko\n")}},
		{"symbol names", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/s.ko", "+a", "+ab", "+abc", "+abcd", "+abcde", "+abd", "+b"), testModule("kernel/t.ko", "-.ab")}}},
		{"updates", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/net/one.ko", "+one_old", "@old"), testModule("updates/dkms/one.ko", "+one_new", "@new"),
			testModule("kernel/two.ko", "-one_new", "-one_old"), testModule("extra/three.ko")},
			Order: []byte("kernel/two.ko\nkernel/net/one.ko\n")}},
		{"aliases", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/al.ko", "@a-b[0-9]-c", "@open[bracket", "@close]bracket", "@[a]-[b]", "@same", "@same", "@two words"),
			testModule("kernel/al-2.ko", "@same", "@sam", "@samf", "@a_b[0-9]_c")}}},
		{"soft dependencies", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/sd.ko", "~pre: a b post: c", "~bare"), testModule("kernel/sd2.ko", "~post: x")}}},
		{"device nodes", depmod.Input{Modules: []depmod.Module{
			testModule("kernel/d1.ko", "@devname:net/tun", "@char-major-10-200"),
			testModule("kernel/d2.ko", "@block-major-7-*", "@block-major-7-1", "@devname:loop-control"),
			testModule("kernel/d3.ko", "@char-major-1-2x", "@char-major-3-4", "@devname:first", "@devname:second"),
			testModule("kernel/d4.ko", "@char-major-10", "@char-major-x-1")}}},
		{"builtin", depmod.Input{Modules: chain[:1],
			Builtin:        []byte("kernel/fs/fuse/fuse.ko\nkernel/drivers/tty/serial/8250/8250.ko\nkernel/a-b.ko\n#comment\nkernel/other/fuse.ko\n"),
			BuiltinModinfo: builtinModinfo}},
		{"empty builtin", depmod.Input{Modules: chain, Order: []byte{}, Builtin: []byte{}, BuiltinModinfo: []byte{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := depmod.Index(c.in)
			if err != nil {
				t.Fatal(err)
			}
			dir := install(t, c.in)
			if len(c.in.Modules) == 0 {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			want, _, _ := reference(t, dir)
			compare(t, res.Files, want)

			// The order of the input does not matter, nor that it was stored.
			text, err := json.Marshal(c.in.Modules)
			if err != nil {
				t.Fatal(err)
			}
			again := c.in
			again.Modules = nil
			if err := json.Unmarshal(text, &again.Modules); err != nil {
				t.Fatal(err)
			}
			slices.Reverse(again.Modules)
			res2, err := depmod.Index(again)
			if err != nil || !reflect.DeepEqual(res, res2) {
				t.Errorf("the index of the same modules in another order differs (%v)", err)
			}
		})
	}
}

func TestShadowed(t *testing.T) {
	res, err := depmod.Index(depmod.Input{Modules: []depmod.Module{
		testModule("updates/one.ko"), testModule("kernel/net/one.ko"), testModule("kernel/other/one.ko"),
		testModule("kernel/b/two.ko"), testModule("kernel/a/two.ko"), testModule("kernel/three.ko"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []depmod.Shadowed{
		{Path: "kernel/b/two.ko", By: "kernel/a/two.ko", Tie: true},
		{Path: "kernel/net/one.ko", By: "updates/one.ko"},
		{Path: "kernel/other/one.ko", By: "updates/one.ko"},
	}
	if !reflect.DeepEqual(res.Shadowed, want) {
		t.Errorf("found %+v\nwanted %+v", res.Shadowed, want)
	}
	for _, path := range []string{"updates/one.ko", "kernel/a/two.ko", "kernel/three.ko"} {
		if dep := string(res.Files["modules.dep"]); !strings.Contains(dep, path+":\n") || strings.Count(dep, "\n") != 3 {
			t.Errorf("modules.dep has %q, wanted three lines, among them %s", dep, path)
		}
	}
}

func TestUnresolved(t *testing.T) {
	in := depmod.Input{
		Modules: []depmod.Module{
			testModule("kernel/user.ko", "-printk", "-gone", "?maybe", "-provided", "-__this_module"),
			testModule("kernel/provider.ko", "+provided", "-printk", "-lost"),
		},
		Order:     []byte("kernel/user.ko\nkernel/provider.ko\n"),
		SystemMap: []byte("ffffffff81000000 T _text\nffffffff82a0c3e4 r __ksymtab_printk\nffffffff82a0c3e4 r __kstrtab_lost\n"),
	}
	res, err := depmod.Index(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []depmod.Unresolved{{"kernel/user.ko", "gone"}, {"kernel/provider.ko", "lost"}}
	if !reflect.DeepEqual(res.Unresolved, want) {
		t.Errorf("found %+v, wanted %+v", res.Unresolved, want)
	}

	dir := install(t, in)
	systemMap := filepath.Join(t.TempDir(), "System.map")
	if err := os.WriteFile(systemMap, in.SystemMap, 0o644); err != nil {
		t.Fatal(err)
	}
	files, out, _ := reference(t, dir, "-e", "-F", systemMap)
	compare(t, res.Files, files)
	if n := strings.Count(out, "needs unknown symbol"); n != len(want) {
		t.Errorf("depmod warns of %d symbols, wanted %d:\n%s", n, len(want), out)
	}
	for _, u := range want {
		if !strings.Contains(out, u.Path+" needs unknown symbol "+u.Symbol) {
			t.Errorf("depmod does not warn of %v:\n%s", u, out)
		}
	}
}

func TestCycle(t *testing.T) {
	in := depmod.Input{Modules: []depmod.Module{
		testModule("kernel/user.ko", "-from_b"),
		testModule("kernel/b.ko", "+from_b", "-from_c"),
		testModule("kernel/c.ko", "+from_c", "-from_a", "-base"),
		testModule("kernel/a.ko", "+from_a", "-from_b"),
		testModule("kernel/base.ko", "+base"),
	}}
	_, err := depmod.Index(in)
	var cycle *depmod.CycleError
	if !errors.As(err, &cycle) {
		t.Fatalf("error %v, wanted a CycleError", err)
	}
	if want := "modules need each other: a -> b -> c -> a"; err.Error() != want {
		t.Errorf("error %q, wanted %q", err, want)
	}
	dir := install(t, in)
	root := strings.TrimSuffix(dir, "/lib/modules/"+release)
	out, err := exec.Command(oracle.Tool(t, "depmod"), "-b", root, release).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Found 3 modules in dependency cycles") {
		t.Errorf("depmod: %v\n%s", err, out)
	}
}

func TestIndexErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		mods []depmod.Module
		want string
	}{
		{"suffix", []depmod.Module{testModule("kernel/a.txt")}, `module "kernel/a.txt": wanted a path that ends in .ko`},
		{"space", []depmod.Module{testModule("kernel/a b.ko")}, `module "kernel/a b.ko": the path contains byte 0x20`},
		{"no facts", []depmod.Module{{Path: "kernel/a.ko"}}, "module kernel/a.ko: no facts"},
		{"twice", []depmod.Module{testModule("kernel/a.ko"), testModule("kernel/a.ko")}, "module kernel/a.ko: given twice"},
		{"alias", []depmod.Module{testModule("kernel/a.ko", "@caf\u00e9")}, `modules.alias: kernel/a.ko: alias "café" contains byte 0xc3, wanted printable ASCII`},
		{"newline", []depmod.Module{testModule("kernel/a.ko", "@x y\ninstall sh")}, `modules.alias: kernel/a.ko: alias "x y\ninstall sh" contains byte 0x0a`},
		{"soft dependency", []depmod.Module{testModule("kernel/a.ko", "~pre: \x01")}, "modules.softdep: kernel/a.ko: softdep"},
		{"symbol", []depmod.Module{testModule("kernel/a.ko", "+a\x7f")}, "modules.symbols: kernel/a.ko: symbol"},
	} {
		_, err := depmod.Index(depmod.Input{Modules: c.mods})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error %v, wanted %q", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		in   depmod.Input
		want string
	}{
		{depmod.Input{Builtin: []byte("kernel/\xff.ko\n")}, `modules.builtin.bin: line 1 of modules.builtin: "\xff" contains byte 0xff`},
		{depmod.Input{Builtin: []byte("kernel/a.ko\n" + strings.Repeat("x", 5000) + "\n")}, "modules.builtin.bin: line 2 of modules.builtin has 5001 bytes, the limit is 4095"},
		{depmod.Input{SystemMap: []byte("ffffffffffffffff B The real System.map is elsewhere\n")}, "found no exported symbols (__ksymtab_…) in a System.map of 52 bytes"},
		{depmod.Input{BuiltinModinfo: []byte("a.alias=\xff\x00")}, `modules.builtin.alias.bin: modules.builtin.modinfo: alias of a: "\xff" contains byte 0xff`},
	} {
		_, err := depmod.Index(c.in)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %v, wanted %q", err, c.want)
		}
	}
}

// TestModprobe lets modprobe read an index.
func TestModprobe(t *testing.T) {
	in := depmod.Input{Modules: []depmod.Module{
		testModule("kernel/top-module.ko", "-mid", "@pci:v00001AF4d*sv*", "~pre: soft"),
		testModule("kernel/mid.ko", "+mid", "-bottom"),
		testModule("kernel/bottom.ko", "+bottom"),
		testModule("kernel/soft.ko"),
	}, Builtin: []byte("kernel/fs/fuse/fuse.ko\n"), BuiltinModinfo: builtinModinfo}
	dir := install(t, in)
	res, err := depmod.Index(in)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range res.Files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root := strings.TrimSuffix(dir, "/lib/modules/"+release)
	for _, c := range []struct{ name, want string }{
		{"top_module", "bottom mid soft top-module"},
		{"top-module", "bottom mid soft top-module"},
		{"pci:v00001AF4d00001000sv00", "bottom mid soft top-module"},
		{"symbol:bottom", "bottom"},
		{"fuse", "builtin fuse"},
	} {
		out, err := exec.Command(oracle.Tool(t, "modprobe"), "-D", "-d", root, "-S", release, "-C", t.TempDir(), c.name).CombinedOutput()
		if err != nil {
			t.Errorf("modprobe %s: %v\n%s", c.name, err, out)
		}
		got := strings.NewReplacer("insmod "+dir+"/kernel/", "", ".ko \n", " ", "\n", " ").Replace(string(out))
		if got = strings.TrimSpace(got); got != c.want {
			t.Errorf("modprobe %s: found %q, wanted %q", c.name, got, c.want)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add("a", "x", "b", "x", []byte("kernel/a.ko\n"), builtinModinfo)
	f.Add("a-b", "pci:v[0-9]*", "c.d", "", []byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, name1, word1, name2, word2 string, lines, modinfo []byte) {
		in := depmod.Input{
			Modules: []depmod.Module{
				testModule("kernel/"+name1+".ko", "+"+word1, "-"+word2, "@"+word1, "~"+word2),
				testModule("updates/"+name2+".ko", "+"+word2, "-"+word1, "@"+word2, "@devname:"+word1),
			},
			Order: lines, Builtin: lines, BuiltinModinfo: modinfo, SystemMap: modinfo,
		}
		res, err := depmod.Index(in)
		if err != nil {
			return
		}
		if n := strings.Count(string(res.Files["modules.dep"]), "\n"); n+len(res.Shadowed) != 2 {
			t.Errorf("modules.dep has %d lines: %q", n, res.Files["modules.dep"])
		}
	})
}

package module_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
)

// testSet is a small kernel.
func testSet() *module.Set {
	entry := func(path string, info module.Info) module.Entry {
		info.Name = module.Name(path)
		return module.Entry{Path: path, Info: &info}
	}
	return module.NewSet([]module.Entry{
		entry("kernel/fs/xfs/xfs.ko.xz", module.Info{Depends: []string{"libcrc32c"}}),
		entry("kernel/fs/ext4/ext4.ko.xz", module.Info{Depends: []string{"jbd2", "mbcache"}, Softdeps: []string{"pre: crypto-crc32c", "pre: not-there"}}),
		entry("kernel/fs/jbd2/jbd2.ko.xz", module.Info{}),
		entry("kernel/lib/libcrc32c.ko.xz", module.Info{Softdeps: []string{"pre: crc32c"}}),
		entry("kernel/crypto/crc32c_generic.ko.xz", module.Info{Aliases: []string{"crypto-crc32c", "crc32c"}}),
		entry("kernel/arch/x86/crypto/crc32c-intel.ko.xz", module.Info{Aliases: []string{"crc32c", "crypto-crc32c", "cpu:type:x86,*feature:*0094*"}}),
		entry("kernel/drivers/net/virtio_net.ko.xz", module.Info{Depends: []string{"net_failover"}, Aliases: []string{"virtio:d00000001v*"}}),
		entry("kernel/drivers/net/net_failover.ko.xz", module.Info{}),
		entry("kernel/drivers/net/ethernet/intel/e1000/e1000.ko.xz", module.Info{Firmware: []string{"intel/e1000.bin", "a.bin"}, Weakdeps: []string{"late-one"}}),
		entry("kernel/drivers/net/ethernet/realtek/r8169.ko.xz", module.Info{Firmware: []string{"rtl_nic/rtl8168g-2.fw", "a.bin"}, Softdeps: []string{"pre: realtek post: late_one"}}),
		entry("kernel/drivers/net/phy/realtek.ko.xz", module.Info{}),
		entry("kernel/late-one.ko", module.Info{}),
		entry("kernel/vendor.ko", module.Info{Imports: module.Imports{{Name: "vendor_core"}}}),
		entry("kernel/vendor-lib.ko", module.Info{Exports: module.Exports{{Name: "vendor_core"}}}),
		entry("kernel/broken.ko", module.Info{Depends: []string{"nowhere"}}),
		entry("kernel/dup.ko", module.Info{}),
		entry("updates/dup.ko", module.Info{}),
	}, []byte("kernel/fs/mbcache.ko\nkernel/fs/fuse/fuse.ko\n"))
}

func TestSelect(t *testing.T) {
	for _, c := range []struct{ patterns, want string }{
		{"jbd2", "kernel/fs/jbd2/jbd2.ko.xz"},
		{"libcrc32c", "kernel/arch/x86/crypto/crc32c-intel.ko.xz kernel/crypto/crc32c_generic.ko.xz kernel/lib/libcrc32c.ko.xz"},
		{"ext4", "kernel/arch/x86/crypto/crc32c-intel.ko.xz kernel/crypto/crc32c_generic.ko.xz kernel/fs/ext4/ext4.ko.xz kernel/fs/jbd2/jbd2.ko.xz"},
		{"virtio*", "kernel/drivers/net/net_failover.ko.xz kernel/drivers/net/virtio_net.ko.xz"},
		{"virtio-net", "kernel/drivers/net/net_failover.ko.xz kernel/drivers/net/virtio_net.ko.xz"},
		{"late_one", "kernel/late-one.ko"},
		{"kernel/drivers/net/*", "kernel/drivers/net/net_failover.ko.xz kernel/drivers/net/virtio_net.ko.xz"},
		{"kernel/drivers/net/** !e1000 !virtio_net !kernel/drivers/net/ethernet/realtek/r*", "kernel/drivers/net/net_failover.ko.xz kernel/drivers/net/phy/realtek.ko.xz"},
		{"!net_failover virtio_net", "kernel/drivers/net/net_failover.ko.xz kernel/drivers/net/virtio_net.ko.xz"},
		{"**/e1000.ko", "kernel/drivers/net/ethernet/intel/e1000/e1000.ko.xz kernel/late-one.ko"},
		{"kernel/**/r8169", "kernel/drivers/net/ethernet/realtek/r8169.ko.xz kernel/drivers/net/phy/realtek.ko.xz kernel/late-one.ko"},
		{"kernel/fs/jbd2/jbd2.ko.xz", "kernel/fs/jbd2/jbd2.ko.xz"},
		{"kernel/fs/j[a-c]d2/**", "kernel/fs/jbd2/jbd2.ko.xz"},
		{"vendor", "kernel/vendor-lib.ko kernel/vendor.ko"},
		{"fuse", ""},
		{"kernel/fs/fuse/*", ""},
		{"dup", "updates/dup.ko"},
		{"", ""},
	} {
		sel, err := testSet().Select(strings.Fields(c.patterns)...)
		if err != nil {
			t.Errorf("%s: %v", c.patterns, err)
		} else if got := strings.Join(sel.Paths, " "); got != c.want {
			t.Errorf("%s: found %s\nwanted %s", c.patterns, got, c.want)
		}
	}
	sel, err := testSet().Select("e1000", "r8169")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(sel.Firmware, " "), "a.bin intel/e1000.bin rtl_nic/rtl8168g-2.fw"; got != want {
		t.Errorf("firmware: found %s, wanted %s", got, want)
	}
}

func TestSelectErrors(t *testing.T) {
	for _, c := range []struct{ pattern, want string }{
		{"ext5", `module pattern "ext5" matches none of the 17 modules; did you mean "ext4"?`},
		{"virtionet", `module pattern "virtionet" matches none of the 17 modules; did you mean "virtio_net"?`},
		{"!zzzzzzzz", `module pattern "zzzzzzzz" matches none of the 17 modules`},
		{"kernel/net/e1000", `module pattern "kernel/net/e1000" matches none of the 17 modules; did you mean "kernel/drivers/net/ethernet/intel/e1000/e1000.ko.xz"?`},
		{"kernel/drivers/net/r8169", `module pattern "kernel/drivers/net/r8169" matches none of the 17 modules; did you mean "kernel/drivers/net/ethernet/realtek/r8169.ko.xz"?`},
		{"kernel/sound/**", `module pattern "kernel/sound/**" matches none of the 17 modules`},
		{"", "module pattern is empty"},
		{"/lib/modules/x.ko", `module pattern "/lib/modules/x.ko" begins with a slash; paths are relative to /lib/modules/RELEASE, as kernel/fs/ext4/ext4.ko`},
		{"ext[0-9", `module pattern "ext[0-9" has unmatched brackets`},
		{"broken", "module kernel/broken.ko needs module nowhere, which is neither among the 17 modules nor built in"},
	} {
		sel, err := testSet().Select(c.pattern)
		if err == nil || err.Error() != c.want {
			t.Errorf("%q: found %v, error %v\nwanted %s", c.pattern, sel, err, c.want)
		}
	}
}

func TestLookup(t *testing.T) {
	s := testSet()
	for _, c := range []struct{ name, want string }{
		{"crc32c", "kernel/arch/x86/crypto/crc32c-intel.ko.xz kernel/crypto/crc32c_generic.ko.xz"},
		{"virtio:d00000001v00001AF4", "kernel/drivers/net/virtio_net.ko.xz"},
		{"cpu:type:x86,ven0000fam0006mod00DD:feature:,0001,0094,0095", "kernel/arch/x86/crypto/crc32c-intel.ko.xz"},
		{"virtio:d00000002v00001AF4", ""},
		{"fuse", ""},
		{"late-one", "kernel/late-one.ko"},
	} {
		var got []string
		for _, e := range s.Lookup(c.name) {
			got = append(got, e.Path)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: found %q, wanted %s", c.name, got, c.want)
		}
	}
	if !s.Builtin("fuse") || s.Builtin("ext4") {
		t.Error("Builtin")
	}
}

func FuzzSelect(f *testing.F) {
	f.Add("a*[!b-d]?")
	f.Add(`[\`)
	set := testSet()
	f.Fuzz(func(t *testing.T, pattern string) {
		if len(pattern) > 100 {
			return
		}
		if sel, err := set.Select(pattern); err == nil && len(sel.Paths) == 0 && !strings.ContainsAny(pattern, "*?[\\!") && !strings.Contains(pattern, "fuse") && !strings.Contains(pattern, "mbcache") {
			t.Errorf("pattern %q selects nothing", pattern)
		}
	})
}

// TestDepmodAgrees compares a selection's closure with modprobe's.
func TestDepmodAgrees(t *testing.T) {
	depmod, modprobe := oracle.Tool(t, "depmod"), oracle.Tool(t, "modprobe")
	const release = "6.12.1-test"
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules", release)
	infos := []*module.Info{
		{Name: "top", Imports: module.Imports{{Name: "left"}, {Name: "right"}}, Softdeps: []string{"pre: soft-alias post: later"}},
		{Name: "left", Exports: module.Exports{{Name: "left"}}, Imports: module.Imports{{Name: "base"}}},
		{Name: "right", Exports: module.Exports{{Name: "right"}}, Imports: module.Imports{{Name: "base"}}, Softdeps: []string{"pre: unknown"}},
		{Name: "base", Exports: module.Exports{{Name: "base"}}},
		{Name: "soft_one", Aliases: []string{"soft-alias"}, Imports: module.Imports{{Name: "deep"}}},
		{Name: "soft_two", Aliases: []string{"soft-*"}},
		{Name: "deep", Exports: module.Exports{{Name: "deep"}}},
		{Name: "later"},
		{Name: "alone"},
	}
	var entries []module.Entry
	for _, i := range infos {
		path := "kernel/" + i.Name + ".ko"
		if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
			t.Fatal(err)
		}
		data := moduletest.ELF(i)
		if err := os.WriteFile(filepath.Join(dir, path), data, 0o644); err != nil {
			t.Fatal(err)
		}
		parsed, err := module.Parse(path, data)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, module.Entry{Path: path, Info: parsed})
	}
	if out, err := exec.Command(depmod, "-b", root, release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v\n%s", err, out)
	}
	set := module.NewSet(entries, nil)
	for _, i := range infos {
		out, err := exec.Command(modprobe, "-D", "-d", root, "-S", release, "-C", t.TempDir(), i.Name).CombinedOutput()
		if err != nil {
			t.Fatalf("modprobe %s: %v\n%s", i.Name, err, out)
		}
		var want []string
		for _, line := range strings.Split(string(out), "\n") {
			if f := strings.Fields(line); len(f) > 1 {
				want = append(want, strings.TrimPrefix(f[1], dir+"/"))
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		sel, err := set.Select(i.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sel.Paths, want) {
			t.Errorf("%s: found %q, modprobe loads %q", i.Name, sel.Paths, want)
		}
	}
}

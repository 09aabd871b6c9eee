package devlinks

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

const devname = `# Device nodes to trigger on-demand module loading.
fuse fuse c10:229
tun net/tun c10:200
kvm kvm c10:232
x ../etc c1:3
x /etc c1:3
x y
x y p1:2
loop z b7:256
`

func TestParseStatic(t *testing.T) {
	got := fmt.Sprint(parseStatic([]byte(devname)))
	want := fmt.Sprint([]static{{"fuse", unix.S_IFCHR, 10, 229}, {"net/tun", unix.S_IFCHR, 10, 200}, {"kvm", unix.S_IFCHR, 10, 232}, {"z", unix.S_IFBLK, 7, 256}})
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMakeStatic(t *testing.T) {
	oracle.Root(t)
	tr := newTree(t)
	file := filepath.Join(tr.sys, "modules.devname")
	tr.write(file, devname)
	tr.write(filepath.Join(tr.dev, "z"), "is there")
	k := New(tr.sys, tr.dev)
	for range 2 {
		if err := k.MakeStatic(file); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"fuse": "20666 0 10:229", "net/tun": "20666 0 10:200", "kvm": "20660 36 10:232", "z": "100644 0 0:0"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(tr.dev, name), &st); err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprintf("%o %d %d:%d", st.Mode, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev)); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if err := k.MakeStatic(filepath.Join(tr.sys, "none")); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(tr.dev), "etc")); !os.IsNotExist(err) {
		t.Errorf("a node outside: %v", err)
	}
}

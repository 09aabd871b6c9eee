package mount

import (
	"os"
	"testing"
)

func TestParseInfo(t *testing.T) {
	const data = `21 1 0:20 / / ro,nodev shared:1 - overlay overlay ro,lowerdir=/l/1:/l/0
36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
40 21 0:33 / /var rw - tmpfs tmpfs rw
`
	got, err := ParseInfo(data)
	want := []Point{{"/", "overlay", "overlay", "ro,nodev"}, {`/mnt 2\`, "ext3", "/dev/root", "rw,noatime"}, {"/var", "tmpfs", "tmpfs", "rw"}}
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
	_, err = ParseInfo("21 1 0:20 / / ro\n")
	if want := `mountinfo: unexpected line "21 1 0:20 / / ro\n"`; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	// The kernel's own.
	self, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	points, err := ParseInfo(string(self))
	root := false
	for _, p := range points {
		root = root || p.Path == "/"
	}
	if err != nil || !root {
		t.Errorf("this system's mounts: %v, %v", points, err)
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/var", "/var", true}, {"/var/lib", "/var", true}, {"/variable", "/var", false}, {"/", "/var", false}, {"/x", "/", true},
	} {
		if got := Below(c.path, c.dir); got != c.want {
			t.Errorf("Below(%q, %q) = %v", c.path, c.dir, got)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt\\0402\\ rw - ext3 /dev/root rw\n")
	f.Fuzz(func(t *testing.T, data string) { _, _ = ParseInfo(data) })
}

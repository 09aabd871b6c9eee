//go:build linux

package modules

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kilnhq/kiln/machine/cmdline"
)

func TestReadConfig(t *testing.T) {
	c, err := ReadConfig(fstest.MapFS{
		"etc/modprobe.d/a.conf":     {Data: []byte("options kvm-amd nested=0 \\\n avic=1\nblacklist pcspkr\ninstall x /bin/false\n")},
		"usr/lib/modprobe.d/a.conf": {Data: []byte("options kvm_amd hidden=1\n")},
		"run/modprobe.d/b.conf": {Data: []byte("options kvm_amd sev=1\noptions\nblacklist\n# options kvm_amd no=1\n" +
			"options\tlabel  text=\"two  words\" \t\"other=a b\" \nweakdep a b\nremove y z\nfly me\n")},
		"usr/lib/modprobe.d/README": {Data: []byte("options kvm_amd no=1\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Parameters("kvm_amd"), "nested=0   avic=1 sev=1"; got != want {
		t.Errorf("options are %q, want %q", got, want)
	}
	if got, want := c.Parameters("label"), "text=\"two  words\" \t\"other=a b\""; got != want {
		t.Errorf("options are %q, want %q", got, want)
	}
	if got := c.blacklisted("pcspkr"); got != "blacklisted in /etc/modprobe.d/a.conf" || c.blacklisted("x") != "" {
		t.Errorf("blacklisted: %q, %q", got, c.blacklisted("x"))
	}
	want := []string{
		`etc/modprobe.d/a.conf: "install" for x is ignored: it would run a program`,
		`run/modprobe.d/b.conf: "options" says nothing about which module`,
		`run/modprobe.d/b.conf: "blacklist" says nothing about which module`,
		`run/modprobe.d/b.conf: "remove" for y is ignored: it would run a program`,
		`run/modprobe.d/b.conf: found "fly", want options, blacklist, alias or softdep`,
	}
	if !slices.Equal(c.Notes(), want) {
		t.Errorf("got notes\n%s\nwant\n%s", strings.Join(c.Notes(), "\n"), strings.Join(want, "\n"))
	}
}

func TestCommandLine(t *testing.T) {
	c := &Config{}
	c.AddCommandLine(cmdline.Parse(`quiet kiln.disk=x a-b.label="two words" a_b.on "a_b.x=1 2" modprobe.blacklist=c,d-e module_blacklist=f .x=1 y.=1`))
	if got, want := c.Parameters("a_b"), `label="two words" on x="1 2"`; got != want {
		t.Errorf("options are %s, want %s", got, want)
	}
	for name, want := range map[string]string{
		"c": "blacklisted by modprobe.blacklist= on the kernel command line", "d_e": "blacklisted by modprobe.blacklist= on the kernel command line",
		"f": "blacklisted by module_blacklist= on the kernel command line", "a_b": "",
	} {
		if got := c.blacklisted(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for word, want := range map[string]string{"a=b": "a=b", "a": "a", "a=b c": `a="b c"`, `a="b c"`: `a="b c"`, "b c": `"b c"`} {
		if got := Quote(word); got != want {
			t.Errorf("%s: quoted %s, want %s", word, got, want)
		}
	}
}

// What modprobe.d says comes before what depmod found in the modules.
func TestConfiguredNames(t *testing.T) {
	l := open(t)
	l.config = &Config{}
	l.config.parse("x.conf", "alias char-major-10-* virtio-blk\nalias fs-ext4 b\nsoftdep wireguard pre: crypto-crc32c post: ext4\n")
	l.index.config = l.config
	var got []string
	l.load = func(file, _ string) error {
		name, _, _ := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], ".")
		got = append(got, name)
		return nil
	}
	for _, c := range []struct{ name, want string }{
		{"char_major_10-200", "virtio_blk"},
		{"fs-ext4", "b a"},
		{"wireguard", "crc32c_generic crc32c-intel libchacha libchacha20poly1305 wireguard jbd2 mbcache crc16 ext4"},
	} {
		got = nil
		l.reports = map[string]Report{}
		if err := l.Load(c.name, ""); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		want := c.want
		if c.name == "fs-ext4" {
			want = "a b" // as "softdep a pre: b", "softdep b post: a"
			slices.Sort(got)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: loaded %q, want %q", c.name, s, want)
		}
	}
}

func TestReadLoad(t *testing.T) {
	got, err := ReadLoad(fstest.MapFS{
		"usr/lib/modules-load.d/10-b.conf": {Data: []byte("# comment\n; comment\n\n  dummy \nbr-netfilter\n")},
		"usr/lib/modules-load.d/20-a.conf": {Data: []byte("hidden\n")},
		"etc/modules-load.d/20-a.conf":     {Data: []byte("tun")},
	})
	want := []Asked{{"dummy", "usr/lib/modules-load.d/10-b.conf"}, {"br-netfilter", "usr/lib/modules-load.d/10-b.conf"}, {"tun", "etc/modules-load.d/20-a.conf"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("options a b=c \\\n d\nblacklist e\nalias x* a\nsoftdep a pre: b\n", "a.b=c")
	f.Fuzz(func(t *testing.T, data string, word string) {
		c := &Config{}
		c.parse("x", data)
		c.AddCommandLine([]string{word})
		c.aliased(word)
	})
}

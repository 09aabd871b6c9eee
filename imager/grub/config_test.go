package grub

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// slots is a configuration with everything that is awkward in it. The command
// lines are as ParseConfig writes them.
func slots() *Config {
	return &Config{
		Default: 1,
		Timeout: 3,
		Serial:  true,
		Entries: []Entry{
			{
				Title:  "kiln A (it's 6.12; $x)",
				Linux:  "/A/vmlinuz",
				Initrd: "/A/initrd",
				Args:   `console=ttyS0,115200 dyndbg="file drivers/* +p" x=$root y={a;b}|&<>#?*[z]~%! "a b" -- ` + "`z`",
			},
			{Title: "kiln B – “ümläut”", Linux: "/B/vmlinuz", Initrd: "/B/initrd"},
			{Title: "no initramfs", Linux: "/B/memtest with space", Args: "a=b=c"},
		},
	}
}

func TestEncode(t *testing.T) {
	c := &Config{Serial: true, Timeout: 5, Default: 1, Entries: []Entry{
		{"A", "/A/vmlinuz", "/A/initrd", `console=ttyS0 k="a b"`},
		{"it's B", "/B/vmlinuz", "/B/initrd", ""},
	}}
	const want = `serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set default=1
set fallback='0'
set timeout=5
menuentry 'A' {
	echo 'Loading A'
	linux '/A/vmlinuz' 'console=ttyS0' 'k=a b'
	initrd '/A/initrd'
}
menuentry 'it'\''s B' {
	echo 'Loading it'\''s B'
	linux '/B/vmlinuz'
	initrd '/B/initrd'
}
`
	got, err := c.Encode()
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

func TestParseConfigReturnsWhatEncodeTook(t *testing.T) {
	want := slots()
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseConfig(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

func TestGrubScriptCheck(t *testing.T) {
	text, err := slots().Encode()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(oracle.Tool(t, "grub-script-check"), name).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, text)
	}
}

// TestWords checks the kernel's rules for quotes, and what GRUB would spoil.
func TestWords(t *testing.T) {
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"", nil},
		{"  a  b=c ", []string{"a", "b=c"}},
		{`a="b c" d`, []string{"a=b c", "d"}},
		{`"a=b  c"`, []string{"a=b  c"}},
		{`a="b"`, []string{"a=b"}},
		{`a=""`, []string{"a="}},
		{`a=b="c"`, nil},
		{`a="b`, nil},
		{`a="b"c`, nil},
		{`a=b"c d"`, nil},
		{`""`, nil},
		{`a=it's`, nil},
		{`a=b\c`, nil},
		{"a=b\tc", nil},
		{"a=\u00e0", nil},
	} {
		got, err := (&Entry{Args: tt.args}).words()
		if bad := tt.want == nil && tt.args != ""; bad != (err != nil) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.args, got, err, tt.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	good := func() *Config { return &Config{Entries: []Entry{{Title: "A", Linux: "/A/vmlinuz"}}} }
	for _, tt := range []struct {
		name   string
		change func(c *Config)
		want   string
	}{
		{"no entries", func(c *Config) { c.Entries = nil }, "no entries"},
		{"default", func(c *Config) { c.Default = 1 }, "default is entry 1 of 1"},
		{"timeout", func(c *Config) { c.Timeout = -1 }, "timeout of -1 seconds, want 0 to 86400"},
		{"title", func(c *Config) { c.Entries[0].Title = "a\nb" }, `entry "a\nb": a title is UTF-8 without control`},
		{"no title", func(c *Config) { c.Entries[0].Title = "" }, "not empty"},
		{"kernel", func(c *Config) { c.Entries[0].Linux = "A" }, `entry "A": kernel: path "A" does not begin with /`},
		{"initramfs", func(c *Config) { c.Entries[0].Initrd = "/it's" }, `initramfs: path "/it's" has '\'', which GRUB`},
		{"quote", func(c *Config) { c.Entries[0].Args = `x a=b"c` }, `kernel argument a=b"c: a quote without its partner`},
		{"backslash", func(c *Config) { c.Entries[0].Args = `a=b\c` }, `kernel argument a=b\c: GRUB cannot pass it on unchanged`},
		{"length", func(c *Config) { c.Entries[0].Args = strings.Repeat("abcd ", 405) }, "kernel command line of 2046"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.change(c)
			if tt.name == "length" { // 21 + 405*5 bytes are all right, two more are not
				if _, err := c.Encode(); err != nil {
					t.Fatal(err)
				}
				c.Entries[0].Args += "xx"
				tt.want = "kernel command line of 2049 bytes, with BOOT_IMAGE=/A/vmlinuz, the kernel reads 2047"
			}
			_, err := c.Encode()
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "no entries"},
		{"set default=0\ninsmod all_video\n", `line 2: not understood: "insmod all_video"`},
		{"set default=x", "line 1: strconv.Atoi"},
		{"set root=hd0", `line 1: unknown variable "root"`},
		{"menuentry 'A {", "line 1: a quote without its partner: 'A {"},
		{"menuentry \"A\" {", `line 1: '"' is not understood outside of quotes`},
		{"menuentry 'A' {\nlinux '/A'\n", `entry "A" has no end`},
		{"menuentry 'A' {\nchainloader +1\n}", `line 2: not understood in an entry: ["chainloader" "+1"]`},
		{"menuentry 'A' {\n}", `entry "A": kernel: path "" does not begin with /`},
		{"menuentry 'A' {\nlinux /A ''\n}", "line 2: an empty kernel argument"},
		{"x \\", "line 1: a backslash at the end"},
	} {
		_, err := ParseConfig([]byte(tt.text))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want %q", tt.text, err, tt.want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	text, err := slots().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("menuentry 'A' {\nlinux /A a\\ b c=d\\ e\n}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Errorf("%v is no ErrConfig", err)
			}
			return
		}
		text, err := c.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		again, err := ParseConfig(text)
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v\nbecame %+v, %v", c, again, err)
		}
		if more, _ := again.Encode(); !bytes.Equal(more, text) {
			t.Errorf("%s\nbecame %s", text, more)
		}
	})
}

// FuzzEncode checks that no command line leaves its place in the configuration.
func FuzzEncode(f *testing.F) {
	f.Add("A", `console=ttyS0 a="b c"`)
	f.Add("it's", "a='b' $x")
	f.Fuzz(func(t *testing.T, title, args string) {
		c := &Config{Entries: []Entry{{Title: title, Linux: "/A/vmlinuz", Args: args}}}
		text, err := c.Encode()
		if err != nil {
			return
		}
		got, err := ParseConfig(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		words, _ := c.Entries[0].words()
		again, _ := got.Entries[0].words()
		if len(got.Entries) != 1 || got.Entries[0].Title != title || !reflect.DeepEqual(words, again) {
			t.Errorf("%q %q became %+v", title, args, got.Entries)
		}
	})
}

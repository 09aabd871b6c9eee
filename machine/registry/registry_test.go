package registry

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/machine/config"
)

// A certificate that is none; nothing here reads it.
const pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

// A Client for containerd's own reading of these is in machine/containers.
func TestHosts(t *testing.T) {
	hub, host := imagename.Default()
	c := &config.Config{Registries: []config.Registry{
		{Name: "registry.example.com", Mirrors: []config.Mirror{{URL: "https://mirror.example.com:5000"}, {URL: "http://cache.example.com/v2/proxy", OverridePath: true}}},
		{Name: "mirror.example.com:5000", CA: pem},
		{Name: "only.example.com", NoFallback: true, CA: pem, Mirrors: []config.Mirror{{URL: "https://one.example.com"}, {URL: "https://two.example.com:443"}}},
		{Name: "two.example.com", InsecureSkipVerify: true},
		{Name: "one.example.com:443", CA: pem},
		{Name: hub, CA: pem},
		{Name: "plain.example.com"},
		{Name: "*", Mirrors: []config.Mirror{{URL: `https://any.example.com/a"b\c`}}},
	}}
	const first = "# Of the machine configuration.\n"
	const can = "  capabilities = ['pull', 'resolve']\n"
	want := map[string]string{
		"registry.example.com/hosts.toml": first + `
[host."https://mirror.example.com:5000"]
` + can + `  ca = "../mirror.example.com:5000/ca.crt"

[host."http://cache.example.com/v2/proxy"]
` + can + `  override_path = true
`,
		"mirror.example.com:5000/hosts.toml": first + `server = "https://mirror.example.com:5000"
ca = "ca.crt"
`,
		"mirror.example.com:5000/ca.crt": pem,
		"only.example.com/hosts.toml": first + `server = "https://two.example.com:443"
capabilities = ['pull', 'resolve']
skip_verify = true

[host."https://one.example.com"]
` + can + `  ca = "../one.example.com:443/ca.crt"
`,
		"only.example.com/ca.crt": pem,
		"two.example.com/hosts.toml": first + `server = "https://two.example.com"
skip_verify = true
`,
		"one.example.com:443/hosts.toml": first + `server = "https://one.example.com:443"
ca = "ca.crt"
`,
		"one.example.com:443/ca.crt": pem,
		hub + "/hosts.toml": first + `server = "https://` + host + `"
ca = "ca.crt"
`,
		hub + "/ca.crt":                pem,
		"plain.example.com/hosts.toml": first,
		"_default/hosts.toml": first + `
[host."https://any.example.com/a\"b\\c"]
` + can,
	}
	got := Hosts(c)
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if string(got[name]) != want[name] {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got[name], want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %q", slices.Sorted(maps.Keys(want)))
	}
}

func TestCredentials(t *testing.T) {
	hub, host := imagename.Default()
	c, err := config.Parse("config", []byte(`apiVersion: v1alpha1
kind: Registry
name: `+hub+`
auth: {username: "a\"b", password: "c\\d\ne"}
---
apiVersion: v1alpha1
kind: Registry
name: b.example.com
auth: {identityToken: tok}
---
apiVersion: v1alpha1
kind: Registry
name: c.example.com
`))
	if err != nil {
		t.Fatal(err)
	}
	want := `# Of the machine configuration.
version = 4

[plugins.'io.containerd.cri.v1.images'.registry.configs."b.example.com".auth]
  identitytoken = "tok"

[plugins.'io.containerd.cri.v1.images'.registry.configs."` + hub + `".auth]
  username = "a\"b"
  password = "c\\d\u000Ae"

[plugins.'io.containerd.cri.v1.images'.registry.configs."` + host + `".auth]
  username = "a\"b"
  password = "c\\d\u000Ae"
`
	if got := string(Daemon(c)); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	const one = `{"username":"a\"b","password":"c\\d\ne"}`
	if got, want := string(Client(c)), `{"b.example.com":{"identityToken":"tok"},"`+hub+`":`+one+`,"`+host+`":`+one+"}\n"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if none := new(config.Config); Daemon(none) != nil || Client(none) != nil {
		t.Error("there are credentials of no registries")
	}
}

func TestBundle(t *testing.T) {
	c := &config.Config{TrustedRoots: []config.TrustedRoots{{Name: "one\nline", Certificates: pem}, {Name: "two", Certificates: strings.TrimSpace(pem)}}}
	if got, want := string(Bundle([]byte("image"), c)), "image\n\n# one line\n"+pem+"\n# two\n"+pem; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string(Bundle([]byte("image\n"), new(config.Config))); got != "image\n" {
		t.Errorf("%q", got)
	}
}

// A directory has what it should, whatever was in it; what is right is left alone.
func TestSync(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs.d")
	sync := func(want bool, perm fs.FileMode, files map[string][]byte) {
		t.Helper()
		changed, err := Sync(dir, files, perm)
		if err != nil || changed != want {
			t.Errorf("%v, %v; want %v", changed, err, want)
		}
		got := map[string]string{}
		if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(name)
			rest, _ := filepath.Rel(dir, name)
			got[rest] = string(data)
			if fi, e := d.Info(); e == nil && fi.Mode().Perm() != perm {
				t.Errorf("%s: %v, want %v", rest, fi.Mode(), perm)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		want2 := map[string]string{}
		for name, data := range files {
			want2[name] = string(data)
		}
		if !maps.Equal(got, want2) {
			t.Errorf("%q, want %q", got, want2)
		}
	}
	files := map[string][]byte{"a/hosts.toml": []byte("1"), "a/ca.crt": []byte("2"), "b/c/x": []byte("3")}
	sync(true, 0o644, files)
	before, err := os.Stat(filepath.Join(dir, "a/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	sync(false, 0o644, files)
	sync(true, 0o644, map[string][]byte{"a/ca.crt": []byte("2"), "a/hosts.toml": []byte("new"), "d": nil})
	if after, err := os.Stat(filepath.Join(dir, "a/ca.crt")); err != nil || !os.SameFile(before, after) {
		t.Errorf("a file that was right is another one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory stays: %v", err)
	}
	sync(true, 0o644, nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	sync(true, 0o600, map[string][]byte{"x": []byte("secret")})
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	// A link does not lead out of it.
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Sync(dir, map[string][]byte{"link/x": []byte("1")}, 0o600); err == nil {
		t.Error("writes through a link that leads elsewhere")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

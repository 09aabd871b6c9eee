package rootfs

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
)

func TestLoadErrors(t *testing.T) {
	const ok = "version: v1alpha1\nname: x\n"
	for _, tt := range []struct{ in, want string }{
		{"name: x\n", `r.yaml: version: "", want "v1alpha1"`},
		{"version: v2\nname: a b\n", "r.yaml: version: \"v2\", want \"v1alpha1\"\nr.yaml: name: \"a b\", want a name"},
		{ok + "directory: []\n", `r.yaml:3:1: unknown key "directory"; did you mean "directories"?`},
		{ok + "files:\n- {path: /a, contents: b}\n", `r.yaml:4:14: unknown key "contents" in files[0]; did you mean "content"?`},
		{ok + "directories: [{path: var}]\n", `r.yaml: directories[0].path: "var", want a path that begins with / and has no ..`},
		{ok + "directories: [{path: /a/../b}]\n", `directories[0].path: "/a/../b", want a path that begins with / and has no ..`},
		{ok + "directories: [{path: /}]\n", `directories[0].path: "/", want a path`},
		{ok + "directories: [{path: /a, mode: \"0788\"}]\n", `mode "0788", want octal digits as in "0755"`},
		{ok + "files: [{path: /a}]\n", `files[0]: /a: want either content or source`},
		{ok + "files: [{path: /a, content: x, source: y}]\n", `files[0]: /a: want either content or source`},
		{ok + "files: [{path: /a, source: ../y}]\n", `files[0].source: "../y", want a relative path without ..`},
		{ok + "symlinks: [{path: /a}]\n", `symlinks[0].target: "", want a path`},
		{ok + "users: [{name: \"a:b\"}]\n", `users[0].name: "a:b", want a name`},
		{ok + "users: [{name: a, uid: 1, gid: 1}, {name: b, uid: 1, gid: 1}]\n", `users[1]: users a and b both have uid 1`},
		{ok + "users: [{name: a, uid: 1, gid: 1, shell: \"/a:b\"}]\n", `users[0]: "/a:b", want an absolute path without a colon`},
		{ok + "groups: [{name: a, gid: 1}, {name: b, gid: 1}]\n", `groups[1]: groups a and b both have gid 1`},
		{ok + "groups: [{name: a, members: [zoe]}]\n", `groups[0]: member "zoe" is no user of the recipe`},
		{ok + "users: [{name: a, uid: 1, gid: 7}]\ngroups: [{name: a, gid: 1}]\n", `users[0]: a has gid 7, which no group has, and the group a has another`},
		{ok + "programs: [{path: /a, package: -x}]\n", `programs[0].package: "-x", want a Go package`},
		{ok + "programs: [{path: /a, package: ./x, values: {main.v: \"a'b\"}}]\n", `programs[0].values: main.v="a'b", want importpath.name`},
		{ok + "programs: [{path: /a, package: ./x, module: ../x}]\n", `programs[0].module: "../x", want a relative path without ..`},
		{ok + "programs: [{path: /a, package: ./x, sysroot: /x}]\n", `programs[0].sysroot: "/x", want a relative path without ..`},
		{ok + "programs: [{path: /a, package: ./x, tags: [\"a,b\"]}]\n", `programs[0].tags[0]: "a,b", want a build constraint`},
		{ok + "extends: ../other.yaml\n", `extends: "../other.yaml", want a name`},
		{ok + "limits: {squashfs: -1}\n", `limits.squashfs: -1, want a number of bytes`},
		{ok + "packages: [{name: musl}]\n", `packages[0]: musl: no files; want at least one`},
		{ok + "packages: [{name: ../musl, files: [{from: /x}]}]\n", `packages[0].name: "../musl", want a name`},
		{ok + "packages: [{name: musl, files: [{from: x}]}]\n", `packages[0].files[0].from: "x", want a path`},
		{ok + "packages: [{name: musl, files: [{from: \"/[a]\"}]}]\n", `packages[0].files[0].from: "/[a]", want a name or a pattern with *, ** and ?`},
		{ok + "trees: [{source: /x}]\n", `trees[0].source: "/x", want a relative path without ..`},
		{ok + "certificates: {}\n", `certificates.package: "", want a name`},
		{ok + "modules: {include: [\"?\"]}\n", `modules.include[0]: "", want a name or a pattern`},
		{ok + "firmware: {packages: [a/b]}\n", `firmware.packages[0]: "a/b", want a name`},
	} {
		_, err := parse("r.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q:\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

// A recipe is more of the one it extends.
func TestExtends(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{
		"under.yaml": `
version: v1alpha1
name: under
directories: [{path: /etc}]
symlinks: [{path: /bin, target: usr/bin}]
files: [{path: /etc/a, content: a}]
users: [{name: daemon, uid: 2, gid: 2}]
groups: [{name: daemon, gid: 2}]
programs: [{path: /usr/bin/init, package: ./cmd/init}]
packages: [{name: musl, files: [{from: /lib}]}]
trees: [{source: userland}]
certificates: {package: ca-certificates}
modules: {include: [ext4], exclude: [xfs]}
firmware: {packages: [a], include: [b]}
initramfs: {program: ./cmd/initramfs, modules: [loop]}
limits: {squashfs: 5}
`,
		"more.yaml": `
version: v1alpha1
name: more
extends: under.yaml
files: [{path: /etc/b, content: b}]
groups: [{name: web, gid: 3, members: [daemon]}]
programs: [{path: /usr/bin/web, package: ./cmd/web}]
modules: {include: [nfs]}
limits: {squashfs: 7}
`,
		"same.yaml":   "version: v1alpha1\nname: same\nextends: under.yaml\ngroups: [{name: wheel, gid: 2}]\n",
		"third.yaml":  "version: v1alpha1\nname: third\nextends: more.yaml\n",
		"absent.yaml": "version: v1alpha1\nname: absent\nextends: none.yaml\n",
	})
	r, err := Load(filepath.Join(dir, "more.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := parse("whole.yaml", []byte(`
version: v1alpha1
name: more
extends: under.yaml
directories: [{path: /etc}]
symlinks: [{path: /bin, target: usr/bin}]
files: [{path: /etc/a, content: a}, {path: /etc/b, content: b}]
users: [{name: daemon, uid: 2, gid: 2}]
groups: [{name: daemon, gid: 2}, {name: web, gid: 3, members: [daemon]}]
programs: [{path: /usr/bin/init, package: ./cmd/init}, {path: /usr/bin/web, package: ./cmd/web}]
packages: [{name: musl, files: [{from: /lib}]}]
trees: [{source: userland}]
certificates: {package: ca-certificates}
modules: {include: [ext4, nfs], exclude: [xfs]}
firmware: {packages: [a], include: [b]}
initramfs: {program: ./cmd/initramfs, modules: [loop]}
limits: {squashfs: 7}
`))
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for name, want := range map[string]string{
		"same.yaml":   "DIR/same.yaml: groups[1]: groups daemon and wheel both have gid 2",
		"third.yaml":  "DIR/third.yaml: extends: DIR/more.yaml extends under.yaml itself; want a recipe that extends none",
		"absent.yaml": "DIR/absent.yaml: extends: open DIR/none.yaml: no such file or directory",
	} {
		_, err := Load(filepath.Join(dir, name))
		if err == nil || strings.ReplaceAll(err.Error(), dir, "DIR") != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

func TestMode(t *testing.T) {
	r, err := parse("r.yaml", []byte("version: v1alpha1\nname: x\ndirectories: [{path: /a, mode: \"1777\"}, {path: /b, mode: 0755}, {path: /c, mode: \"6711\"}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []os.FileMode{os.ModeSticky | 0o777, 0o755, os.ModeSetuid | os.ModeSetgid | 0o711} {
		if got := os.FileMode(r.Directories[i].Mode); got != want {
			t.Errorf("%s: got %v, want %v", r.Directories[i].Path, got, want)
		}
	}
}

func TestMatchGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/b/c", false}, {"a/*", "a/b", true}, {"a/*", "a/b/c", false}, {"a/*", "a", false},
		{"a/**", "a", true}, {"a/**", "a/b/c", true}, {"a/**/c", "a/c", true}, {"a/**/c", "a/b/b/c", true}, {"a/**/c", "a/b/d", false},
		{"**/x*/**", "a/b/xy/z", true}, {"**/*.crt", "d/a.crt", true}, {"l?b", "lib", true}, {"**", "a/b", true}, {"**/a/**/b", "a/c/a/b/c/b", true},
	} {
		if got := matchGlob(tt.pattern, tt.name); got != tt.want {
			t.Errorf("matchGlob(%q, %q) = %v", tt.pattern, tt.name, got)
		}
	}
}

func TestPattern(t *testing.T) {
	for _, tt := range []struct {
		in       Pattern
		glob     string
		optional bool
	}{{"ext4", "ext4", false}, {"e1000?", "e1000", true}, {"a/**?", "a/**", true}} {
		if tt.in.Glob() != tt.glob || tt.in.Optional() != tt.optional {
			t.Errorf("%s: %s, %v", tt.in, tt.in.Glob(), tt.in.Optional())
		}
	}
	for _, tt := range []struct {
		in   Pattern
		file string
		want bool
	}{
		{"virtio_rng", "kernel/drivers/char/hw_random/virtio-rng.ko.xz", true}, {"nf_*?", "kernel/net/netfilter/nf_nat.ko", true},
		{"ext4", "kernel/fs/ext4/mbcache.ko", false}, {"modules*", "modules.dep", false},
		{"kernel/fs/ext4/**", "kernel/fs/ext4/ext4.ko.zst", true}, {"kernel/fs/*", "kernel/fs/ext4/ext4.ko", false}, {"kernel/drivers/ata/sata_*?", "kernel/drivers/ata/sata_nv.ko", true},
	} {
		if got := tt.in.Match(tt.file); got != tt.want {
			t.Errorf("%s.Match(%s) = %v", tt.in, tt.file, got)
		}
	}
}

// The recipe kiln ships selects sensible modules of every kernel there is to
// test with: what is not optional is there, and what the demonstration adds as
// an extension is not.
func TestDefaultRecipeModules(t *testing.T) {
	r, err := Load("recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	debs, err := filepath.Glob(filepath.Join(os.Getenv("KILN_TEST_DEBS"), "linux-image-*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("KILN_TEST_DEBS") == "" || len(debs) == 0 {
		t.Skip("SKIPPED: KILN_TEST_DEBS names no directory with linux-image packages")
	}
	for _, deb := range debs {
		k, err := kernel.Import(t.Context(), deb)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]int64{}
		for name, ino := range k.Modules.All() {
			files[name] = ino.Size()
		}
		b := make([]byte, files["modules.builtin"])
		if _, err := extent.Reader(k.Modules.Lookup("modules.builtin").Content).Read(b); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Fields(string(b)) {
			files[line] = 0
		}
		chosen, size := map[string]bool{}, int64(0)
		for _, p := range append(r.Modules.Include, r.Initramfs.Modules...) {
			matched := false
			for file, n := range files {
				if !p.Match(file) {
					continue
				}
				matched = true
				if base, _, _ := strings.Cut(path.Base(file), "."); !chosen[base] {
					chosen[base] = true
					size += n
				}
			}
			if !matched && !p.Optional() {
				t.Errorf("%s: nothing matches %s", k.Release, p)
			}
		}
		for _, extra := range []string{"wireguard", "nbd", "zram", "snd", "drm"} {
			if chosen[extra] {
				t.Errorf("%s: %s is selected", k.Release, extra)
			}
		}
		if len(chosen) < 250 || size > 24<<20 {
			t.Errorf("%s: %d modules with %d bytes", k.Release, len(chosen), size)
		}
		t.Logf("%s: %d modules, %d bytes without what they depend on", k.Release, len(chosen), size)
	}
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("recipe.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("version: v1alpha1\nname: x\nfiles: [{path: /a, content: b, mode: \"0644\"}]\nusers: [{name: a}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse("r.yaml", data)
		if err != nil {
			return
		}
		for _, d := range r.Directories {
			if !strings.HasPrefix(d.Path, "/") {
				t.Errorf("path %q", d.Path)
			}
		}
		_, _ = r.passwd(), r.group()
	})
}

// Programs tell the versions that the go.mod beside them pins.
func TestRecipeVersions(t *testing.T) {
	for _, recipe := range []string{"recipe.yaml", "kubernetes.yaml"} {
		r, err := Load(recipe)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Programs {
			if p.Module == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(p.Module, "go.sum")); err != nil {
				t.Error(err)
			}
			data, err := os.ReadFile(filepath.Join(p.Module, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), "\nreplace") {
				t.Errorf("%s/go.mod replaces modules; the cache does not see what is in their directories", p.Module)
			}
			for k, v := range p.Values {
				pinned := slices.Contains(strings.Fields(string(data)), "v"+strings.TrimPrefix(v, "v"))
				if strings.HasSuffix(strings.ToLower(k), "version") && !pinned {
					t.Errorf("%s: %s is %s, which %s/go.mod does not have", recipe, k, v, p.Module)
				}
			}
		}
	}
}

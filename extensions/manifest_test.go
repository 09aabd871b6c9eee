package extensions

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

const fullManifest = `version: v1alpha1
metadata:
  name: zfs
  version: 2.3.1-r0
  author: Example
  description: OpenZFS
  license: CDDL-1.0
  compatibility:
    talos:
      version: ">= v1.9.0"
kernel:
  release: 6.12.0
  arch: arm64
  modules:
    - name: zfs
      parameters: zfs_arc_max=1073741824
  options:
    - {name: spl, parameters: spl_hostid=1}
  blacklist: [btrfs]
requires: [spl]
conflicts: [zfs-legacy]
replaces: [usr/bin/zpool]
`

func TestParseManifest(t *testing.T) {
	m, err := ParseManifest("manifest.yaml", []byte(fullManifest))
	if err != nil {
		t.Fatal(err)
	}
	want := Manifest{
		Version: "v1alpha1",
		Metadata: Metadata{
			Name: "zfs", Version: "2.3.1-r0", Author: "Example", Description: "OpenZFS", License: "CDDL-1.0",
			Compatibility: Compatibility{Talos: VersionRange{Version: ">= v1.9.0"}},
		},
		Kernel: Kernel{
			Release: "6.12.0", Arch: "arm64", Modules: []Module{{"zfs", "zfs_arc_max=1073741824"}},
			Options: []Module{{"spl", "spl_hostid=1"}}, Blacklist: []string{"btrfs"},
		},
		Requires: []string{"spl"}, Conflicts: []string{"zfs-legacy"}, Replaces: []string{"usr/bin/zpool"},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	data, err := yaml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseManifest("again", data); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
}

func TestParseManifestErrors(t *testing.T) {
	for what, tt := range map[string]struct{ from, to, want string }{
		"version":        {"v1alpha1", "v2", `m:1:10: invalid extension manifest: version "v2", want "v1alpha1"`},
		"name":           {"name: zfs\n", "name: ZFS\n", `m:3:9: invalid extension manifest: metadata.name "ZFS", want lower-case`},
		"no version":     {"  version: 2.3.1-r0\n", "", `m:3:3: invalid extension manifest: metadata.version "", want one word`},
		"version escape": {"2.3.1-r0", `"1\e[31m"`, `metadata.version "1\x1b[31m", want one word`},
		"arch":           {"arch: arm64", "arch: aarch64", `m:13:9: invalid extension manifest: kernel.arch "aarch64", want amd64 or arm64`},
		"release":        {"6.12.0", "../6.12", `kernel.release "../6.12", want one word`},
		"module":         {"- name: zfs\n", "- name: zfs.ko\n", `m:15:13: invalid extension manifest: kernel.modules[0].name "zfs.ko", want a module's name`},
		"parameters":     {"zfs_arc_max=1073741824", `"a\nb"`, `kernel.modules[0].parameters "a\nb", want one line`},
		"no options":     {"spl_hostid=1", `" "`, `kernel.options[0].parameters is empty, want parameters for spl`},
		"blacklist":      {"[btrfs]", "[btrfs, a/b]", `m:19:22: invalid extension manifest: kernel.blacklist[1] "a/b", want a module's name`},
		"requires":       {"requires: [spl]", "requires: [SPL]", `m:20:12: invalid extension manifest: requires[0] "SPL", want the name of an extension`},
		"itself":         {"[zfs-legacy]", "[zfs]", `conflicts[0] "zfs" is this extension`},
		"absolute":       {"usr/bin/zpool", "/usr/bin/zpool", `replaces[0] "/usr/bin/zpool", want a path relative to the root`},
		"everything":     {"usr/bin/zpool", ".", `replaces[0] ".", want a path`},
		"dot dot":        {"usr/bin/zpool", "usr/../etc", `replaces[0] "usr/../etc", want a path`},
		"unknown key":    {"requires:", "require:", `m:20:1: unknown key "require"; did you mean "requires"?`},
		"twice":          {"requires: [spl]", "version: v1alpha1", `m:20:1: `},
	} {
		if !strings.Contains(fullManifest, tt.from) {
			t.Fatalf("%s: no %q", what, tt.from)
		}
		_, err := ParseManifest("m", []byte(strings.Replace(fullManifest, tt.from, tt.to, 1)))
		var syntax *strictyaml.Error
		if err == nil || !strings.Contains(err.Error(), tt.want) || !(errors.Is(err, ErrManifest) || errors.As(err, &syntax)) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

// TestDocumentedManifest reads the example in the documentation.
func TestDocumentedManifest(t *testing.T) {
	doc, err := os.ReadFile("../docs/extensions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "```yaml\n")
	example, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatal("no example")
	}
	m, err := ParseManifest("docs/extensions.md", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]any{
		"license": m.Metadata.License, "release": m.Kernel.Release, "arch": m.Kernel.Arch, "modules": m.Kernel.Modules, "options": m.Kernel.Options,
		"blacklist": m.Kernel.Blacklist, "requires": m.Requires, "conflicts": m.Conflicts, "replaces": m.Replaces,
	} {
		if reflect.ValueOf(v).IsZero() {
			t.Errorf("the example has no %s", what)
		}
	}
	for _, p := range AllowedPaths() {
		if !strings.Contains(string(doc), p) {
			t.Errorf("%s is not in the documentation", p)
		}
	}
}

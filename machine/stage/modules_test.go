//go:build linux

package stage

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
)

func TestOrigins(t *testing.T) {
	tree := fstest.MapFS{
		"usr/lib/modules/6.12/kernel/a-b.ko.xz": {},
		"usr/lib/modules/6.12/modules.dep":      {},
		"usr/lib/modules/6.11/c.ko":             {},
		"lib/modules/6.12/extra/d.ko":           {},
		"usr/lib/modules-load.d/demo.conf":      {},
		"usr/lib/modules-load.d/README":         {},
	}
	from := origins{Modules: map[string]string{}, Files: map[string]string{}}
	if err := from.add(tree, "6.12", "demo"); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(from.Modules, map[string]string{"a_b": "demo", "d": "demo"}) ||
		!maps.Equal(from.Files, map[string]string{"usr/lib/modules-load.d/demo.conf": "demo"}) {
		t.Errorf("got %v", from)
	}
}

func TestAskedFor(t *testing.T) {
	root := fstest.MapFS{"usr/lib/modules-load.d/x.conf": {Data: []byte("# x\nc\nd\n")}, "etc/modules-load.d/y.conf": {Data: []byte("e\n")}}
	list := &layers.List{Modules: []layers.Module{{Name: "b", Parameters: "p=1", Extension: "one"}, {Name: "a", Extension: "two"}}}
	got, err := askedFor(list, root, origins{Files: map[string]string{"usr/lib/modules-load.d/x.conf": "three"}})
	want := []layers.Module{{Name: "b", Parameters: "p=1", Extension: "one"}, {Name: "a", Extension: "two"},
		{Name: "c", Extension: "three"}, {Name: "d", Extension: "three"}, {Name: "e"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// node is a modules directory for tests. The files of its modules are not
// there, so that none is ever loaded.
func node(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{
		"modules.dep":     "extra/kilna.ko:\nextra/kilnb.ko: extra/kilna.ko\nextra/idle.ko:\nextra/black.ko:\nextra/gone.ko:\nnet/kiln_dummy.ko:\nextra/asked.ko:\n",
		"modules.alias":   "alias rtnl-link-kiln kiln_dummy\nalias pci:black* black\n",
		"modules.builtin": "kernel/lib/kiln_builtin.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOptions(t *testing.T) {
	index, err := modules.ReadIndex(os.DirFS(node(t)))
	if err != nil {
		t.Fatal(err)
	}
	config := &modules.Config{}
	got := options(index, config, []layers.Module{{Name: "rtnl-link-kiln", Parameters: `label="a b" path=C:\`}, {Name: "idle"}, {Name: "absent", Parameters: "x=1"}})
	if want := "options kiln_dummy label=\"a b\" path=C:\\ \n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := config.Parameters("kiln-dummy"), `label="a b" path=C:\`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// modprobe reads it as it was meant.
	if config, err = modules.ReadConfig(fstest.MapFS{"run/modprobe.d/x.conf": {Data: append(got, "options idle y=1\n"...)}}); err != nil || config.Parameters("idle") != "y=1" {
		t.Errorf("got %q, %v", config.Parameters("idle"), err)
	}
}

func TestInventory(t *testing.T) {
	config := &modules.Config{}
	config.AddCommandLine([]string{"modprobe.blacklist=black", "kilna.level=7", "kiln_builtin.x=1"})
	loader, err := modules.Open(node(t), config)
	if err != nil {
		t.Fatal(err)
	}
	asked := []layers.Module{{Name: "kilnb", Extension: "b"}, {Name: "rtnl-link-kiln", Extension: "b"}, {Name: "kiln-builtin", Extension: "b"},
		{Name: "absent", Extension: "c"}, {Name: "asked", Extension: "c"}}
	if names, failed := loadAsked(loader, asked); len(names) != 5 || strings.Join(failed, " ") != "kilnb rtnl-link-kiln absent asked" {
		t.Errorf("asked for %q, of which failed %q", names, failed)
	}
	if _, err := loader.LoadAlias("pci:black1"); err != nil {
		t.Fatal(err)
	}
	v := &inventory{loader: loader, asked: asked,
		from: map[string]string{"kilna": "a", "kilnb": "b", "idle": "a", "black": "b", "gone": "b", "kernels": "b"}}
	f := facts{
		inKernel: map[string]bool{"kilna": true, "kernels": true, "asked": true, "ext4": true},
		unsigned: map[string]bool{"asked": true, "kilna": true},
		requested: map[string]modules.Report{
			"gone":    {Name: "gone", State: modules.Loaded},
			"kernels": {Name: "kernels", State: modules.Loaded, Parameters: "x=1", Reason: "unknown parameter 'x' ignored"},
		},
	}
	list := v.list(f)
	var lines strings.Builder
	for i := range list {
		list[i].Reason = strings.ReplaceAll(list[i].Reason, filepath.Dir(filepath.Dir(loader.File("kilna"))), "DIR")
	}
	c := console.New(&lines, func() time.Duration { return time.Second })
	v.tell(c, list, false)
	v.tell(c, list, false)
	want := `kiln: module name=absent state=failed extension=c reason="there is no module or alias of that name" t=1.000
kiln: module name=asked state=loaded extension=c reason="not signed by a key that the kernel trusts, which taints it" t=1.000
kiln: module name=black state=skipped extension=b reason="blacklisted by modprobe.blacklist= on the kernel command line" t=1.000
kiln: module name=gone state=skipped extension=b reason="was loaded, and unloaded again" t=1.000
kiln: module name=kernels state=loaded extension=b parameters="x=1" reason="unknown parameter 'x' ignored" t=1.000
kiln: module name=kiln_builtin state=builtin extension=b reason="part of the kernel, which takes its parameters from the command line only: x=1" t=1.000
kiln: module name=kiln_dummy state=failed extension=b reason="cannot read its file DIR/net/kiln_dummy.ko: no such file or directory" t=1.000
kiln: module name=kilna state=loaded extension=a reason="was in the kernel before its parameters were known: level=7" t=1.000
kiln: module name=kilnb state=failed extension=b reason="needs module kilna: cannot read its file DIR/extra/kilna.ko: no such file or directory" t=1.000
`
	want = strings.ReplaceAll(want, `parameters="x=1"`, "parameters=x=1")
	if lines.String() != want {
		t.Errorf("got\n%s\nwant\n%s", lines.String(), want)
	}
	lines.Reset()
	v.tell(c, list, true)
	if want := "kiln: module name=idle state=skipped extension=a reason=\"" + unused + "\" t=1.000\n"; lines.String() != want {
		t.Errorf("got\n%s\nwant\n%s", lines.String(), want)
	}
	for state, want := range map[modules.State]string{modules.Loaded: "asked,kernels,kilna", modules.Skipped: "black,gone,idle",
		modules.Failed: "absent,kiln_dummy,kilnb", modules.Builtin: "kiln_builtin"} {
		if got := named(list, state); got != want {
			t.Errorf("%s: %s, want %s", state, got, want)
		}
	}
}

func TestStateFile(t *testing.T) {
	loader, err := modules.Open(node(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	v := &inventory{loader: loader, from: map[string]string{"idle": "a"}}
	file := filepath.Join(t.TempDir(), "modules.json")
	c := console.New(&strings.Builder{}, func() time.Duration { return 0 })
	for range 2 { // replaces itself
		if _, err := v.update(c, file, true); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]string
	want := map[string]string{"name": "idle", "extension": "a", "state": "skipped", "reason": unused, "file": loader.File("idle")}
	if err := json.Unmarshal(data, &got); err != nil || len(got) != 1 || !maps.Equal(got[0], want) {
		t.Errorf("got %s, %v; want %v", data, err, want)
	}
}

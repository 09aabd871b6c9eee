//go:build linux

package stage

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
)

// What the machine configuration asks for is told of as what extensions bring.
func TestWant(t *testing.T) {
	config := &modules.Config{}
	config.AddOptions("kilna", "level=1")
	config.AddCommandLine([]string{"kilna.level=3"})
	loader, err := modules.Open(node(t), config)
	if err != nil {
		t.Fatal(err)
	}
	v := &inventory{loader: loader}
	dir := t.TempDir()
	file := filepath.Join(dir, "modules.json")
	var lines strings.Builder
	c := console.New(&lines, func() time.Duration { return 0 })
	want := func(list ...layers.Module) {
		t.Helper()
		if err := v.want(c, filepath.Join(dir, "modprobe.d"), file, list); err != nil {
			t.Fatal(err)
		}
	}
	want(layers.Module{Name: "kilna", Parameters: "level=2 x=1"}, layers.Module{Name: "absent", Parameters: "y=1"})
	if got, want := loader.Parameters("kilna"), "level=1 level=2 x=1 level=3"; got != want {
		t.Errorf("parameters are %q, want %q: the command line has the last word", got, want)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "modprobe.d", wantedName))
	if err != nil || string(conf) != "options kilna level=2 x=1 \n" {
		t.Errorf("modprobe is told %q, %v", conf, err)
	}
	for _, want := range []string{
		`kiln: module name=absent state=failed extension=- reason="there is no module or alias of that name" t=0.000` + "\n",
		`kiln: module name=kilna state=failed extension=- parameters="level=1 level=2 x=1 level=3" reason="cannot read its file `,
	} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("the console has\n%swant %s", lines.String(), want)
		}
	}
	var list []module
	read := func() {
		t.Helper()
		data, err := os.ReadFile(file)
		if err == nil {
			list = nil
			err = json.Unmarshal(data, &list)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if read(); len(list) != 2 || list[0].Name != "absent" || list[0].State != modules.Failed {
		t.Errorf("modules.json has %+v", list)
	}
	want(layers.Module{Name: "kilna"}) // of another configuration
	if read(); len(list) != 1 {
		t.Errorf("modules.json has %+v", list)
	}
	if got, want := loader.Parameters("kilna"), "level=1 level=3"; got != want {
		t.Errorf("parameters are %q, want %q", got, want)
	}
}

func TestDiffers(t *testing.T) {
	loader, err := modules.Open(node(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	loader.Give(map[string]string{"kilna": "level=2", "kilnb": "x=1", "idle": "z=1"})
	v := &inventory{loader: loader, wanted: []layers.Module{{Name: "kilna"}, {Name: "kilnb"}, {Name: "idle"}, {Name: "asked"}},
		given: map[string]bool{"kilna": true, "kilnb": true, "idle": true}, own: map[string]bool{"kilna": true, "asked": true}}
	loaded := func(name, parameters string) modules.Report {
		return modules.Report{Name: name, State: modules.Loaded, Parameters: parameters}
	}
	list := v.list(facts{
		inKernel:  map[string]bool{"kilna": true, "kilnb": true, "idle": true, "asked": true},
		requested: map[string]modules.Report{"kilna": loaded("kilna", "level=1"), "idle": loaded("idle", "z=1"), "asked": loaded("asked", "old=1")},
	})
	for i, want := range []module{
		{Name: "asked", Parameters: "old=1", Reason: `is in the kernel with the parameters "old=1", and is to have "": restart the node`},
		{Name: "idle", Parameters: "z=1"},
		{Name: "kilna", Parameters: "level=1", Reason: `is in the kernel with the parameters "level=1", and is to have "level=2": restart the node`},
		{Name: "kilnb", Reason: `was in the kernel before the machine configuration, with the parameters "", and is to have "x=1": give them as kernel arguments, kilnb.NAME=VALUE`},
	} {
		want.State = modules.Loaded
		got := list[i]
		got.File = ""
		if got != want {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
}

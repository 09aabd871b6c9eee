package strictyaml

import (
	"strings"
	"testing"
)

type document struct {
	Name   string            `yaml:"name"`
	Size   int64             `yaml:"size"`
	Kernel kernel            `yaml:"kernel"`
	Layers []kernel          `yaml:"layers"`
	Labels map[string]string `yaml:"labels"`
	On     *bool             `yaml:"on"`
}

type kernel struct {
	Release string   `yaml:"release"`
	Args    []string `yaml:"args"`
}

func TestDecode(t *testing.T) {
	var d document
	err := Decode("p.yaml", []byte("name: 1.10\nsize: 5\nkernel:\n  release: 6.12\n  args: [a, b]\nlabels: {a: b}\non: true\n"), &d)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "1.10" || d.Size != 5 || d.Kernel.Release != "6.12" || len(d.Kernel.Args) != 2 || d.Labels["a"] != "b" || !*d.On {
		t.Errorf("got %+v", d)
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"kernl: {}\n", `p.yaml:1:1: unknown key "kernl"; did you mean "kernel"?`},
		{"name: x\nkernel:\n  relaese: y\n", `p.yaml:3:3: unknown key "relaese" in kernel; did you mean "release"?`},
		{"zzzzzz: 1\n", `p.yaml:1:1: unknown key "zzzzzz"; known: kernel, labels, layers, name, on, size`},
		{"name: a\nname: b\n", `p.yaml:2:1: key "name" again; it is already on line 1`},
		{"size: big\n", `p.yaml:1:7: size: "big", want an integer`},
		{"on: maybe\n", `p.yaml:1:5: on: "maybe", want true or false`},
		{"layers: {a: b}\n", `p.yaml:1:9: layers: a mapping, want a list`},
		{"layers:\n- release: x\n- args: 5\n", `p.yaml:3:9: layers[1].args: a single value, want a list`},
		{"kernel: 5\n", `p.yaml:1:9: kernel: a single value, want a mapping`},
		{"a: 1\nb: 2\n", "p.yaml:1:1: unknown key \"a\"; known: kernel, labels, layers, name, on, size\np.yaml:2:1: unknown key \"b\"; known: kernel, labels, layers, name, on, size"},
		{"", `p.yaml: empty document`},
		{"name: a\n---\nname: b\n", `a second document; want one`},
		{"name: &x a\nlabels: {k: *x}\n", `anchors and aliases are not supported`},
		{"name: [\n", `p.yaml:`},
		{"\tname: a\n", `p.yaml:1:`},
		{"- a\n", `p.yaml:1:1: a list, want a mapping`},
	} {
		var d document
		err := Decode("p.yaml", []byte(tt.in), &d)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Decode(%q)\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

func TestDecodeTooLarge(t *testing.T) {
	var d document
	err := Decode("p.yaml", make([]byte, maxSize+1), &d)
	if err == nil || !strings.Contains(err.Error(), "1048577 bytes, want at most 1048576") {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"name: a\n", "layers: [{release: x}]\n", "a: &a [*a]\n", "? {a: b}\n: c\n", "<<: {name: x}\n", "--- |\n x\n..."} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d document
		if err := Decode("f", data, &d); err != nil && !strings.HasPrefix(err.Error(), "f") {
			t.Errorf("error without the file's name: %v", err)
		}
	})
}

package extservice

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const whole = `name: hello-1_x
container:
  entrypoint: ./hello
  args: [--verbose, "80"]
  environment: [LEVEL=1, EMPTY=]
  environmentFile: /var/etc/hello.env
  mounts:
    - {source: /var/log, destination: /var/log, type: bind, options: [rbind, rw]}
    - {type: tmpfs, destination: /tmp}
  security:
    writeableRootfs: true
    writeableSysfs: true
    maskedPaths: []
    readonlyPaths: [/proc/sys]
    rootfsPropagation: rslave
depends:
  - service: cri
  - path: /run/hello
  - network: [addresses, connectivity, hostname, etcfiles]
  - time: true
  - configuration: true
restart: untilSuccess
logToConsole: true
`

func TestParse(t *testing.T) {
	s, err := Parse("hello.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	want := &Service{
		Name: "hello-1_x",
		Container: Container{
			Entrypoint: "./hello", Args: []string{"--verbose", "80"}, Environment: []string{"LEVEL=1", "EMPTY="}, EnvironmentFile: "/var/etc/hello.env",
			Mounts: []Mount{
				{Type: "bind", Source: "/var/log", Destination: "/var/log", Options: []string{"rbind", "rw"}}, {Type: "tmpfs", Destination: "/tmp"},
			},
			Security: Security{
				WriteableRootfs: true, WriteableSysfs: true, MaskedPaths: &[]string{}, ReadonlyPaths: &[]string{"/proc/sys"}, RootfsPropagation: "rslave",
			},
		},
		Depends: []Dependency{
			{Service: "cri"}, {Path: "/run/hello"}, {Network: []string{"addresses", "connectivity", "hostname", "etcfiles"}}, {Time: true}, {Configuration: true},
		},
		Restart: RestartUntilSuccess, LogToConsole: true,
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s, err := Parse("x", []byte("name: x\ncontainer: {entrypoint: /x}\n")); err != nil || s.Container.Security.MaskedPaths != nil {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestParseErrors(t *testing.T) {
	const good = "name: x\ncontainer:\n  entrypoint: x\n"
	for _, c := range []struct{ text, want string }{
		{"", "empty document"},
		{"name: x\n", `:1:1: container.entrypoint: "", want the path of a program`},
		{"name: X\ncontainer: {entrypoint: x}\n", `:1:7: name: "X", want a name of at most 63 lower-case letters`},
		{"name: " + strings.Repeat("x", 64) + "\ncontainer: {entrypoint: x}\n", "want a name of at most 63"},
		{good + "restart: sometimes\n", `:4:10: restart: unknown value "sometimes"; known: always, never, untilSuccess`},
		{good + "runnerMode: hots\n", `did you mean "host"?`},
		{good + "runnerMode: host\n", `container.entrypoint: "x", want the absolute path of a program of the node`},
		{good + "image: y\n", `unknown key`},
		{good + "  mounts: [{source: a, destination: /b}]\n", `:4:21: container.mounts[0].source: "a", want an absolute path`},
		{good + "  mounts: [{source: /a, destination: /b/../..}]\n", `container.mounts[0].destination: "/b/../.."`},
		{good + "  mounts: [{destination: /b}]\n", "neither a source nor a type"},
		{good + "  mounts: [{source: /a, destination: /b, options: ['rw,dev']}]\n", "want an option of mount(8)"},
		{good + "  environment: [=x]\n", `container.environment[0]: "=x", want KEY=VALUE`},
		{good + "  environmentFile: env\n", "container.environmentFile"},
		{good + "  security: {maskedPaths: [proc]}\n", `container.security.maskedPaths[0]: "proc", want an absolute path`},
		{good + "  security: {rootfsPropagation: sharde}\n", `did you mean "shared"?`},
		{good + "depends: [{}]\n", "depends[0]: 0 dependencies, want one of"},
		{good + "depends: [{time: true, path: /x}]\n", ":4:11: depends[0]: 2 dependencies, want one of"},
		{good + "depends: [{path: x}]\n", `depends[0].path: "x"`},
		{good + "depends: [{service: ext-x}]\n", "depends[0].service: the service itself"},
		{good + "depends: [{network: [adresses]}]\n", `did you mean "addresses"?`},
		{good + "  args: [" + strings.Repeat("a,", 300) + "]\n", "container.args: 300 items, want at most 256"},
		{good + "#" + strings.Repeat("x", maxFile), "bytes, want at most 65536"},
	} {
		_, err := Parse("file", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "file") {
			t.Errorf("%.80q: %v, want %s", c.text, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	if list, err := Load(filepath.Join(t.TempDir(), "none")); list != nil || err != nil {
		t.Errorf("%v, %v", list, err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": "name: a\ncontainer: {entrypoint: a}\n", "b.yaml": "name: a\ncontainer: {entrypoint: a}\n", "c.yaml": "name: []\n",
		"d.yaml": "name: d\ncontainer: {entrypoint: d}\n", "README": "no service",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "e.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := Load(dir)
	if len(list) != 2 || list[0].Name != "a" || list[1].Name != "d" {
		t.Errorf("%+v", list)
	}
	for _, want := range []string{"b.yaml: service a is that of " + dir + "/a.yaml already", "c.yaml:1:7", "e.yaml: d"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("name: x\ncontainer: {entrypoint: /x}\nrunnerMode: host\n"))
	f.Add([]byte("name: [x]\ndepends: [{network: [a]}, {}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("file", data)
		if err != nil {
			return
		}
		if !isName(s.Name) || s.Container.Entrypoint == "" || len(s.Container.Mounts) > maxList {
			t.Errorf("%+v", s)
		}
	})
}

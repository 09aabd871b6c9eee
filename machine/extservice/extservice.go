// Package extservice reads what Talos calls extension services: YAML files of
// system extensions in /usr/local/etc/containers, each of a container that the
// node is to run. Its root file system is the directory of the same name in
// /usr/local/lib/containers. The format is documented at
// https://docs.siderolabs.com/talos, "Extension Services":
//
//	name: hello
//	container:
//	  entrypoint: ./hello             # in the container's root file system
//	  args: [--verbose]
//	  environment: [LEVEL=1]
//	  environmentFile: /var/etc/hello.env
//	  mounts:                         # as in the OCI runtime specification
//	    - {source: /var/log, destination: /var/log, type: bind, options: [rbind, rw]}
//	  security:
//	    writeableRootfs: false
//	    writeableSysfs: false
//	    maskedPaths: []               # instead of the usual ones
//	    readonlyPaths: []
//	    rootfsPropagation: slave
//	depends:                          # one key each
//	  - service: containerd
//	  - path: /run/hello
//	  - network: [addresses, connectivity, hostname, etcfiles]
//	  - time: true
//	  - configuration: true
//	restart: always                   # never, untilSuccess
//	logToConsole: true
//	runnerMode: container             # host: entrypoint is a program of the node
package extservice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

// Where a node has the files and the root file systems.
const (
	Dir     = "/usr/local/etc/containers"
	RootDir = "/usr/local/lib/containers"
)

// Bounds of what people write.
const (
	maxFile     = 64 << 10 // bytes
	maxServices = 256
	maxName     = 63 // bytes
	maxList     = 256
)

// Values of Restart.
const (
	RestartAlways       = "always" // also if it is empty
	RestartNever        = "never"
	RestartUntilSuccess = "untilSuccess"
)

// Values of RunnerMode.
const (
	RunContainer = "container" // also if it is empty
	RunHost      = "host"
)

// A Service is what a file says.
type Service struct {
	Name         string       `yaml:"name"`
	Container    Container    `yaml:"container"`
	Depends      []Dependency `yaml:"depends"`
	Restart      string       `yaml:"restart"`
	LogToConsole bool         `yaml:"logToConsole"`
	RunnerMode   string       `yaml:"runnerMode"`
}

// A Container is what a service runs.
type Container struct {
	Entrypoint      string   `yaml:"entrypoint"`
	Args            []string `yaml:"args"`
	Environment     []string `yaml:"environment"`     // KEY=VALUE
	EnvironmentFile string   `yaml:"environmentFile"` // which is waited for
	Mounts          []Mount  `yaml:"mounts"`
	Security        Security `yaml:"security"`
}

// A Mount is one of the OCI runtime specification.
type Mount struct {
	Type        string   `yaml:"type"`
	Source      string   `yaml:"source"`
	Destination string   `yaml:"destination"`
	Options     []string `yaml:"options"`
}

// Security says what a container may do besides what all may. What is nil was not
// said.
type Security struct {
	WriteableRootfs   bool      `yaml:"writeableRootfs"`
	WriteableSysfs    bool      `yaml:"writeableSysfs"`
	MaskedPaths       *[]string `yaml:"maskedPaths"`
	ReadonlyPaths     *[]string `yaml:"readonlyPaths"`
	RootfsPropagation string    `yaml:"rootfsPropagation"`
}

// A Dependency is what must be there before a service starts. One of its fields
// is set.
type Dependency struct {
	Service       string   `yaml:"service"`
	Path          string   `yaml:"path"`
	Network       []string `yaml:"network"`
	Time          bool     `yaml:"time"`
	Configuration bool     `yaml:"configuration"`
}

// Load reads the files of a directory, in the order of their names. A directory
// that is not there has none. Those that are right are returned with the errors
// about the others.
func Load(dir string) ([]*Service, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*Service
	var failed []error
	first := map[string]string{}
	for _, e := range entries {
		if path.Ext(e.Name()) != ".yaml" {
			continue
		}
		name := filepath.Join(dir, e.Name())
		if len(list) == maxServices {
			failed = append(failed, fmt.Errorf("%s: more than %d services, the others are left out", name, maxServices))
			break
		}
		s, err := read(name)
		if err == nil && first[s.Name] != "" {
			err = fmt.Errorf("%s: service %s is that of %s already", name, s.Name, first[s.Name])
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		first[s.Name] = name
		list = append(list, s)
	}
	return list, errors.Join(failed...)
}

func read(name string) (*Service, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s: %v of %d bytes, want a file of at most %d", name, fi.Mode().Type(), fi.Size(), maxFile)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return Parse(name, data)
}

// Parse reads a file. name stands for it in errors, which are of type
// *strictyaml.Error.
func Parse(name string, data []byte) (*Service, error) {
	if len(data) > maxFile {
		return nil, strictyaml.Join([]strictyaml.Problem{{File: name, Text: fmt.Sprintf("%d bytes, want at most %d", len(data), maxFile)}})
	}
	s := &Service{}
	if err := strictyaml.Decode(name, data, s); err != nil {
		return nil, err
	}
	c := &checker{name: name, data: data}
	c.service(s)
	if err := strictyaml.Join(c.problems); err != nil {
		return nil, err
	}
	return s, nil
}

// A checker collects what is wrong.
type checker struct {
	name     string
	data     []byte
	problems []strictyaml.Problem
}

func (c *checker) add(key, format string, args ...any) {
	line, column := strictyaml.Find(c.data, key)
	c.problems = append(c.problems, strictyaml.Problem{File: c.name, Line: line, Column: column, Text: key + ": " + fmt.Sprintf(format, args...)})
}

// one wants a word of a list; an empty one stands for the first.
func (c *checker) one(key, value string, known ...string) {
	if value != "" && !slices.Contains(known, value) {
		c.add(key, "unknown value %q%s", value, spelling.Hint(value, known))
	}
}

func (c *checker) list(key string, list []string, good func(string) bool, want string) {
	if len(list) > maxList {
		c.add(key, "%d items, want at most %d", len(list), maxList)
		return
	}
	for i, v := range list {
		if strings.ContainsRune(v, 0) || !good(v) {
			c.add(fmt.Sprintf("%s[%d]", key, i), "%q, want %s", v, want)
		}
	}
}

func (c *checker) service(s *Service) {
	if !isName(s.Name) {
		c.add("name", "%q, want a name of at most %d lower-case letters, digits, '-' and '_'", s.Name, maxName)
	}
	c.one("restart", s.Restart, RestartAlways, RestartNever, RestartUntilSuccess)
	c.one("runnerMode", s.RunnerMode, RunContainer, RunHost)
	c.container(s)
	if len(s.Depends) > maxList {
		c.add("depends", "%d items, want at most %d", len(s.Depends), maxList)
		return
	}
	for i, d := range s.Depends {
		c.dependency(fmt.Sprintf("depends[%d]", i), s, d)
	}
}

func (c *checker) container(s *Service) {
	x := &s.Container
	switch {
	case x.Entrypoint == "" || strings.ContainsRune(x.Entrypoint, 0):
		c.add("container.entrypoint", "%q, want the path of a program", x.Entrypoint)
	case s.RunnerMode == RunHost && !isPath(x.Entrypoint):
		c.add("container.entrypoint", "%q, want the absolute path of a program of the node", x.Entrypoint)
	}
	anything := func(string) bool { return true }
	c.list("container.args", x.Args, anything, "text without a zero byte")
	c.list("container.environment", x.Environment, isVariable, "KEY=VALUE")
	if x.EnvironmentFile != "" && !isPath(x.EnvironmentFile) {
		c.add("container.environmentFile", "%q, want an absolute path without . and ..", x.EnvironmentFile)
	}
	if len(x.Mounts) > maxList {
		c.add("container.mounts", "%d items, want at most %d", len(x.Mounts), maxList)
		return
	}
	for i, m := range x.Mounts {
		where := fmt.Sprintf("container.mounts[%d]", i)
		if !isPath(m.Destination) || m.Destination == "/" {
			c.add(where+".destination", "%q, want an absolute path without . and .. below the container's root", m.Destination)
		}
		if m.Type == "" && m.Source == "" {
			c.add(where+".source", "neither a source nor a type, want one of them")
		}
		if (m.Type == "" || m.Type == "bind") && m.Source != "" && !isPath(m.Source) {
			c.add(where+".source", "%q, want an absolute path without . and ..", m.Source)
		}
		c.list(where+".options", m.Options, func(o string) bool { return o != "" && !strings.Contains(o, ",") }, "an option of mount(8)")
	}
	y := &x.Security
	for key, list := range map[string]*[]string{"maskedPaths": y.MaskedPaths, "readonlyPaths": y.ReadonlyPaths} {
		if list != nil {
			c.list("container.security."+key, *list, isPath, "an absolute path without . and ..")
		}
	}
	c.one("container.security.rootfsPropagation", y.RootfsPropagation, "private", "rprivate", "slave", "rslave", "shared", "rshared")
}

func (c *checker) dependency(where string, s *Service, d Dependency) {
	given := 0
	for _, is := range []bool{d.Service != "", d.Path != "", len(d.Network) > 0, d.Time, d.Configuration} {
		if is {
			given++
		}
	}
	if given != 1 {
		c.add(where, "%d dependencies, want one of service, path, network, time and configuration", given)
		return
	}
	switch {
	case d.Service != "" && !isName(d.Service):
		c.add(where+".service", "%q, want the name of a service", d.Service)
	case d.Service == "ext-"+s.Name:
		c.add(where+".service", "the service itself")
	case d.Path != "" && !isPath(d.Path):
		c.add(where+".path", "%q, want an absolute path without . and ..", d.Path)
	}
	for i, n := range d.Network {
		if i < maxList {
			c.one(fmt.Sprintf("%s.network[%d]", where, i), n, "addresses", "connectivity", "hostname", "etcfiles")
		}
	}
}

func isName(s string) bool {
	for _, r := range s {
		if !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

func isPath(s string) bool { return path.IsAbs(s) && path.Clean(s) == s && !strings.ContainsRune(s, 0) }

func isVariable(s string) bool {
	key, _, ok := strings.Cut(s, "=")
	return ok && key != ""
}

//go:build linux

package stage

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/kernel/modalias"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modprobe"
	"github.com/kilnhq/kiln/machine/modules"
)

// origins say which extension something comes from.
type origins struct {
	Modules map[string]string `json:"modules"` // by the module's name
	Files   map[string]string `json:"files"`   // modules-load.d, by path
}

// add adds what an extension's tree brings.
func (o *origins) add(tree fs.FS, release, extension string) error {
	for _, dir := range []string{"usr/lib/modules", "lib/modules"} {
		err := fs.WalkDir(tree, path.Join(dir, release), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(path.Base(p), ".ko") {
				o.Modules[modalias.Name(p)] = extension
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range []string{"usr/lib", "etc"} {
		files, err := fs.Glob(tree, dir+"/modules-load.d/*.conf")
		if err != nil {
			return err
		}
		for _, f := range files {
			o.Files[f] = extension
		}
	}
	return nil
}

// askedFor returns the modules to load: those of the manifests, in the order of
// the extensions, then those of modules-load.d.
func askedFor(list *layers.List, root fs.FS, from origins) ([]layers.Module, error) {
	asked := slices.Clone(list.Modules)
	files, err := modules.ReadLoad(root)
	for _, a := range files {
		asked = append(asked, layers.Module{Name: a.Name, Extension: from.Files[a.File]})
	}
	return asked, err
}

// configure makes a Loader whose modules get their parameters no matter what
// loads them: a device, the list or, by way of modprobe, the kernel. The kernel
// command line has the last word.
func configure(s *start, dir string, asked []layers.Module) (*modules.Loader, error) {
	config, err := modules.ReadConfig(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	for _, n := range config.Notes() {
		log("%s", n)
	}
	loader, err := modules.Open(dir, config)
	if err != nil {
		return nil, err
	}
	conf := options(loader.Index(), config, asked)
	config.AddCommandLine(s.args)
	if len(conf) == 0 {
		return loader, nil
	}
	if err := os.MkdirAll(filepath.Dir(optionsFile), 0o755); err != nil {
		return nil, err
	}
	return loader, os.WriteFile(optionsFile, conf, 0o444)
}

// options adds the parameters of the modules that are asked for to the
// configuration, and returns them as a file of modprobe.d.
func options(index *modules.Index, config *modules.Config, asked []layers.Module) []byte {
	var b bytes.Buffer
	for _, m := range asked {
		if strings.TrimSpace(m.Parameters) == "" {
			continue
		}
		names, err := index.Resolve(m.Name)
		if err != nil {
			continue // loading it will say so
		}
		for _, n := range names {
			config.AddOptions(n, m.Parameters)
			// The space keeps a backslash at the end from continuing the line.
			fmt.Fprintf(&b, "options %s %s \n", n, m.Parameters)
		}
	}
	return b.Bytes()
}

// loadAsked loads the modules that extensions ask for. One that cannot be
// loaded is reported and does not keep the node from starting: it may be the
// one with which the node reports.
func loadAsked(loader *modules.Loader, asked []layers.Module) (names, failed []string) {
	for _, m := range asked {
		names = append(names, m.Name)
		var e *modules.Error
		if err := loader.Load(m.Name, ""); err != nil && !(errors.As(err, &e) && e.State == modules.Skipped) {
			failed = append(failed, m.Name)
		}
	}
	return names, failed
}

// module is an entry of the state file: what became of a module that an
// extension brings or asks for.
type module struct {
	Name       string        `json:"name"`
	Extension  string        `json:"extension,omitempty"`
	State      modules.State `json:"state"`
	Reason     string        `json:"reason,omitempty"`
	Parameters string        `json:"parameters,omitempty"`
	File       string        `json:"file,omitempty"`
}

// unused is the reason of a module that was not even tried.
const unused = "nothing asks for it: it is in no list and no device here needs it"

// An inventory follows what becomes of the modules of extensions and of the machine
// configuration.
type inventory struct {
	loader *modules.Loader
	from   map[string]string // module -> extension that brings it
	asked  []layers.Module   // by extensions

	mu     sync.Mutex
	told   map[string]module // what the console was told
	wanted []layers.Module   // by the machine configuration
	given  map[string]bool   // modules that it gives parameters
	own    map[string]bool   // modules that nothing but it has loaded
}

// facts are what the kernel and the processes next to this one know.
type facts struct {
	inKernel  map[string]bool           // by name
	unsigned  map[string]bool           // of those, the ones the kernel has no valid signature of
	requested map[string]modules.Report // by modprobe
}

func readFacts() (facts, error) {
	f := facts{inKernel: map[string]bool{}, unsigned: map[string]bool{}}
	data, err := os.ReadFile("/proc/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // as in kernels without modules
		return f, err
	}
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, " ")
		f.inKernel[name] = true
		// The last column may be the taint flags: E is for unsigned.
		if i := strings.LastIndexByte(rest, '('); i >= 0 && strings.Contains(rest[i:], "E") {
			f.unsigned[name] = true
		}
	}
	f.requested, err = modprobe.Reports(modprobe.Dir)
	return f, err
}

// list returns what became of every module that an extension brings or asks
// for, sorted by name.
func (v *inventory) list(f facts) []module {
	all := map[string]module{}
	for name, extension := range v.from {
		all[name] = module{Name: name, Extension: extension}
	}
	for _, a := range slices.Concat(v.asked, v.wanted) {
		names, err := v.loader.Resolve(a.Name)
		if err != nil || len(names) == 0 {
			names = []string{modalias.Fold(a.Name)}
		}
		for _, n := range names {
			if _, ok := all[n]; !ok {
				all[n] = module{Name: n, Extension: a.Extension}
			}
		}
	}
	own := map[string]modules.Report{}
	for _, r := range v.loader.Reports() {
		own[r.Name] = r
	}
	list := make([]module, 0, len(all))
	for _, m := range all {
		r := v.outcome(m.Name, own, f)
		m.State, m.Reason, m.Parameters, m.File = r.State, r.Reason, r.Parameters, r.File
		if m.File == "" && m.State != modules.Builtin {
			m.File = v.loader.File(m.Name)
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b module) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// outcome is the last word on one module.
func (v *inventory) outcome(name string, own map[string]modules.Report, f facts) modules.Report {
	mine, tried := own[name]
	theirs, requested := f.requested[name]
	switch {
	case f.inKernel[name]:
		r := mine
		if theirs.State == modules.Loaded && (mine.State != modules.Loaded || mine.Before) {
			r = theirs
		}
		if r.State != modules.Loaded {
			r = modules.Report{}
		}
		r.State = modules.Loaded
		switch wanted := v.loader.Parameters(name); {
		case v.differs(name, r.Parameters, wanted) != "":
			r.Reason = v.differs(name, r.Parameters, wanted)
		case r.Reason != "":
		case wanted != "" && r.Parameters == "":
			r.Reason = "was in the kernel before its parameters were known: " + wanted
		case f.unsigned[name]:
			r.Reason = "not signed by a key that the kernel trusts, which taints it"
		}
		return r
	case v.loader.Index().Builtin(name):
		r := modules.Report{State: modules.Builtin}
		if p := v.loader.Parameters(name); p != "" {
			r.Reason = "part of the kernel, which takes its parameters from the command line only: " + p
		}
		return r
	case requested && theirs.State == modules.Failed && mine.State != modules.Failed:
		return theirs
	case tried && mine.State != modules.Loaded:
		return mine
	case requested && theirs.State != modules.Loaded:
		return theirs
	case tried || requested:
		return modules.Report{State: modules.Skipped, Reason: "was loaded, and unloaded again"}
	}
	return modules.Report{State: modules.Skipped, Reason: unused}
}

// update tells the console what is new and writes the state file. Modules that
// nothing asked for share a line for each extension, and only if all is true.
func (v *inventory) update(c *console.Console, file string, all bool) ([]module, error) {
	f, err := readFacts()
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	list := v.list(f)
	v.tell(c, list, all)
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, err
	}
	out, err := atomicfile.Create(file, 0o444)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if _, err := out.Write(append(data, '\n')); err != nil {
		return nil, err
	}
	return list, out.Commit()
}

func (v *inventory) tell(c *console.Console, list []module, all bool) {
	if v.told == nil {
		v.told = map[string]module{}
	}
	idle := map[string][]string{}
	for _, m := range list {
		if v.told[m.Name] == m || m.Reason == unused && !all {
			continue
		}
		v.told[m.Name] = m
		if m.Reason == unused {
			idle[m.Extension] = append(idle[m.Extension], m.Name)
			continue
		}
		fields := []console.Field{console.F("name", m.Name), console.F("state", m.State), console.F("extension", m.Extension)}
		if m.Parameters != "" {
			fields = append(fields, console.F("parameters", m.Parameters))
		}
		if m.Reason != "" {
			fields = append(fields, console.F("reason", m.Reason))
		}
		c.Module(fields...)
	}
	for _, extension := range slices.Sorted(maps.Keys(idle)) {
		c.Module(console.F("name", strings.Join(idle[extension], ",")), console.F("state", modules.Skipped),
			console.F("extension", extension), console.F("reason", unused))
	}
}

// named returns the names of the modules in a state, with commas.
func named(list []module, state modules.State) string {
	var names []string
	for _, m := range list {
		if m.State == state {
			names = append(names, m.Name)
		}
	}
	return strings.Join(names, ",")
}

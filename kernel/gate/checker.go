package gate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/kernel/modalias"
	"github.com/kilnhq/kiln/kernel/module"
)

// placed is a module and where it came from.
type placed struct {
	Module
	origin string
	rel    string // path below usr/lib/modules/RELEASE; empty if it is elsewhere
	fits   bool   // built for this kernel
	hidden bool   // another module of the same name is in its place
}

type checker struct {
	system   *System
	release  string
	all      []placed          // of the layers
	winners  map[string]winner // the module that modprobe will load, by name
	exports  map[string]export // by symbol, of all modules that modprobe can load
	aliases  []string          // of all modules, folded; nil until they are needed
	findings []Finding
}

// winner is the module that modprobe will load for a name.
type winner struct {
	path string
	info *module.Info
	own  *placed // nil if it is the system's
}

// export is who exports a symbol.
type export struct {
	module.Export
	by winner
}

func (c *checker) add(m *placed, s Severity, code Code, found, wanted, fix string, symbols ...string) {
	c.findings = append(c.findings, Finding{Code: code, Severity: s, Origin: m.origin, File: m.Path,
		Found: found, Wanted: wanted, Fix: fix, Symbols: symbols})
}

func (c *checker) bad(m *placed, code Code, found, wanted, fix string, symbols ...string) {
	c.add(m, Error, code, found, wanted, fix, symbols...)
}

func (c *checker) warn(m *placed, code Code, found, wanted, fix string, symbols ...string) {
	c.add(m, Warning, code, found, wanted, fix, symbols...)
}

func (c *checker) info(m *placed, code Code, found, wanted, fix string, symbols ...string) {
	c.add(m, Info, code, found, wanted, fix, symbols...)
}

// collect finds out which modules can be loaded and what they export.
func (c *checker) collect(layers []Layer) {
	c.winners, c.exports = map[string]winner{}, map[string]export{}
	for _, l := range layers {
		for _, m := range l.Modules {
			rel, _ := strings.CutPrefix(m.Path, dirOf(c.release)+"/")
			if rel == m.Path {
				rel = ""
			}
			c.all = append(c.all, placed{Module: m, origin: l.Name, rel: rel})
		}
	}
	for _, m := range c.system.Modules {
		c.winners[m.Info.Name] = winner{m.Path, m.Info, nil}
	}
	for i := range c.all {
		m := &c.all[i]
		if m.fits = c.fits(m); m.fits && m.rel != "" {
			c.place(m)
		}
	}
	for _, name := range sortedKeys(c.winners) {
		w := c.winners[name]
		for _, e := range w.info.Exports {
			if other, ok := c.exports[e.Name]; ok {
				c.duplicate(e.Name, w, other.by)
				continue
			}
			c.exports[e.Name] = export{e, w}
		}
	}
}

// place lets m be loaded, unless there is a module of its name that depmod
// prefers: those below updates/ win; otherwise it is left to chance.
func (c *checker) place(m *placed) {
	name := m.Info.Name
	if c.system.Builtin[name] {
		c.bad(m, ModuleDuplicate, "a module of the name "+name, "that is part of the kernel itself", "the kernel's cannot be replaced; rename the module")
		m.hidden = true
		return
	}
	other, ok := c.winners[name]
	if !ok {
		c.winners[name] = winner{m.rel, m.Info, m}
		return
	}
	whose := "the base has it as " + other.path
	if other.own != nil {
		whose = fmt.Sprintf("extension %s has it as %s", other.own.origin, other.own.Path)
	}
	switch mine, theirs := updates(m.rel), updates(other.path); {
	case mine == theirs:
		c.bad(m, ModuleDuplicate, "a module of the name "+name, whose, "put the one that is meant to win into "+dirOf(c.release)+"/updates/, or leave it out")
		m.hidden = true
	case mine:
		c.warn(m, ModuleShadow, "takes the place of another module "+name, whose, "remove it from updates/ if that is not meant")
		if other.own != nil {
			other.own.hidden = true
		}
		c.winners[name] = winner{m.rel, m.Info, m}
	default:
		c.warn(m, ModuleShadow, "will not be used", whose, "leave it out")
		m.hidden = true
	}
}

func updates(rel string) bool { return strings.HasPrefix(rel, "updates/") }

// duplicate reports a symbol that two modules export; the kernel refuses the
// second.
func (c *checker) duplicate(symbol string, a, b winner) {
	if a.own == nil {
		a, b = b, a
	}
	if a.own == nil {
		return // the distribution's own affair
	}
	whose := "the base's " + b.path + " does, too"
	if b.own != nil {
		whose = fmt.Sprintf("%s of extension %s does, too", b.path, b.own.origin)
	}
	c.bad(a.own, SymbolDuplicate, "exports symbol "+symbol, whose, "the kernel loads only one of them; leave one out", symbol)
}

// module runs all checks on a module of a layer.
func (c *checker) module(m *placed) {
	c.compression(m)
	if !m.fits {
		return
	}
	c.directory(m)
	c.signature(m)
	if m.hidden {
		return
	}
	c.symbols(m)
	c.softdeps(m)
	c.firmware(m)
}

// requests checks what a manifest says about modules.
func (c *checker) requests(l Layer) {
	m := &placed{origin: l.Name, Module: Module{Path: "manifest.yaml"}}
	for _, list := range []struct {
		key  string
		reqs []Request
	}{{"kernel.modules", l.Load}, {"kernel.options", l.Options}} {
		for _, r := range list.reqs {
			name := modalias.Fold(r.Name)
			w, ok := c.winners[name]
			if !ok {
				if !c.known(name) {
					c.bad(m, ModuleUnknown, list.key+" names "+r.Name, "neither the base nor an extension has a module or alias of that name", "add the module, or correct the name")
				}
				continue
			}
			c.parameters(m, list.key, w.info, r.Parameters)
		}
	}
}

func (c *checker) parameters(m *placed, key string, info *module.Info, words string) {
	var names []string
	for _, p := range info.Parameters {
		names = append(names, p.Name)
	}
	for _, word := range splitParameters(words) {
		name, _, _ := strings.Cut(word, "=")
		name = strings.ReplaceAll(name, "-", "_")
		// The kernel's own, of every module.
		if name == "dyndbg" || name == "async_probe" || slices.Contains(names, name) {
			continue
		}
		has := "it has no parameters"
		if len(names) > 0 {
			has = "its parameters are " + strings.Join(names, ", ")
		}
		c.bad(m, Parameter, fmt.Sprintf("%s gives %s the parameter %s", key, info.Name, name), has, "correct the name")
	}
}

// splitParameters splits at spaces outside double quotes, as the kernel does.
func splitParameters(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
}

// known reports whether there is a module or alias of that name.
func (c *checker) known(name string) bool {
	name = modalias.Fold(name)
	if _, ok := c.winners[name]; ok || c.system.Builtin[name] {
		return true
	}
	if c.aliases == nil {
		c.aliases = foldAll(c.system.BuiltinAliases)
		for _, w := range c.winners {
			c.aliases = append(c.aliases, foldAll(w.info.Aliases)...)
		}
	}
	return slices.ContainsFunc(c.aliases, func(pattern string) bool { return modalias.Match(pattern, name) })
}

func foldAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = modalias.Fold(s)
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

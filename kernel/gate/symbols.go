package gate

import (
	"fmt"
	"strings"
)

// gplCompatible are the licenses with which a module may use GPL-only symbols
// (include/linux/license.h).
var gplCompatible = map[string]bool{
	"GPL": true, "GPL v2": true, "GPL and additional rights": true,
	"Dual BSD/GPL": true, "Dual MIT/GPL": true, "Dual MPL/GPL": true,
}

// complaint collects the symbols of one kind of finding.
type complaint struct{ symbols, modules []string }

func (p *complaint) add(symbol string) { p.symbols = append(p.symbols, symbol) }

// symbols resolves everything the module imports as the kernel does: first in
// the kernel itself, then in the modules that export it.
func (c *checker) symbols(m *placed) {
	var missing, changed, unversed, gpl, proprietary, space complaint
	absent := map[string][]string{} // by module of the kernel that is not in the base
	spaces := map[string]bool{}
	for _, ns := range m.Info.ImportNS {
		spaces[ns] = true
	}
	gplOK := gplCompatible[m.Info.License]
	versions := c.system.Config.Yes("MODVERSIONS")
	usesGPL := ""
	var tainted []string
	for _, im := range m.Info.Imports {
		sym, provider, ok := c.resolve(im.Name)
		switch {
		case !ok && im.Weak:
			continue
		case !ok:
			if s, known := c.system.Symbols[im.Name]; known && s.Module != "" {
				absent[s.Module] = append(absent[s.Module], im.Name)
			} else {
				missing.add(im.Name)
			}
			continue
		}
		switch {
		case !versions || sym.CRC == 0:
		case im.CRC == 0:
			unversed.add(im.Name)
		case im.CRC != sym.CRC:
			changed.add(im.Name)
			if provider != nil {
				changed.modules = append(changed.modules, provider.info.Name)
			}
		}
		if sym.GPL {
			usesGPL = im.Name
			if !gplOK {
				gpl.add(im.Name)
			}
		}
		if sym.Namespace != "" && !spaces[sym.Namespace] {
			space.add(im.Name + " (" + sym.Namespace + ")")
		}
		if provider != nil && !gplCompatible[provider.info.License] {
			tainted = append(tainted, provider.info.Name)
		}
	}
	for _, name := range sortedKeys(absent) {
		list := absent[name]
		c.bad(m, Depends, fmt.Sprintf("needs module %s, for %s", name, some(list)), "which is neither in the base nor in an extension",
			"add it: 'kiln extension build --kernel PACKAGE' takes it from the kernel's package, --module "+name+" by itself", list...)
	}
	if list := missing.symbols; len(list) > 0 {
		c.bad(m, SymbolMissing, "needs "+plural(len(list), "symbol", "symbols")+" "+some(list), "which neither the kernel nor any module exports",
			"add the extension with the module that does, or build it for this kernel", list...)
	}
	if list := changed.symbols; len(list) > 0 {
		against := "the base's kernel"
		if len(changed.modules) == len(list) {
			against = "the module " + changed.modules[0]
		}
		c.bad(m, SymbolVersion, "built against another version of "+some(list), against+" has different CRCs",
			"rebuild it with the Module.symvers of what it uses", list...)
	}
	if list := unversed.symbols; len(list) > 0 {
		c.bad(m, SymbolUnversed, "has no CRC of "+some(list), "the base's kernel wants them (CONFIG_MODVERSIONS)",
			"rebuild it with the Module.symvers of what it uses", list...)
	}
	if list := gpl.symbols; len(list) > 0 {
		c.bad(m, SymbolGPL, fmt.Sprintf("license %q, uses %s", m.Info.License, some(list)), "which only GPL-compatible modules may",
			"ask its author; the kernel will not load it", list...)
	}
	if usesGPL != "" && len(tainted) > 0 && gplOK {
		proprietary.add(usesGPL)
		c.bad(m, SymbolGPL, fmt.Sprintf("uses %s and module %s", usesGPL, tainted[0]), "which is not GPL-compatible; the kernel allows only one of both",
			"ask its author; the kernel will not load it", proprietary.symbols...)
	}
	if list := space.symbols; len(list) > 0 {
		add := c.bad
		if c.system.Config.Yes("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") {
			add = c.warn
		}
		add(m, SymbolNamespace, "uses "+some(list), "it does not import their name spaces", "add MODULE_IMPORT_NS to its source and rebuild it", list...)
	}
	c.shadowed(m)
}

// resolve returns who exports a symbol; provider is nil for the kernel itself.
func (c *checker) resolve(name string) (s Symbol, provider *winner, ok bool) {
	if s, ok := c.system.Symbols[name]; ok && s.Module == "" {
		return s, nil, true
	}
	e, ok := c.exports[name]
	if !ok {
		return Symbol{}, nil, false
	}
	return Symbol{CRC: e.CRC, GPL: e.GPL, Namespace: e.Namespace, Module: e.by.info.Name}, &e.by, true
}

// shadowed checks the exports of a module: against the kernel's own, and, if the
// module took the place of one of the base's, for the base's other modules.
func (c *checker) shadowed(m *placed) {
	var twice []string
	for _, e := range m.Info.Exports {
		if s, ok := c.system.Symbols[e.Name]; ok && s.Module == "" {
			twice = append(twice, e.Name)
		}
	}
	if len(twice) > 0 {
		c.bad(m, SymbolDuplicate, "exports "+plural(len(twice), "symbol", "symbols")+" "+some(twice), "the kernel itself does, too",
			"the kernel will not load it; leave it out", twice...)
	}
	was := -1
	for i, b := range c.system.Modules {
		if b.Info.Name == m.Info.Name {
			was = i
		}
	}
	if was < 0 {
		return
	}
	users := map[string][]string{}
	offered := map[string]bool{}
	for _, e := range c.system.Modules[was].Info.Exports {
		offered[e.Name] = true
	}
	for _, b := range c.system.Modules {
		if c.winners[b.Info.Name].own != nil {
			continue
		}
		for _, im := range b.Info.Imports {
			if !offered[im.Name] || im.Weak {
				continue
			}
			if s, _, ok := c.resolve(im.Name); !ok || s.CRC != im.CRC && s.CRC != 0 && im.CRC != 0 {
				users[b.Info.Name] = append(users[b.Info.Name], im.Name)
			}
		}
	}
	for _, name := range sortedKeys(users) {
		c.bad(m, SymbolVersion, "takes the place of the base's "+m.Info.Name+" without the "+some(users[name])+" it had", "the base's "+name+" needs them",
			"add a "+strings.ReplaceAll(name, "_", "-")+" that was built with it", users[name]...)
	}
}

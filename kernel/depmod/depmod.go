// Package depmod computes the index of a kernel's modules, the files that
// depmod(8) writes to /lib/modules/RELEASE and modprobe(8) reads:
//
//	modules.dep               path of each module: paths of all it needs
//	modules.alias             patterns of device ids and the module for each
//	modules.symbols           exported symbols and the module of each
//	modules.softdep           soft dependencies
//	modules.devname           device nodes that load a module when opened
//	modules.{dep,alias,symbols}.bin          the same as binary tries
//	modules.builtin.bin, .builtin.alias.bin  what is built into the kernel
//
// The files are byte for byte those of kmod 30's depmod on a directory that has
// no earlier index. Most of what they hold is described in depmod(8),
// modules.dep(5) and libkmod's index format; the rest, the order of lines and
// of the paths in them, is a property of kmod's implementation that this
// package follows: see order.go and trie.go.
//
// The index is a function of the modules' facts (package module), which a
// caller can store; the modules themselves are not needed.
package depmod

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/kernel/module"
)

// Module is a module file and its facts.
type Module struct {
	Path string // relative to /lib/modules/RELEASE: "kernel/fs/ext4/ext4.ko.xz"
	Info *module.Info
}

// Input is what an index is computed from. The byte slices are the files of
// these names that the kernel's build installs; a nil slice is a missing file.
type Input struct {
	Modules        []Module // in any order
	Order          []byte   // modules.order
	Builtin        []byte   // modules.builtin
	BuiltinModinfo []byte   // modules.builtin.modinfo

	// SystemMap is the kernel's System.map. It does not change the index; with
	// it the Result tells which symbols are missing.
	SystemMap []byte
}

// Result is an index and what was noticed while computing it.
type Result struct {
	// Files are the contents of the files depmod writes, by name.
	Files map[string][]byte

	// Unresolved are the symbols that neither the kernel nor any module
	// exports, by module in modules.dep's order. Weak ones are left out. It is
	// empty if no System.map was given.
	Unresolved []Unresolved

	// Shadowed are the modules that are not in the index because another file
	// holds a module of the same name, sorted by path.
	Shadowed []Shadowed
}

// Unresolved is a symbol that a module needs and nothing exports.
type Unresolved struct {
	Path   string // of the module
	Symbol string
}

// Shadowed is a module that another one of the same name hides.
type Shadowed struct {
	Path string // not in the index
	By   string // in the index

	// Tie says that neither directory has precedence: depmod would take the
	// one that the file system lists first. Here it is the first by path.
	Tie bool
}

// CycleError is the error for modules that need each other, which can never be
// loaded. Depmod writes no index for them either.
type CycleError struct {
	Modules []string // names; each needs the next and the last the first
}

func (e *CycleError) Error() string {
	return fmt.Sprintf("modules need each other: %s -> %s", strings.Join(e.Modules, " -> "), e.Modules[0])
}

// entry is a module in the index.
type entry struct {
	Module
	name string
	deps []int32 // the modules whose symbols it uses, in order of first use

	// position in an order in which every module precedes those it needs
	topological int32
}

// Index computes the index. Apart from cycles it fails for names and aliases
// that the index cannot hold.
func Index(in Input) (*Result, error) {
	mods, shadowed, err := collect(in.Modules)
	if err != nil {
		return nil, err
	}
	mods = sorted(mods, in.Order)
	symbols := exports(mods)
	res := &Result{Files: map[string][]byte{}, Shadowed: shadowed}
	if res.Unresolved, err = resolve(mods, symbols, in.SystemMap); err != nil {
		return nil, err
	}
	if err := sortTopologically(mods); err != nil {
		return nil, err
	}

	write := func(name string, content []byte, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		res.Files[name] = content
		return nil
	}
	lines := dependencyLines(mods)
	res.Files["modules.dep"] = []byte(strings.Join(append(lines, ""), "\n"))
	depBin, err := dependencyTrie(mods, lines)
	if err := write("modules.dep.bin", depBin, err); err != nil {
		return nil, err
	}
	alias, err := aliases(mods)
	if err := write("modules.alias", alias, err); err != nil {
		return nil, err
	}
	aliasBin, err := aliasTrie(mods)
	if err := write("modules.alias.bin", aliasBin, err); err != nil {
		return nil, err
	}
	text, trie, err := symbolFiles(mods, symbols)
	if err := write("modules.symbols", text, err); err != nil {
		return nil, err
	}
	res.Files["modules.symbols.bin"] = trie
	soft, err := softdeps(mods)
	if err := write("modules.softdep", soft, err); err != nil {
		return nil, err
	}
	res.Files["modules.devname"] = devnames(mods)
	builtin, err := builtinTrie(in.Builtin)
	if err := write("modules.builtin.bin", builtin, err); err != nil {
		return nil, err
	}
	builtinAlias, err := builtinAliasTrie(in.BuiltinModinfo)
	if err := write("modules.builtin.alias.bin", builtinAlias, err); err != nil {
		return nil, err
	}
	return res, nil
}

// collect returns the modules of the index: of several with the same name the
// one below updates/, which depmod searches first unless configured otherwise.
func collect(all []Module) ([]entry, []Shadowed, error) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	mods := make([]entry, 0, len(all))
	byName := make(map[string]int, len(all))
	var shadowed []Shadowed
	for i, m := range all {
		if !module.IsFile(m.Path) {
			return nil, nil, fmt.Errorf("module %q: wanted a path that ends in .ko, .ko.xz, .ko.zst or .ko.gz", m.Path)
		}
		if err := checkWord(m.Path); err != nil {
			return nil, nil, fmt.Errorf("module %q: the path contains %w", m.Path, err)
		}
		if m.Info == nil {
			return nil, nil, fmt.Errorf("module %s: no facts", m.Path)
		}
		if i > 0 && m.Path == all[i-1].Path {
			return nil, nil, fmt.Errorf("module %s: given twice", m.Path)
		}
		name := module.Name(m.Path)
		n, dup := byName[name]
		if !dup {
			byName[name] = len(mods)
			mods = append(mods, entry{Module: m, name: name})
			continue
		}
		loser := m
		if isUpdate(m.Path) && !isUpdate(mods[n].Path) {
			loser, mods[n].Module = mods[n].Module, m
		}
		shadowed = append(shadowed, Shadowed{Path: loser.Path})
	}
	for i := range shadowed {
		s := &shadowed[i]
		s.By = mods[byName[module.Name(s.Path)]].Path
		s.Tie = isUpdate(s.Path) == isUpdate(s.By)
	}
	slices.SortFunc(shadowed, func(a, b Shadowed) int { return strings.Compare(a.Path, b.Path) })
	return mods, shadowed, nil
}

func isUpdate(path string) bool { return strings.HasPrefix(path, "updates/") }

// checkWord returns an error that names the first byte of a name which would
// end a word or line of the text files or which a trie cannot hold.
func checkWord(s string) error {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f {
			return fmt.Errorf("byte 0x%02x, wanted printable ASCII", c)
		}
	}
	return nil
}

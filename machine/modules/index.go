// Package modules loads kernel modules: what modprobe(8) does, without it.
//
// It reads the text index that depmod(8) writes to
// /usr/lib/modules/RELEASE: modules.dep (one line "FILE: DEPENDENCY…" per
// module, paths relative to the directory, dependencies in the reverse of the
// order they must be loaded in), modules.alias ("alias PATTERN NAME"),
// modules.softdep ("softdep NAME pre: NAME… post: NAME…") and modules.builtin
// (the files that are part of the kernel), as modules.dep(5) and modprobe.d(5)
// describe them.
//
// A device announces itself by a modalias such as
// "pci:v00001AF4d00001000sv…"; the modules whose alias pattern matches are its
// drivers.
package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// ErrNotFound is wrapped by errors for a name that is neither a module nor an
// alias of one.
var ErrNotFound = errors.New("module not found")

// maxIndex bounds an index file, in bytes. The largest in a distribution
// kernel (modules.alias) is 1.4 MB.
const maxIndex = 64 << 20

// An Index knows the modules of one kernel. Its methods may be called from one
// goroutine at a time.
//
// The kernel starts modprobe many times while it boots, mostly in vain, so
// reading an index must be quick: lines stay as they are until they are needed.
type Index struct {
	dir       fs.FS
	config    *Config           // has aliases and soft dependencies too
	modules   map[string]string // lines of modules.dep by name
	builtin   map[string]bool
	soft      map[string]softdep
	aliasText string             // of modules.alias, folded; empty until needed
	aliases   map[string][]alias // by the literal start of the pattern; nil until Prepare
}

// A Module is one line of modules.dep.
type Module struct {
	Name string   // folded, as in /proc/modules
	File string   // relative to the modules directory
	Deps []string // files, in the order of the line: the last is loaded first
}

type softdep struct{ pre, post []string }

type alias struct{ pattern, module string }

// ReadIndex reads the index files in dir, which is the modules directory of one
// kernel release. A missing modules.dep is an error; the other files are
// optional.
func ReadIndex(dir fs.FS) (*Index, error) {
	x := &Index{dir: dir, modules: map[string]string{}, builtin: map[string]bool{}, soft: map[string]softdep{}}
	dep, err := readFile(dir, "modules.dep")
	if err != nil {
		return nil, err
	}
	if err := x.parseDep(dep); err != nil {
		return nil, fmt.Errorf("modules.dep: %w", err)
	}
	for _, f := range []struct {
		name  string
		parse func(string)
	}{
		{"modules.builtin", x.parseBuiltin},
		{"modules.softdep", x.parseSoftdep},
	} {
		data, err := readFile(dir, f.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.parse(data)
	}
	return x, nil
}

func readFile(dir fs.FS, name string) (string, error) {
	info, err := fs.Stat(dir, name)
	if err != nil {
		return "", err
	}
	if info.Size() > maxIndex {
		return "", fmt.Errorf("%s: %d bytes, more than %d", name, info.Size(), maxIndex)
	}
	data, err := fs.ReadFile(dir, name)
	return string(data), err
}

// lines calls f for every line that is neither empty nor a comment.
func lines(text string, f func(number int, line string)) {
	for n := 1; len(text) > 0; n++ {
		line, rest, _ := strings.Cut(text, "\n")
		text = rest
		if line = strings.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			f(n, line)
		}
	}
}

func (x *Index) parseDep(data string) error {
	var bad error
	lines(data, func(n int, line string) {
		file, _, ok := strings.Cut(line, ":")
		if !ok || file == "" {
			bad = errors.Join(bad, fmt.Errorf("line %d: found %.80q, want \"FILE: DEPENDENCY…\"", n, line))
			return
		}
		name := modalias.Name(file)
		if _, again := x.modules[name]; again {
			return // the first wins, as with kmod
		}
		x.modules[name] = line
	})
	return bad
}

func (x *Index) parseBuiltin(data string) {
	lines(data, func(_ int, line string) { x.builtin[modalias.Name(line)] = true })
}

// parseSoftdep reads "softdep NAME [pre: …] [post: …]". Names before either
// keyword mean nothing, as with kmod; repeated lines add up.
func (x *Index) parseSoftdep(data string) {
	lines(data, func(_ int, line string) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "softdep" {
			return
		}
		addSoftdep(x.soft, fields[1], fields[2:])
	})
}

// addSoftdep adds the words that follow "softdep NAME".
func addSoftdep(all map[string]softdep, name string, words []string) {
	name = modalias.Fold(name)
	s := all[name]
	var list *[]string
	for _, f := range words {
		switch {
		case f == "pre:":
			list = &s.pre
		case f == "post:":
			list = &s.post
		case list != nil:
			*list = append(*list, modalias.Fold(f))
		}
	}
	all[name] = s
}

// readAliases reads modules.alias, once.
func (x *Index) readAliases() error {
	if x.aliasText != "" {
		return nil
	}
	data, err := readFile(x.dir, "modules.alias")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	x.aliasText = modalias.Fold(data) + "\n"
	return nil
}

// eachAlias calls f for the lines "alias PATTERN MODULE".
func eachAlias(text string, f func(alias)) {
	lines(text, func(_ int, line string) {
		rest, ok := strings.CutPrefix(line, "alias ")
		if !ok {
			return
		}
		if pattern, module, ok := strings.Cut(rest, " "); ok {
			f(alias{pattern, module})
		}
	})
}

// Prepare makes the following calls of Aliased quick. It pays from some ten
// calls on.
func (x *Index) Prepare() error {
	if err := x.readAliases(); err != nil {
		return err
	}
	x.aliases = map[string][]alias{}
	eachAlias(x.aliasText, func(a alias) {
		start := a.pattern[:literal(a.pattern)]
		x.aliases[start] = append(x.aliases[start], a)
	})
	return nil
}

// Lookup returns the module of that name.
func (x *Index) Lookup(name string) (Module, bool) {
	name = modalias.Fold(name)
	line, ok := x.modules[name]
	file, deps, _ := strings.Cut(line, ":")
	return Module{Name: name, File: file, Deps: strings.Fields(deps)}, ok
}

// Builtin reports whether the named module is part of the kernel.
func (x *Index) Builtin(name string) bool { return x.builtin[modalias.Fold(name)] }

// Aliased returns the names of the modules with an alias that matches s, each
// once, sorted. Aliases of the configuration take the place of the modules' own.
// The error is that of reading modules.alias.
func (x *Index) Aliased(s string) ([]string, error) {
	if names := x.config.aliased(s); len(names) > 0 {
		return names, nil
	}
	if err := x.readAliases(); err != nil {
		return nil, err
	}
	s = modalias.Fold(s)
	var names []string
	if x.aliases == nil {
		eachAlias(x.aliasText, func(a alias) {
			if modalias.Match(a.pattern, s) {
				names = append(names, a.module)
			}
		})
	}
	for i := range len(s) + 1 {
		for _, a := range x.aliases[s[:i]] {
			if modalias.Match(a.pattern[i:], s[i:]) {
				names = append(names, a.module)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Resolve returns the names of the modules that name stands for: those that the
// configuration gives that alias, or the module of that name or, failing that,
// those with a matching alias. A name that is built
// into the kernel resolves to nothing. The error of an unknown name wraps
// ErrNotFound.
func (x *Index) Resolve(name string) ([]string, error) {
	if names := x.config.aliased(name); len(names) > 0 {
		return names, nil
	}
	if m, ok := x.Lookup(name); ok {
		return []string{m.Name}, nil
	}
	if x.Builtin(name) {
		return nil, nil
	}
	names, err := x.Aliased(name)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: %w: no module or alias of that name", name, ErrNotFound)
	}
	return names, nil
}

// Closure returns the names of the modules that loading name brings in, itself
// and its soft dependencies included, sorted.
func (x *Index) Closure(name string) ([]string, error) {
	seen := map[string]bool{}
	var walk func(string) error
	walk = func(name string) error {
		names, err := x.Resolve(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			m, ok := x.Lookup(n)
			if !ok || seen[n] {
				continue
			}
			seen[n] = true
			for _, d := range m.Deps {
				if err := walk(modalias.Name(d)); err != nil {
					return err
				}
			}
			soft := x.softdeps(n)
			for _, s := range slices.Concat(soft.pre, soft.post) {
				if err := walk(s); err != nil && !errors.Is(err, ErrNotFound) {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(name); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(seen))
	for n := range seen {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

// softdeps returns the soft dependencies of the module, those of the
// configuration first.
func (x *Index) softdeps(name string) softdep {
	s := x.soft[name]
	if x.config != nil {
		more := x.config.soft[name]
		s.pre, s.post = slices.Concat(more.pre, s.pre), slices.Concat(more.post, s.post)
	}
	return s
}

// literal returns the length of the part of pattern before its first special
// byte.
func literal(pattern string) int {
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		return i
	}
	return len(pattern)
}

package module

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/kernel/modalias"
)

// Entry is a module and where it lies.
type Entry struct {
	Path string // relative to /lib/modules/RELEASE: "kernel/fs/ext4/ext4.ko.xz"
	Info *Info
}

// Set is all modules of one kernel, those built into it included. It answers
// what modprobe would load for a name.
type Set struct {
	entries  []Entry           // sorted by path
	byName   map[string]int    // index of the module, by name as in its path
	owner    map[string]int    // index of the module that exports a symbol
	aliases  map[string][]int  // indexes of modules, by alias without wildcards
	patterns []aliasPattern    // the other aliases
	builtin  map[string]string // path by name, as in modules.builtin
}

type aliasPattern struct {
	prefix, pattern string // what precedes the first wildcard, and all of it
	module          int
}

// NewSet returns the set of the modules in entries. builtin is the content of
// the kernel's modules.builtin, a path to a line; it may be nil. Of modules
// with the same name those below updates/ are preferred, as depmod does, then
// the first by path.
func NewSet(entries []Entry, builtin []byte) *Set {
	s := &Set{
		entries: slices.Clone(entries),
		byName:  make(map[string]int, len(entries)),
		owner:   map[string]int{},
		aliases: map[string][]int{},
		builtin: map[string]string{},
	}
	sort.SliceStable(s.entries, func(i, j int) bool { return s.entries[i].Path < s.entries[j].Path })
	for i, e := range s.entries {
		name := Name(e.Path)
		if old, dup := s.byName[name]; !dup || isUpdate(e.Path) && !isUpdate(s.entries[old].Path) {
			s.byName[name] = i
		}
	}
	for i, e := range s.entries {
		if s.byName[Name(e.Path)] != i {
			continue
		}
		for _, x := range e.Info.Exports {
			s.owner[x.Name] = i
		}
		for _, alias := range e.Info.Aliases {
			alias = Fold(alias)
			if n := strings.IndexAny(alias, `*?[\`); n >= 0 {
				s.patterns = append(s.patterns, aliasPattern{alias[:n], alias, i})
			} else {
				s.aliases[alias] = append(s.aliases[alias], i)
			}
		}
	}
	for line := range bytes.Lines(builtin) {
		if file := string(bytes.TrimSpace(line)); file != "" {
			s.builtin[Name(file)] = file
		}
	}
	return s
}

func isUpdate(file string) bool { return strings.HasPrefix(file, "updates/") }

// Builtin reports whether a module of that name is built into the kernel.
func (s *Set) Builtin(name string) bool {
	_, ok := s.builtin[Fold(name)]
	return ok
}

// Lookup returns the modules that modprobe would load for a name, without those
// they depend on: the module of that name, otherwise all that have a matching
// alias, sorted by path. A device's modalias ("pci:v00001AF4d…") is such a name.
func (s *Set) Lookup(name string) []Entry {
	var found []Entry
	for _, i := range s.lookup(name) {
		found = append(found, s.entries[i])
	}
	return found
}

func (s *Set) lookup(name string) []int {
	name = Fold(name)
	if i, ok := s.byName[name]; ok {
		return []int{i}
	}
	if s.Builtin(name) {
		return nil
	}
	found := slices.Clone(s.aliases[name])
	for _, p := range s.patterns {
		if strings.HasPrefix(name, p.prefix) && modalias.Match(p.pattern, name) {
			found = append(found, p.module)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Selection is a choice of modules that can be loaded together.
type Selection struct {
	Paths    []string // sorted
	Firmware []string // what the modules may ask for, sorted; below /lib/firmware
}

// Select returns the modules that match the patterns, all modules they need,
// and those that their soft and weak dependencies name, if there are any.
//
// A pattern with a slash is matched with paths, where '*' matches within one
// element and "**" any number of elements; ".ko" and a compression's suffix
// may be left out: "kernel/drivers/net/**", "kernel/fs/ext4/ext4". A pattern
// without is matched with names, where '-' and '_' are the same: "virtio*",
// "ext4". A pattern that begins with '!' takes its matches out of those of all
// other patterns; a module that another one needs comes in nevertheless.
//
// A pattern that matches nothing is an error, unless it names what is built
// into the kernel.
func (s *Set) Select(patterns ...string) (*Selection, error) {
	chosen := make([]bool, len(s.entries))
	var excluded []int
	for _, pattern := range patterns {
		exclude := strings.HasPrefix(pattern, "!")
		matches, err := s.glob(strings.TrimPrefix(pattern, "!"))
		if err != nil {
			return nil, err
		}
		if exclude {
			excluded = append(excluded, matches...)
			continue
		}
		for _, i := range matches {
			chosen[i] = true
		}
	}
	for _, i := range excluded {
		chosen[i] = false
	}
	if err := s.close(chosen); err != nil {
		return nil, err
	}

	sel := &Selection{}
	for i, ok := range chosen {
		if ok {
			sel.Paths = append(sel.Paths, s.entries[i].Path)
			sel.Firmware = append(sel.Firmware, s.entries[i].Info.Firmware...)
		}
	}
	slices.Sort(sel.Firmware)
	sel.Firmware = slices.Compact(sel.Firmware)
	return sel, nil
}

// close adds what the chosen modules need.
func (s *Set) close(chosen []bool) error {
	var todo []int
	for i, ok := range chosen {
		if ok {
			todo = append(todo, i)
		}
	}
	add := func(i int) {
		if !chosen[i] {
			chosen[i] = true
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		e := s.entries[todo[len(todo)-1]]
		todo = todo[:len(todo)-1]
		for _, name := range e.Info.Depends {
			if i, ok := s.byName[name]; ok {
				add(i)
			} else if !s.Builtin(name) {
				return fmt.Errorf("module %s needs module %s, which is neither among the %d modules nor built in",
					e.Path, name, len(s.entries))
			}
		}
		// A module built without the others' Module.symvers names none in
		// Depends; modprobe goes by symbols.
		for _, m := range e.Info.Imports {
			if i, ok := s.owner[m.Name]; ok {
				add(i)
			}
		}
		pre, post, other := e.Info.SoftDeps()
		weak := strings.Fields(strings.Join(e.Info.Weakdeps, " "))
		for _, name := range slices.Concat(pre, post, other, weak) {
			for _, i := range s.lookup(name) {
				add(i)
			}
		}
	}
	return nil
}

// glob returns the modules that match a pattern.
func (s *Set) glob(pattern string) ([]int, error) {
	if err := checkPattern(pattern); err != nil {
		return nil, err
	}
	var matches []int
	byPath := strings.Contains(pattern, "/")
	match := func(file string) bool {
		if !byPath {
			return modalias.Match(Fold(pattern), Name(file))
		}
		plain := TrimCompression(file)
		elements := strings.Split(pattern, "/")
		for _, f := range []string{file, plain, strings.TrimSuffix(plain, ".ko")} {
			if matchPath(elements, strings.Split(f, "/")) {
				return true
			}
		}
		return false
	}
	for i, e := range s.entries {
		if match(e.Path) && s.byName[Name(e.Path)] == i {
			matches = append(matches, i)
		}
	}
	if len(matches) > 0 {
		return matches, nil
	}
	for _, file := range s.builtin {
		if match(file) {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("module pattern %q matches none of the %d modules%s", pattern, len(s.entries), s.suggest(pattern))
}

// suggest returns the end of an error message for a pattern without matches:
// a module's name or path that the user may have meant.
func (s *Set) suggest(pattern string) string {
	byPath := strings.Contains(pattern, "/")
	want := pattern
	if !byPath {
		want = Fold(pattern)
	}
	if byPath {
		// The module may be elsewhere than the user thinks.
		if i, ok := s.byName[Name(pattern)]; ok {
			return fmt.Sprintf("; did you mean %q?", s.entries[i].Path)
		}
		want = Name(path.Base(pattern))
	}
	names := make([]string, len(s.entries))
	for i, e := range s.entries {
		names[i] = Name(e.Path)
	}
	best, ok := spelling.Nearest(want, names)
	switch {
	case !ok:
		return ""
	case byPath:
		return fmt.Sprintf("; did you mean %q?", s.entries[s.byName[best]].Path)
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

package depmod

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Kmod's depmod keeps its modules and symbols in hash tables and walks those
// tables when it writes: the lines of modules.symbols are in the order of the
// table of symbols, the modules that modules.order does not name in that of
// the table of modules. Its tables have a power of two of buckets, chosen by
// the low bits of Paul Hsieh's "SuperFastHash"; a bucket is sorted by strcmp.
const (
	moduleBuckets = 512
	symbolBuckets = 2048
)

// superFastHash is Paul Hsieh's hash function
// (http://www.azillionmonkeys.com/qed/hash.html), where bytes are signed.
func superFastHash(key string) uint32 {
	u16 := func(s string) uint32 { return uint32(s[0]) | uint32(s[1])<<8 }
	hash := uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		hash += u16(key)
		tmp := u16(key[2:])<<11 ^ hash
		hash = hash<<16 ^ tmp
		hash += hash >> 11
	}
	switch len(key) {
	case 3:
		hash += u16(key)
		hash ^= hash << 16
		hash ^= uint32(int32(int8(key[2]))) << 18
		hash += hash >> 11
	case 2:
		hash += u16(key)
		hash ^= hash << 11
		hash += hash >> 17
	case 1:
		hash += uint32(int32(int8(key[0])))
		hash ^= hash << 10
		hash += hash >> 1
	}
	hash ^= hash << 3
	hash += hash >> 5
	hash ^= hash << 4
	hash += hash >> 17
	hash ^= hash << 25
	hash += hash >> 6
	return hash
}

// hashOrder sorts items by their keys as a walk through a hash table with that
// many buckets meets them. Keys must be unique.
func hashOrder[T any](items []T, buckets uint32, key func(*T) string) []T {
	counts := make([]int, buckets+1)
	hashes := make([]uint32, len(items))
	for i := range items {
		hashes[i] = superFastHash(key(&items[i])) & (buckets - 1)
		counts[hashes[i]+1]++
	}
	for i := range buckets {
		counts[i+1] += counts[i]
	}
	out := make([]T, len(items))
	next := slices.Clone(counts)
	for i := range items {
		out[next[hashes[i]]] = items[i]
		next[hashes[i]]++
	}
	for i := range buckets {
		slices.SortFunc(out[counts[i]:counts[i+1]], func(a, b T) int {
			return strings.Compare(key(&a), key(&b))
		})
	}
	return out
}

// maxLine is the size of the buffer depmod reads lines into, with their NUL.
const maxLine = 4096

// sorted returns the modules in the order of the index: those that
// modules.order names come first, in its order.
func sorted(mods []entry, order []byte) []entry {
	mods = hashOrder(mods, moduleBuckets, func(e *entry) string { return e.name })
	position := make(map[string]int, len(mods))
	n := 0
	for line := range bytes.Lines(order) {
		if line[len(line)-1] != '\n' || len(line) >= maxLine || bytes.IndexByte(line, 0) >= 0 {
			return mods // depmod ignores a file it takes for damaged
		}
		n++
		position[string(line[:len(line)-1])] = n
	}
	rank := make(map[string]int, len(mods))
	for i := range mods {
		p := position[uncompressedPath(&mods[i])]
		if p == 0 {
			p = n + 1
		}
		rank[mods[i].Path] = p
	}
	slices.SortStableFunc(mods, func(a, b entry) int { return rank[a.Path] - rank[b.Path] })
	return mods
}

// uncompressedPath returns the path by which modules.order knows a module: up
// to a ".ko" that is taken to be behind the module's name.
func uncompressedPath(e *entry) string {
	end := strings.LastIndexByte(e.Path, '/') + 1 + len(e.name) + len(".ko")
	return e.Path[:min(end, len(e.Path))]
}

// symbolOwner is an exported symbol.
type symbolOwner struct {
	name string
	mod  int32 // index of the module that exports it
}

// exports returns the exported symbols in depmod's order and a module for
// each, the last one of the index if several export it.
func exports(mods []entry) []symbolOwner {
	total := 0
	for i := range mods {
		total += len(mods[i].Info.Exports)
	}
	index := make(map[string]int32, total)
	list := make([]symbolOwner, 0, total)
	add := func(name string, mod int32) {
		if name == "" {
			return
		}
		if n, ok := index[name]; ok {
			list[n].mod = mod
			return
		}
		index[name] = int32(len(list))
		list = append(list, symbolOwner{name, mod})
	}
	for i := range mods {
		info := mods[i].Info
		for _, e := range info.Exports {
			add(e.Name, int32(i))
		}
		if !info.Versioned() {
			// Without CRCs depmod takes every string of __ksymtab_strings for
			// a symbol, and the name spaces are among them.
			for _, e := range info.Exports {
				add(e.Namespace, int32(i))
			}
		}
	}
	return hashOrder(list, symbolBuckets, func(s *symbolOwner) string { return s.name })
}

// resolve finds the modules that each module needs, and the symbols nothing
// exports if there is a System.map.
func resolve(mods []entry, symbols []symbolOwner, systemMap []byte) ([]Unresolved, error) {
	owner := make(map[string]int32, len(symbols))
	for _, s := range symbols {
		owner[s.name] = s.mod
	}
	kernel, err := kernelExports(systemMap)
	if err != nil {
		return nil, err
	}
	var unresolved []Unresolved
	seen := make([]int32, len(mods)) // the last module that has it as dependency, plus one
	for i := range mods {
		m := &mods[i]
		for _, imp := range m.Info.Imports {
			name := strings.TrimPrefix(imp.Name, ".") // PowerPC: .foo is foo
			dep, ok := owner[name]
			if !ok {
				if kernel != nil && !imp.Weak && !kernel[name] {
					unresolved = append(unresolved, Unresolved{m.Path, imp.Name})
				}
				continue
			}
			if seen[dep] != int32(i)+1 {
				seen[dep] = int32(i) + 1
				m.deps = append(m.deps, dep)
			}
		}
	}
	return unresolved, nil
}

// kernelExports returns the symbols that the kernel itself exports, nil if
// there is no System.map. Its lines are "ffffffff82a0c3e4 r __ksymtab_printk".
func kernelExports(systemMap []byte) (map[string]bool, error) {
	if systemMap == nil {
		return nil, nil
	}
	exports := map[string]bool{}
	for line := range bytes.Lines(systemMap) {
		fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 3)
		if len(fields) < 3 {
			continue
		}
		if name, ok := bytes.CutPrefix(fields[2], []byte("__ksymtab_")); ok {
			exports[string(name)] = true
		}
	}
	if len(exports) == 0 {
		return nil, fmt.Errorf("found no exported symbols (__ksymtab_…) in a System.map of %d bytes; Debian's kernel packages hold a placeholder", len(systemMap))
	}
	// The module loader provides these.
	for _, name := range []string{"__this_module", "_GLOBAL_OFFSET_TABLE_", "TOC."} {
		exports[name] = true
	}
	return exports, nil
}

// sortTopologically numbers the modules such that each precedes those it
// needs: it takes the last of the modules nothing else needs, and appends what
// only that one needed to the list it takes from.
func sortTopologically(mods []entry) error {
	users := make([]int32, len(mods))
	for i := range mods {
		for _, d := range mods[i].deps {
			users[d]++
		}
	}
	var ready []int32
	for i := range users {
		if users[i] == 0 {
			ready = append(ready, int32(i))
		}
	}
	n := int32(0)
	for len(ready) > 0 {
		i := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		mods[i].topological = n
		n++
		for _, d := range mods[i].deps {
			if users[d]--; users[d] == 0 {
				ready = append(ready, d)
			}
		}
	}
	if int(n) < len(mods) {
		return findCycle(mods, users)
	}
	for i := range mods {
		sortByTopology(mods, mods[i].deps)
	}
	return nil
}

func sortByTopology(mods []entry, list []int32) {
	slices.SortFunc(list, func(a, b int32) int { return int(mods[a].topological - mods[b].topological) })
}

// findCycle returns a cycle among the modules that still have users: following
// users upwards from any of them ends in one.
func findCycle(mods []entry, users []int32) error {
	// Each module that is left is needed by another one that is left.
	user := make([]int32, len(mods))
	start := int32(-1)
	for i := range mods {
		if users[i] == 0 {
			continue
		}
		start = int32(i)
		for _, d := range mods[i].deps {
			user[d] = int32(i)
		}
	}
	seen := make([]bool, len(mods))
	at := start
	for !seen[at] {
		seen[at] = true
		at = user[at]
	}
	cycle := []string{mods[at].name}
	for next := user[at]; next != at; next = user[next] {
		cycle = append(cycle, mods[next].name)
	}
	slices.Reverse(cycle)
	// Begin with the first by name, so that the error does not depend on what
	// else is there.
	first := slices.Index(cycle, slices.Min(cycle))
	return &CycleError{Modules: append(slices.Clone(cycle[first:]), cycle[:first]...)}
}

package depmod

import (
	"bytes"
	"fmt"

	"github.com/kilnhq/kiln/kernel/module"
)

// builtinTrie returns modules.builtin.bin. It is empty, not even a trie, if
// the kernel has no modules.builtin.
func builtinTrie(builtin []byte) ([]byte, error) {
	if builtin == nil {
		return []byte{}, nil
	}
	var t trie
	n := 0
	for line := range bytes.Lines(builtin) {
		n++
		if len(line) >= maxLine {
			return nil, fmt.Errorf("line %d of modules.builtin has %d bytes, the limit is %d", n, len(line), maxLine-1)
		}
		if c := line[0] | 0x20; c < 'a' || c > 'z' {
			continue // not a path
		}
		if err := t.insert(module.Name(string(line)), "", 0); err != nil {
			return nil, fmt.Errorf("line %d of modules.builtin: %w", n, err)
		}
	}
	return t.encode()
}

// builtinAliasTrie returns modules.builtin.alias.bin, which is empty if the
// kernel has no modules.builtin.modinfo. That file is a sequence of
// "module.key=value" strings, each ended by a NUL.
func builtinAliasTrie(modinfo []byte) ([]byte, error) {
	if modinfo == nil {
		return []byte{}, nil
	}
	var t trie
	for len(modinfo) > 0 {
		var field []byte
		if end := bytes.IndexByte(modinfo, 0); end >= 0 {
			field, modinfo = modinfo[:end], modinfo[end+1:]
		} else {
			break // depmod ignores a string that is cut off
		}
		name, rest, ok := bytes.Cut(field, []byte("."))
		key, value, ok2 := bytes.Cut(rest, []byte("="))
		if !ok || !ok2 || len(name) == 0 || string(key) != "alias" || len(value) == 0 {
			continue
		}
		alias, ok := normalizeAlias(string(value))
		if !ok {
			continue
		}
		if err := t.insert(alias, string(name), 0); err != nil {
			return nil, fmt.Errorf("modules.builtin.modinfo: alias of %s: %w", name, err)
		}
	}
	return t.encode()
}

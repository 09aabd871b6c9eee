package depmod

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/module"
)

// dependencyLines returns the lines of modules.dep, without newlines.
func dependencyLines(mods []entry) []string {
	lines := make([]string, len(mods))
	seen := make([]int32, len(mods)) // the last module it was found for, plus one
	var closure []int32
	var line []byte
	for i := range mods {
		closure = closure[:0]
		add := func(deps []int32) {
			for _, d := range deps {
				if seen[d] != int32(i)+1 {
					seen[d] = int32(i) + 1
					closure = append(closure, d)
				}
			}
		}
		add(mods[i].deps)
		for n := 0; n < len(closure); n++ {
			add(mods[closure[n]].deps)
		}
		sortByTopology(mods, closure)

		line = append(append(line[:0], mods[i].Path...), ':')
		for _, d := range closure {
			line = append(append(line, ' '), mods[d].Path...)
		}
		lines[i] = string(line)
	}
	return lines
}

func dependencyTrie(mods []entry, lines []string) ([]byte, error) {
	t := trie{items: make([]trieItem, 0, len(mods))}
	for i := range mods {
		if err := t.insert(mods[i].name, lines[i], i); err != nil {
			return nil, err
		}
	}
	return t.encode()
}

// checkLine is checkWord for text in which spaces may occur.
func checkLine(s string) error {
	return checkWord(strings.ReplaceAll(s, " ", "_"))
}

func aliases(mods []entry) ([]byte, error) {
	out := []byte("# Aliases extracted from modules themselves.\n")
	for i := range mods {
		for _, alias := range mods[i].Info.Aliases {
			if err := checkLine(alias); err != nil {
				return nil, fmt.Errorf("%s: alias %q contains %w", mods[i].Path, alias, err)
			}
			out = append(append(out, "alias "...), alias...)
			out = append(append(out, ' '), mods[i].name...)
			out = append(out, '\n')
		}
	}
	return out, nil
}

func aliasTrie(mods []entry) ([]byte, error) {
	n := 0
	for i := range mods {
		n += len(mods[i].Info.Aliases)
	}
	t := trie{items: make([]trieItem, 0, n)}
	for i := range mods {
		for _, alias := range mods[i].Info.Aliases {
			key, ok := normalizeAlias(alias)
			if !ok {
				continue
			}
			if err := t.insert(key, mods[i].name, i); err != nil {
				return nil, fmt.Errorf("%s: alias: %w", mods[i].Path, err)
			}
		}
	}
	return t.encode()
}

// normalizeAlias folds an alias. An alias with unmatched brackets is only in
// the text file.
func normalizeAlias(alias string) (string, bool) {
	for rest := alias; ; {
		i := strings.IndexAny(rest, "[]")
		if i < 0 {
			return module.Fold(alias), true
		}
		end := strings.IndexByte(rest[i:], ']')
		if rest[i] == ']' || end < 0 {
			return "", false
		}
		rest = rest[i+end+1:]
	}
}

func softdeps(mods []entry) ([]byte, error) {
	out := []byte("# Soft dependencies extracted from modules themselves.\n")
	for i := range mods {
		for _, dep := range mods[i].Info.Softdeps {
			if err := checkLine(dep); err != nil {
				return nil, fmt.Errorf("%s: softdep %q contains %w", mods[i].Path, dep, err)
			}
			out = append(out, "softdep "+mods[i].name+" "+dep+"\n"...)
		}
	}
	return out, nil
}

// symbolFiles returns modules.symbols and modules.symbols.bin.
func symbolFiles(mods []entry, symbols []symbolOwner) (text, bin []byte, err error) {
	const header, prefix = "# Aliases for symbols, used by symbol_request().\n", "alias symbol:"
	text = []byte(header)
	for _, s := range symbols {
		if err := checkWord(s.name); err != nil {
			return nil, nil, fmt.Errorf("%s: symbol %q contains %w", mods[s.mod].Path, s.name, err)
		}
		text = append(append(text, prefix...), s.name...)
		text = append(append(text, ' '), mods[s.mod].name...)
		text = append(text, '\n')
	}

	t := trie{items: make([]trieItem, 0, len(symbols))}
	lines := string(text[len(header):])
	for _, s := range symbols {
		// The key "symbol:NAME" is a part of the line, without another copy.
		key := lines[len("alias ") : len(prefix)+len(s.name)]
		lines = lines[len(prefix)+len(s.name)+1+len(mods[s.mod].name)+1:]
		if err := t.insert(key, mods[s.mod].name, int(s.mod)); err != nil {
			return nil, nil, err
		}
	}
	bin, err = t.encode()
	return text, bin, err
}

// devnames returns modules.devname: the modules that have aliases for a device
// node's name and for its number. The file is empty if there is none.
func devnames(mods []entry) []byte {
	var out []byte
	for i := range mods {
		var name, number string
		for _, alias := range mods[i].Info.Aliases {
			if rest, ok := strings.CutPrefix(alias, "devname:"); ok {
				name = rest
			} else if rest, ok := strings.CutPrefix(alias, "char-major-"); ok {
				number = deviceNumber("c", rest, number)
			} else if rest, ok := strings.CutPrefix(alias, "block-major-"); ok {
				number = deviceNumber("b", rest, number)
			}
			if name != "" && number != "" {
				break
			}
		}
		if name == "" || number == "" {
			continue
		}
		if len(out) == 0 {
			out = append(out, "# Device nodes to trigger on-demand module loading.\n"...)
		}
		out = append(out, mods[i].name+" "+name+" "+number+"\n"...)
	}
	return out
}

// deviceNumber returns "c10:229" for ("c", "10-229"), otherwise if that is not
// a device's number; wildcards ("10-*") stand for many.
func deviceNumber(kind, number, otherwise string) string {
	major, rest, ok := decimal(number)
	if !ok || !strings.HasPrefix(rest, "-") {
		return otherwise
	}
	minor, _, ok := decimal(rest[1:])
	if !ok {
		return otherwise
	}
	return fmt.Sprintf("%s%d:%d", kind, major, minor)
}

// decimal parses the number that s starts with.
func decimal(s string) (n uint32, rest string, ok bool) {
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	v, err := strconv.ParseUint(s[:end], 10, 32)
	return uint32(v), s[end:], err == nil
}

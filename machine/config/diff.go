package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"
)

// A Change is a difference of two configurations. Secrets are not in it.
type Change struct {
	Document string `json:"document"`      // kind, and name if there can be several: Link/eth0
	Path     string `json:"path"`          // of the value in it: routes[0].via; empty for all of it
	Old      string `json:"old,omitempty"` // what was there, shortened; empty if nothing was
	New      string `json:"new,omitempty"` // what is there, shortened; empty if nothing is
}

// String returns the change as one line that begins with +, - or ~.
func (c Change) String() string {
	what := strings.TrimSpace(c.Document + " " + c.Path)
	switch {
	case c.Path == "" && c.Old == "":
		return "+ " + what
	case c.Path == "":
		return "- " + what
	case c.Old == "":
		return fmt.Sprintf("+ %s: %s", what, c.New)
	case c.New == "":
		return fmt.Sprintf("- %s: %s", what, c.Old)
	}
	return fmt.Sprintf("~ %s: %s -> %s", what, c.Old, c.New)
}

// Diff returns what has to change in before for it to be after: in the order of
// Encode. Values that are defaults count as not there.
func Diff(before, after *Config) []Change {
	var changes []Change
	was, is := leaves(before), leaves(after)
	for _, doc := range merge(was.order, is.order) {
		a, inA := was.documents[doc]
		b, inB := is.documents[doc]
		switch {
		case !inA:
			changes = append(changes, Change{Document: doc, New: doc})
		case !inB:
			changes = append(changes, Change{Document: doc, Old: doc})
		default:
			for _, path := range merge(a.order, b.order) {
				if x, y := a.values[path], b.values[path]; x != y {
					changes = append(changes, Change{doc, path, x.shown, y.shown})
				}
			}
		}
	}
	return changes
}

// A leaf is a value that has no parts.
type leaf struct{ text, shown string }

type leafDocument struct {
	order  []string
	values map[string]leaf
}

type leafConfig struct {
	order     []string
	documents map[string]leafDocument
}

func leaves(c *Config) leafConfig {
	out := leafConfig{documents: map[string]leafDocument{}}
	plain, hidden := encoder{}.documents(c), encoder{hide: true}.documents(c)
	for i, doc := range plain {
		d := leafDocument{values: map[string]leaf{}}
		d.add("", doc.node, hidden[i].node)
		out.order = append(out.order, doc.name)
		out.documents[doc.name] = d
	}
	return out
}

// add adds the leaves of n. shown is the same without secrets.
func (d *leafDocument) add(path string, n, shown *yaml.Node) {
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) > 0:
		for i := 0; i < len(n.Content); i += 2 {
			d.add(strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1], shown.Content[i+1])
		}
	case n.Kind == yaml.SequenceNode && len(n.Content) > 0:
		for i := range n.Content {
			d.add(item(path, i), n.Content[i], shown.Content[i])
		}
	default:
		d.order = append(d.order, path)
		d.values[path] = leaf{n.Tag + n.Value, show(shown)}
	}
}

// maxShown bounds what is shown of a value, in bytes.
const maxShown = 64

func show(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "{}"
	case n.Kind == yaml.SequenceNode:
		return "[]"
	case n.Value == "" || strings.ContainsAny(n.Value, "\n\r\t") || len(n.Value) > maxShown:
		return fmt.Sprintf("%.*q… (%d bytes)", maxShown, n.Value, len(n.Value))
	}
	return n.Value
}

// merge returns what is in a or b, once: in the order of a, with what is in b
// only where b has it.
func merge(a, b []string) []string {
	in, place := map[string]bool{}, map[string]int{}
	for _, s := range a {
		in[s] = true
	}
	for i, s := range b {
		place[s] = i
	}
	out := make([]string, 0, len(a))
	next := 0 // in b
	upTo := func(end int) {
		for ; next < end; next++ {
			if !in[b[next]] {
				out = append(out, b[next])
			}
		}
	}
	for _, s := range a {
		if i, ok := place[s]; ok {
			upTo(i)
		}
		out = append(out, s)
	}
	upTo(len(b))
	return out
}

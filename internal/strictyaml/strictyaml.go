// Package strictyaml decodes one YAML document into Go structs and refuses
// whatever the structs do not know. Every problem is reported at once, with
// file, line and column, and unknown keys come with the nearest known one.
package strictyaml

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/internal/spelling"
)

// maxSize bounds a document in bytes. Profiles, recipes and manifests are
// written by people.
const maxSize = 1 << 20

// maxDepth bounds nesting.
const maxDepth = 64

// maxProblems bounds what is said about one.
const maxProblems = 1000

// Problem is one fault of a document.
type Problem struct {
	File   string
	Line   int // from 1; 0 if unknown
	Column int // from 1; 0 if unknown
	Text   string
}

func (p Problem) Error() string {
	switch {
	case p.Line == 0:
		return p.File + ": " + p.Text
	case p.Column == 0:
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Error lists all problems of a document in order of position.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Decode decodes data, which must be exactly one YAML document without anchors,
// into v, a pointer to a struct with yaml tags. name stands for the document in
// errors. All errors are of type *Error.
func Decode(name string, data []byte, v any) error {
	d := decoder{name: name}
	if len(data) > maxSize {
		return d.fail(0, 0, "%d bytes, want at most %d", len(data), maxSize)
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return d.wrap(err)
	}
	var doc yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return d.fail(0, 0, "empty document")
	case err != nil:
		return d.wrap(err)
	}
	var second yaml.Node
	if err := loader.Load(&second); err == nil {
		return d.fail(second.Line, second.Column, "a second document; want one")
	} else if !errors.Is(err, io.EOF) {
		return d.wrap(err)
	}
	d.check(&doc, reflect.TypeOf(v), "", 0)
	if len(d.problems) > 0 {
		return d.err()
	}
	if err := doc.Decode(v); err != nil {
		return d.wrap(err)
	}
	return nil
}

type decoder struct {
	name     string
	problems []Problem
	strict   *strict // nil for Decode
}

func (d *decoder) add(line, col int, format string, args ...any) {
	if len(d.problems) > maxProblems { // one more is how Join knows
		return
	}
	d.problems = append(d.problems, Problem{d.name, line, col, fmt.Sprintf(format, args...)})
}

// at adds a problem of node n, the value with the key where. The node is not
// decoded any more.
func (d *decoder) at(n *yaml.Node, where, format string, args ...any) {
	d.add(n.Line, n.Column, format, args...)
	d.strict.refuse(n, where)
}

func (d *decoder) fail(line, col int, format string, args ...any) error {
	d.add(line, col, format, args...)
	return d.err()
}

func (d *decoder) err() error { return Join(d.problems) }

// Join returns an *Error with the problems in order of position, or nil if there
// are none.
func Join(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	sort.SliceStable(problems, func(i, j int) bool {
		a, b := problems[i], problems[j]
		return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
	})
	if len(problems) > maxProblems {
		last := Problem{File: problems[0].File, Text: fmt.Sprintf("more than %d problems; the others are left out", maxProblems)}
		problems = append(problems[:maxProblems:maxProblems], last)
	}
	return &Error{problems}
}

// wrap turns the library's errors into problems.
func (d *decoder) wrap(err error) error {
	var many *yaml.LoadErrors
	var one *yaml.LoadError
	switch {
	case errors.As(err, &many):
		for _, e := range many.Errors {
			d.add(e.Mark.Line, e.Mark.Column, "%s", message(e))
		}
	case errors.As(err, &one):
		d.add(one.Mark.Line, one.Mark.Column, "%s", message(one))
	default:
		d.add(0, 0, "%v", err)
	}
	return d.err()
}

func message(e *yaml.LoadError) string {
	if strings.HasPrefix(e.Message, "unknown anchor") { // its name may be a secret that begins with *
		return "an alias without anchor: a value that begins with * needs quotes"
	}
	if e.Message != "" {
		return e.Message
	}
	return e.Error()
}

var (
	unmarshaler     = reflect.TypeFor[yaml.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// check compares the shape of n with type t. What custom unmarshalers take is
// left to them.
func (d *decoder) check(n *yaml.Node, t reflect.Type, where string, depth int) {
	d.strict.visit(n, where)
	if depth > maxDepth {
		d.at(n, where, "nested more than %d deep", maxDepth)
		return
	}
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			d.check(c, t, where, depth+1)
		}
		return
	case yaml.AliasNode:
		d.at(n, where, "%san alias: anchors and aliases are not supported; write the value out", prefix(where))
		return
	}
	if d.strict != nil && d.checkStrict(n, t, where, depth) {
		return
	}
	for t.Kind() == reflect.Pointer {
		if t.Implements(unmarshaler) || t.Implements(textUnmarshaler) {
			return
		}
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if d.want(n, yaml.MappingNode, where) {
			d.checkStruct(n, t, where, depth)
		}
	case reflect.Map:
		if d.want(n, yaml.MappingNode, where) {
			d.keys(n, where, func(key, value *yaml.Node) { d.check(value, t.Elem(), join(where, key.Value), depth+1) })
		}
	case reflect.Slice, reflect.Array:
		if d.want(n, yaml.SequenceNode, where) {
			for i, c := range n.Content {
				d.check(c, t.Elem(), fmt.Sprintf("%s[%d]", where, i), depth+1)
			}
		}
	case reflect.Interface:
	default:
		if d.want(n, yaml.ScalarNode, where) {
			d.checkScalar(n, t, where)
		}
	}
}

func (d *decoder) checkStruct(n *yaml.Node, t reflect.Type, where string, depth int) {
	fields := map[string]reflect.Type{}
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		fields[name] = f.Type
		names = append(names, name)
	}
	d.keys(n, where, func(key, value *yaml.Node) {
		if ft, ok := fields[key.Value]; ok {
			d.check(value, ft, join(where, key.Value), depth+1)
			return
		}
		if d.strict.envelope(where, key.Value) {
			return
		}
		d.add(key.Line, key.Column, "unknown key %q%s%s", key.Value, in(where), spelling.Hint(key.Value, names))
		d.strict.refuse(value, join(where, key.Value))
	})
	if d.strict != nil {
		d.rules(n, t, where, depth)
	}
}

// keys calls f for each pair of mapping n and reports keys that repeat.
func (d *decoder) keys(n *yaml.Node, where string, f func(key, value *yaml.Node)) {
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if d.strict != nil && (key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str") {
			d.add(key.Line, key.Column, "a key%s that is not a string, want one: put it in quotes", in(where))
			d.strict.refuse(n.Content[i+1], where)
			continue
		}
		if first, dup := lines[key.Value]; dup {
			d.add(key.Line, key.Column, "key %q again; it is already on line %d", key.Value, first)
			d.strict.refuse(n.Content[i+1], join(where, key.Value))
			continue
		}
		lines[key.Value] = key.Line
		f(key, n.Content[i+1])
	}
}

func (d *decoder) checkScalar(n *yaml.Node, t reflect.Type, where string) {
	v := reflect.New(t)
	if err := n.Decode(v.Interface()); err != nil {
		d.at(n, where, "%s%q, want %s", prefix(where), n.Value, kindName(t))
	}
}

func (d *decoder) want(n *yaml.Node, kind yaml.Kind, where string) bool {
	if n.Kind == kind {
		return true
	}
	d.at(n, where, "%s%s, want %s", prefix(where), shape(n.Kind), shape(kind))
	return false
}

func shape(k yaml.Kind) string {
	switch k {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer that is not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a string"
}

func join(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}

func in(where string) string {
	if where == "" {
		return ""
	}
	return " in " + where
}

func prefix(where string) string {
	if where == "" {
		return ""
	}
	return where + ": "
}

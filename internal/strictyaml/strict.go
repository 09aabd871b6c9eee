package strictyaml

import (
	"encoding"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/internal/spelling"
)

// strict is what a Document is decoded with. A nil *strict, which Decode has,
// does nothing.
type strict struct {
	also  []string            // keys of the document that are not the value's
	where map[string][2]int   // line and column of every key
	bad   map[string]bool     // keys with problems
	below map[string]bool     // keys of what these are part of
	drop  map[*yaml.Node]bool // values that cannot be decoded
}

func (s *strict) visit(n *yaml.Node, where string) {
	if s != nil {
		s.where[where] = [2]int{n.Line, n.Column}
	}
}

func (s *strict) refuse(n *yaml.Node, where string) {
	if s != nil {
		s.drop[n] = true
		s.mark(where)
	}
}

func (s *strict) mark(where string) {
	s.bad[where] = true
	for k := parent(where); k != "" && !s.below[k]; k = parent(k) {
		s.below[k] = true
	}
}

func (s *strict) envelope(where, key string) bool {
	return s != nil && where == "" && slices.Contains(s.also, key)
}

// prune takes out of n what cannot be decoded. Items of lists become null, as
// the others keep their places.
func (s *strict) prune(n *yaml.Node) {
	var kept []*yaml.Node
	for i, c := range n.Content {
		switch {
		case n.Kind == yaml.MappingNode && s.drop[n.Content[i|1]]:
			continue
		case s.drop[c]:
			c = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
		default:
			s.prune(c)
		}
		kept = append(kept, c)
	}
	n.Content = kept
}

// Rules are what the tag check of a field says, separated by commas.
type Rules struct {
	Required   bool   // required: the key must be there, and its value not empty
	Min, Max   string // min=N, max=N: bounds of a number, or of the number of items
	Default    string // default=TEXT: what a missing key is
	HasDefault bool
}

// ParseRules parses the tag check of a field.
func ParseRules(f reflect.StructField) Rules {
	var r Rules
	for part := range strings.SplitSeq(f.Tag.Get("check"), ",") {
		switch key, value, _ := strings.Cut(part, "="); key {
		case "":
		case "required":
			r.Required = true
		case "min":
			r.Min = value
		case "max":
			r.Max = value
		case "default":
			r.Default, r.HasDefault = value, true
		default:
			panic(fmt.Sprintf("field %s: unknown rule %q", f.Name, part))
		}
	}
	return r
}

// An Enum is a string of which only some values are valid.
type Enum interface{ Values() []string }

// A Tagged is a scalar that other tags of YAML than a string's may be.
type Tagged interface{ Tags() []string }

// A secret is text that problems must not quote.
type secret interface{ Reveal() string }

// checkStrict checks what Decode leaves to the library. It returns false for
// structs, maps and lists.
func (d *decoder) checkStrict(n *yaml.Node, t reflect.Type, where string, depth int) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Interface {
		d.checkFree(n, where, depth)
		return true
	}
	isText := reflect.PointerTo(t).Implements(textUnmarshaler)
	if !isText && slices.Contains([]reflect.Kind{reflect.Struct, reflect.Map, reflect.Slice}, t.Kind()) {
		return !d.known(n, where) || d.nothing(n, t, where)
	}
	if d.nothing(n, t, where) || !d.want(n, yaml.ScalarNode, where) {
		return true
	}
	_, hidden := reflect.Zero(t).Interface().(secret)
	found := n.Value
	if n.ShortTag() == "!!str" {
		found = strconv.Quote(n.Value)
	}
	if hidden {
		found = "a secret"
	}
	if n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	tagged := slices.Contains(tags(t), n.ShortTag())
	switch v := reflect.New(t); {
	case isText:
		err := v.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value))
		switch {
		case isAddress(t) && (err != nil || n.Value == ""):
			d.at(n, where, "%s%s, want %s", prefix(where), found, wantName(t))
		case err != nil && hidden:
			d.at(n, where, "%s%v", prefix(where), err)
		case err != nil:
			d.at(n, where, "%s%s: %v", prefix(where), found, err)
		case !tagged:
			d.at(n, where, "%s%s, want %s", prefix(where), found, wantName(t))
		}
	case !tagged:
		d.at(n, where, "%s%s, want %s", prefix(where), found, wantName(t))
	default:
		err := n.Decode(v.Interface())
		if v.Elem().CanFloat() && (math.IsNaN(v.Elem().Float()) || math.IsInf(v.Elem().Float(), 0)) || err != nil {
			d.at(n, where, "%s%s, want %s", prefix(where), found, wantName(t))
		}
	}
	if e, ok := reflect.Zero(t).Interface().(Enum); ok && !d.strict.drop[n] && !slices.Contains(e.Values(), n.Value) {
		d.at(n, where, "%sunknown value %q%s", prefix(where), n.Value, spelling.Hint(n.Value, e.Values()))
	}
	return true
}

// nothing reports that there is no value where one of type t should be.
func (d *decoder) nothing(n *yaml.Node, t reflect.Type, where string) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!null" {
		return false
	}
	d.at(n, where, "%snothing, want %s", prefix(where), wantName(t))
	return true
}

// known reports tags that are not YAML's own.
func (d *decoder) known(n *yaml.Node, where string) bool {
	if n.Kind == yaml.ScalarNode || slices.Contains([]string{"!!map", "!!seq"}, n.ShortTag()) {
		return true
	}
	d.at(n, where, "%sthe tag %q, want none", prefix(where), n.Tag)
	return false
}

// checkFree checks what may be anything that JSON can say.
func (d *decoder) checkFree(n *yaml.Node, where string, depth int) {
	switch n.Kind {
	case yaml.MappingNode:
		if d.known(n, where) {
			d.keys(n, where, func(key, value *yaml.Node) {
				d.check(value, reflect.TypeFor[any](), join(where, key.Value), depth+1)
			})
		}
	case yaml.SequenceNode:
		if d.known(n, where) {
			for i, c := range n.Content {
				d.check(c, reflect.TypeFor[any](), fmt.Sprintf("%s[%d]", where, i), depth+1)
			}
		}
	default:
		if n.ShortTag() == "!!timestamp" {
			n.Tag = "!!str"
		}
		if !isJSON(n) {
			d.at(n, where, "%s%q, want what JSON can say", prefix(where), n.Value)
		}
	}
}

// isJSON reports whether JSON can say a scalar.
func isJSON(n *yaml.Node) bool {
	switch n.ShortTag() {
	case "!!str", "!!bool", "!!null":
		return true
	case "!!int", "!!float":
		var v any
		err := n.Decode(&v)
		f, isFloat := v.(float64)
		return err == nil && !(isFloat && (math.IsNaN(f) || math.IsInf(f, 0)))
	}
	return false
}

// rules checks the fields of mapping n against their rules, and gives it those
// that are not there.
func (d *decoder) rules(n *yaml.Node, t reflect.Type, where string, depth int) {
	for f := range exported(t) {
		name, rules := f.Tag.Get("yaml"), ParseRules(f)
		value := child(n, name)
		path := join(where, name)
		switch {
		case value == nil && rules.Required:
			d.add(n.Line, n.Column, "key %q is missing%s", name, in(where))
			d.strict.mark(path)
		case value == nil && rules.HasDefault:
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name, Tag: "!!str"},
				&yaml.Node{Kind: yaml.ScalarNode, Value: rules.Default, Line: n.Line, Column: n.Column})
		case value == nil && f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(textUnmarshaler):
			value = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: n.Line, Column: n.Column}
			d.rules(value, f.Type, path, depth+1)
			if len(value.Content) > 0 {
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name, Tag: "!!str"}, value)
			}
		case value == nil, d.strict.drop[value]:
		case rules.Required && len(value.Content) == 0 && value.Value == "" && f.Type.Kind() != reflect.Struct:
			d.at(value, path, "%sempty, want at least one", prefix(path))
		default:
			d.bounds(value, path, rules)
		}
	}
}

// bounds checks a number, or the number of items.
func (d *decoder) bounds(n *yaml.Node, where string, r Rules) {
	if r.Min == "" && r.Max == "" {
		return
	}
	found, what := float64(len(n.Content)), fmt.Sprintf("%d items", len(n.Content))
	if n.Kind == yaml.ScalarNode {
		if n.Decode(&found) != nil {
			return
		}
		what = n.Value
	}
	low, high := math.Inf(-1), math.Inf(1)
	if r.Min != "" {
		low, _ = strconv.ParseFloat(r.Min, 64)
	}
	if r.Max != "" {
		high, _ = strconv.ParseFloat(r.Max, 64)
	}
	switch {
	case found >= low && found <= high:
	case r.Min == "":
		d.at(n, where, "%s%s, want at most %s", prefix(where), what, r.Max)
	default:
		d.at(n, where, "%s%s, want %s to %s", prefix(where), what, r.Min, r.Max)
	}
}

func exported(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && !yield(f) {
				return
			}
		}
	}
}

// tags returns the tags that scalars of type t may have.
func tags(t reflect.Type) []string {
	if other, ok := reflect.Zero(t).Interface().(Tagged); ok {
		return other.Tags()
	}
	if reflect.PointerTo(t).Implements(textUnmarshaler) {
		return []string{"!!str"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return []string{"!!bool"}
	case reflect.Float32, reflect.Float64:
		return []string{"!!float", "!!int"}
	case reflect.String:
		return []string{"!!str"}
	}
	return []string{"!!int"}
}

func isAddress(t reflect.Type) bool {
	return t == reflect.TypeFor[netip.Addr]() || t == reflect.TypeFor[netip.Prefix]()
}

func wantName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[netip.Addr]():
		return "an address such as 192.0.2.1 or 2001:db8::1"
	case t == reflect.TypeFor[netip.Prefix]():
		return "an address with its prefix length such as 192.0.2.1/24 or 2001:db8::1/64"
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return "a string, in quotes"
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		return shape(yaml.MappingNode)
	case t.Kind() == reflect.Slice:
		return shape(yaml.SequenceNode)
	case t.Kind() == reflect.String:
		return "a string, in quotes"
	}
	return kindName(t)
}

package config

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// Encode returns c as YAML with its secrets: a function of what c says, however
// it was written. Values that are defaults are left out.
func Encode(c *Config) ([]byte, error) { return encode(c, encoder{}) }

// Redacted returns c as YAML in which the Placeholder is in the place of every
// secret. Parse refuses it.
func Redacted(c *Config) ([]byte, error) { return encode(c, encoder{hide: true}) }

// Digest returns the fingerprint of c: "sha256:" and the SHA-256 of what Encode
// returns in hexadecimal digits.
func Digest(c *Config) (string, error) {
	data, err := Encode(c)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(data)), nil
}

func encode(c *Config, e encoder) ([]byte, error) {
	var out bytes.Buffer
	for i, doc := range e.documents(c) {
		if i > 0 {
			out.WriteString("---\n")
		}
		data, err := yaml.Dump(doc.node, yaml.WithLineWidth(-1))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doc.name, err)
		}
		out.Write(data)
	}
	return out.Bytes(), nil
}

// An encoded document, and what it is called: its kind and, if there can be
// several, its name.
type encoded struct {
	name string
	node *yaml.Node
}

type encoder struct{ hide bool }

// documents returns the documents of c in the order of its fields, those of one
// kind by name.
func (e encoder) documents(c *Config) []encoded {
	var docs []encoded
	for i, t := range kinds {
		field := reflect.ValueOf(c).Elem().Field(i)
		of := []encoded{}
		for v := range values(field) {
			name := t.Name()
			if field.Kind() == reflect.Slice {
				name += "/" + id(v)
			}
			n := e.mapping(v)
			n.Content = append([]*yaml.Node{text("apiVersion"), text(Version), text("kind"), text(t.Name())}, n.Content...)
			of = append(of, encoded{name, n})
		}
		slices.SortStableFunc(of, func(a, b encoded) int { return strings.Compare(a.name, b.name) })
		docs = append(docs, of...)
	}
	return docs
}

func (e encoder) mapping(v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if value := e.field(v.Field(i), strictyaml.ParseRules(f)); value != nil {
			n.Content = append(n.Content, text(f.Tag.Get("yaml")), value)
		}
	}
	return n
}

// field returns the node of a field, or nil if it need not be there.
func (e encoder) field(v reflect.Value, r strictyaml.Rules) *yaml.Node {
	n := e.node(v)
	switch {
	case r.HasDefault:
		unset := v.Kind() == reflect.String || v.Kind() == reflect.Int // whose zero is no valid value
		if n.Value == r.Default || unset && v.IsZero() {
			return nil
		}
	case v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 || v.Kind() == reflect.Map && v.Len() == 0:
		return nil
	case v.Kind() == reflect.Struct && n.Kind == yaml.MappingNode && len(n.Content) == 0:
		return nil
	}
	return n
}

func (e encoder) node(v reflect.Value) *yaml.Node {
	if s, ok := v.Interface().(Secret); ok && !e.hide {
		return text(s.Reveal())
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok && v.Kind() != reflect.Pointer {
		data, err := m.MarshalText()
		if err != nil { // of netip, for what is no address
			data = nil
		}
		return text(string(data))
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
		}
		return e.node(v.Elem())
	case reflect.Struct:
		return e.mapping(v)
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range v.Len() {
			n.Content = append(n.Content, e.node(v.Index(i)))
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			n.Content = append(n.Content, text(k.String()), e.node(v.MapIndex(k)))
		}
		return n
	case reflect.String:
		return text(v.String())
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case reflect.Float64:
		s := strconv.FormatFloat(v.Float(), 'g', -1, 64)
		if !strings.ContainsAny(s, ".e") {
			s += ".0" // still a float when it is read
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: s}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(v.Interface())}
}

// text returns the node of a string: in a block if that is easier to read.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if block(s) {
		n.Style = yaml.LiteralStyle
	}
	return n
}

// block reports whether s has several lines, none of which a literal block
// scalar would change.
func block(s string) bool {
	if !strings.Contains(s, "\n") || strings.HasPrefix(s, "\n") {
		return false
	}
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if strings.TrimSpace(line) != strings.TrimRight(line, " ") || line != strings.TrimRight(line, " ") {
			return false
		}
		for _, r := range line {
			if r < ' ' || r > '~' {
				return false
			}
		}
	}
	return !strings.HasSuffix(s, "\n\n")
}

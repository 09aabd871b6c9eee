package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// schema is a part of a JSON Schema. Its fields are in the order in which they
// are written.
type schema struct {
	Schema               string             `json:"$schema,omitempty"`
	ID                   string             `json:"$id,omitempty"`
	Ref                  string             `json:"$ref,omitempty"`
	Title                string             `json:"title,omitempty"`
	Description          string             `json:"description,omitempty"`
	Type                 any                `json:"type,omitempty"` // string or []string
	Const                string             `json:"const,omitempty"`
	Enum                 []string           `json:"enum,omitempty"`
	Default              any                `json:"default,omitempty"`
	MinLength            int                `json:"minLength,omitempty"`
	Minimum              json.Number        `json:"minimum,omitempty"`
	Maximum              json.Number        `json:"maximum,omitempty"`
	MinItems             int                `json:"minItems,omitempty"`
	MaxItems             json.Number        `json:"maxItems,omitempty"`
	MinProperties        int                `json:"minProperties,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	Required             []string           `json:"required,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	AdditionalProperties any                `json:"additionalProperties,omitempty"` // *schema or *bool
	If                   *schema            `json:"if,omitempty"`
	Then                 *schema            `json:"then,omitempty"`
	AllOf                []*schema          `json:"allOf,omitempty"`
	Definitions          map[string]*schema `json:"$defs,omitempty"`
}

// Schema returns the JSON Schema (draft 2020-12) of one document. What it
// refuses Parse refuses; Parse knows more.
func Schema() ([]byte, error) {
	s := &schema{
		Schema:      "https://json-schema.org/draft/2020-12/schema",
		Title:       "kiln machine configuration, one document",
		Type:        "object",
		Required:    []string{"apiVersion", "kind"},
		Properties:  map[string]*schema{"apiVersion": {Const: Version}, "kind": {}},
		Definitions: map[string]*schema{},
	}
	for i, t := range kinds {
		name := t.Name()
		s.Properties["kind"].Enum = append(s.Properties["kind"].Enum, name)
		is := &schema{Required: []string{"kind"}, Properties: map[string]*schema{"kind": {Const: name}}}
		s.AllOf = append(s.AllOf, &schema{If: is, Then: &schema{Ref: "#/$defs/" + name}})
		def := object(t, s.Definitions)
		def.Description = reflect.TypeFor[Config]().Field(i).Tag.Get("doc")
		def.Required = append([]string{"apiVersion", "kind"}, def.Required...)
		def.Properties["apiVersion"] = &schema{Description: "Version of the format.", Const: Version}
		def.Properties["kind"] = &schema{Description: "What the document is about.", Const: name}
		s.Definitions[name] = def
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(s)
	return out.Bytes(), err
}

// object returns the schema of a struct, and puts those of structs in it into
// defs.
func object(t reflect.Type, defs map[string]*schema) *schema {
	s := &schema{Type: "object", Properties: map[string]*schema{}, AdditionalProperties: new(bool)}
	for i := range t.NumField() {
		f := t.Field(i)
		name, rules := f.Tag.Get("yaml"), strictyaml.ParseRules(f)
		p := value(f.Type, defs)
		p.Description = f.Tag.Get("doc")
		if rules.Required {
			s.Required = append(s.Required, name)
		}
		p.restrict(rules)
		s.Properties[name] = p
	}
	return s
}

// restrict adds the rules of a field.
func (s *schema) restrict(r strictyaml.Rules) {
	switch s.Type {
	case "array":
		s.MaxItems = json.Number(r.Max)
		if r.Required {
			s.MinItems = 1
		}
	case "object":
		if r.Required && s.Properties == nil {
			s.MinProperties = 1
		}
	case "integer", "number":
		s.Minimum, s.Maximum = json.Number(r.Min), json.Number(r.Max)
	case "string":
		if r.Required && s.Enum == nil {
			s.MinLength = 1
		}
	}
	if r.HasDefault {
		s.Default = r.Default
		if n, err := strconv.Atoi(r.Default); err == nil && s.Type == "integer" {
			s.Default = n
		}
		if s.Type == "boolean" {
			s.Default = r.Default == "true"
		}
	}
}

func value(t reflect.Type, defs map[string]*schema) *schema {
	if t.Kind() == reflect.Pointer {
		return value(t.Elem(), defs)
	}
	zero := reflect.Zero(t).Interface()
	if e, ok := zero.(strictyaml.Enum); ok {
		return &schema{Type: "string", Enum: e.Values()}
	}
	if tagged, ok := zero.(strictyaml.Tagged); ok && slices.Contains(tagged.Tags(), "!!int") {
		return &schema{Type: []string{"string", "integer"}}
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return &schema{Type: "string"}
	}
	switch t.Kind() {
	case reflect.Struct:
		if defs[t.Name()] == nil {
			defs[t.Name()] = object(t, defs)
		}
		return &schema{Ref: "#/$defs/" + t.Name()}
	case reflect.Slice:
		return &schema{Type: "array", Items: value(t.Elem(), defs)}
	case reflect.Map:
		s := &schema{Type: "object"}
		if t.Elem().Kind() != reflect.Interface {
			s.AdditionalProperties = value(t.Elem(), defs)
		}
		return s
	case reflect.Bool:
		return &schema{Type: "boolean"}
	case reflect.Int:
		return &schema{Type: "integer"}
	case reflect.Float64:
		return &schema{Type: "number"}
	}
	return &schema{Type: "string"}
}

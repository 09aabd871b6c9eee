package config

import (
	"cmp"
	"iter"
	"reflect"
	"slices"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

// kinds calls yield for the kinds of documents, which are the types of Config's
// fields, and the numbers of these fields.
func kinds(yield func(int, reflect.Type) bool) {
	for i := range reflect.TypeFor[Config]().NumField() {
		if !yield(i, reflect.TypeFor[Config]().Field(i).Type.Elem()) {
			return
		}
	}
}

// A document is a part of a Config with the text that it is from.
type document struct {
	*strictyaml.Document
	value any // pointer to a struct
}

// checker is what knows more about its fields than their tags say.
type checker interface {
	check(doc *strictyaml.Document)
}

// id returns the value of the first field of v, a struct: the name of documents
// of which there can be several.
func id(v reflect.Value) string { return v.Field(0).String() }

// Parse reads a machine configuration. name stands for it in the error, which
// is a *strictyaml.Error with all that is wrong.
func Parse(name string, data []byte) (*Config, error) {
	var problems []strictyaml.Problem
	stream, err := strictyaml.Split(name, data)
	if err, ok := err.(*strictyaml.Error); ok {
		problems = err.Problems
	}
	if len(stream) == 0 && len(problems) == 0 {
		problems = []strictyaml.Problem{{File: name, Text: "no document, want at least one with apiVersion: " + Version + " and a kind"}}
	}
	var c Config
	var docs []document
	for _, doc := range stream {
		if v := c.decode(doc); v != nil {
			docs = append(docs, document{doc, v})
		}
	}
	c.collect(docs)
	crossCheck(docs)
	for _, doc := range stream {
		problems = append(problems, doc.Problems()...)
	}
	if err := strictyaml.Join(problems); err != nil {
		return nil, err
	}
	return &c, nil
}

// decode returns a pointer to what the document is, or nil.
func (c *Config) decode(doc *strictyaml.Document) any {
	if version, ok := doc.Text("apiVersion"); ok && version != Version {
		doc.Add("apiVersion", "%q, want %s", version, Version)
	}
	kind, ok := doc.Text("kind")
	if !ok {
		return nil
	}
	var names []string
	for _, t := range kinds {
		if t.Name() == kind {
			v := reflect.New(t)
			doc.Decode(v.Interface())
			tidy(v.Elem())
			if v, ok := v.Interface().(checker); ok {
				v.check(doc)
			}
			return v.Interface()
		}
		names = append(names, t.Name())
	}
	doc.Add("kind", "unknown kind %q%s", kind, spelling.Hint(kind, names))
	return nil
}

// collect puts the documents into the fields of c, and reports those that are
// there twice.
func (c *Config) collect(docs []document) {
	type identity struct {
		kind reflect.Type
		name string
	}
	first := map[identity]*strictyaml.Document{}
	for _, doc := range docs {
		v := reflect.ValueOf(doc.value).Elem()
		field := reflect.ValueOf(c).Elem().Field(fieldOf(v.Type()))
		me, where, what := identity{kind: v.Type()}, "", v.Type().Name()
		if field.Kind() == reflect.Slice {
			me.name = id(v)
			where = v.Type().Field(0).Tag.Get("yaml")
			what += " " + me.name
		}
		if other := first[me]; other != nil {
			line, _ := other.At(where)
			doc.Add(where, "%s again; it is already on line %d", what, line)
			continue
		}
		first[me] = doc.Document
		if field.Kind() == reflect.Slice {
			field.Set(reflect.Append(field, v))
		} else {
			field.Set(v.Addr())
		}
	}
	for i := range kinds {
		if field := reflect.ValueOf(c).Elem().Field(i); field.Kind() == reflect.Slice {
			order := slices.SortedStableFunc(values(field), func(a, b reflect.Value) int { return cmp.Compare(id(a), id(b)) })
			sorted := reflect.Zero(field.Type())
			field.Set(reflect.Append(sorted, order...))
		}
	}
}

func fieldOf(kind reflect.Type) int {
	for i, t := range kinds {
		if t == kind {
			return i
		}
	}
	return -1
}

// values returns the elements of a list, or what a pointer that is not nil
// points at.
func values(field reflect.Value) iter.Seq[reflect.Value] {
	return func(yield func(reflect.Value) bool) {
		if field.Kind() == reflect.Slice {
			for i := range field.Len() {
				if !yield(field.Index(i)) {
					return
				}
			}
		} else if !field.IsNil() {
			yield(field.Elem())
		}
	}
}

// tidy makes empty lists and maps nil, so that what means the same is the same.
func tidy(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			tidy(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				tidy(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			tidy(v.Index(i))
		}
		if v.Len() == 0 {
			v.SetZero()
		}
	case reflect.Map:
		if v.Len() == 0 {
			v.SetZero()
		} else if o, ok := v.Interface().(Object); ok {
			for key, value := range o {
				o[key] = plain(value)
			}
		}
	}
}

// plain returns v with maps of the type that encoding/json has, where YAML has
// the type of what they are in.
func plain(v any) any {
	switch v := v.(type) {
	case Object:
		m := map[string]any{}
		for key, value := range v {
			m[key] = plain(value)
		}
		return m
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}

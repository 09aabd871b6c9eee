package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxDocuments bounds a stream.
const maxDocuments = 1024

// A Document is one of the documents of a stream: a mapping. It is decoded more
// strictly than Decode does: a string must be one for YAML too, null is not a
// value, and the rules in the tags of fields hold (see Rules). Whatever is
// wrong, the rest is decoded, so that it can be judged as well.
type Document struct {
	d    decoder
	node *yaml.Node
}

// Split returns the documents of a stream. Those that are empty are left out.
// If there is an error, which is an *Error, it comes with the documents before
// it.
func Split(name string, data []byte) ([]*Document, error) {
	d := decoder{name: name}
	if len(data) > maxSize {
		return nil, d.fail(0, 0, "%d bytes, want at most %d", len(data), maxSize)
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, d.wrap(err)
	}
	var docs []*Document
	for {
		var n yaml.Node
		if err := loader.Load(&n); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			d.wrap(err)
			break
		}
		if len(n.Content) == 0 || n.Content[0].Kind == yaml.ScalarNode && n.Content[0].Value == "" {
			continue
		}
		root := n.Content[0]
		if len(docs) == maxDocuments {
			d.add(root.Line, root.Column, "more than %d documents", maxDocuments)
			break
		}
		if !d.want(root, yaml.MappingNode, "") {
			continue
		}
		docs = append(docs, &Document{node: root, d: decoder{name: name, strict: &strict{
			where: map[string][2]int{"": {root.Line, root.Column}}, bad: map[string]bool{}, below: map[string]bool{}, drop: map[*yaml.Node]bool{}}}})
	}
	return docs, d.err()
}

// Text returns the value of a key that says what the document is. It must be
// there, and is not part of what Decode decodes.
func (doc *Document) Text(key string) (value string, ok bool) {
	doc.d.strict.also = append(doc.d.strict.also, key)
	n := child(doc.node, key)
	if n == nil {
		doc.d.add(doc.node.Line, doc.node.Column, "key %q is missing", key)
		return "", false
	}
	doc.d.check(n, reflect.TypeFor[string](), key, 1)
	return n.Value, !doc.d.strict.bad[key]
}

// Decode decodes the document into v, a pointer to a struct. Problems tells
// what went wrong.
func (doc *Document) Decode(v any) {
	doc.d.check(doc.node, reflect.TypeOf(v), "", 0)
	if doc.d.strict.drop[doc.node] {
		return
	}
	doc.d.strict.prune(doc.node)
	// The library compares every key with every other one; check has done it.
	if err := doc.node.Load(v, yaml.WithV3Defaults(), yaml.WithUniqueKeys(false)); err != nil {
		doc.d.wrap(err)
	}
}

// Add adds a problem of the value with a key such as "routes[0].via". If there
// is one of that value, of what it is part of, or of a part of it already, it
// does nothing.
func (doc *Document) Add(key, format string, args ...any) {
	if doc.Bad(key) {
		return
	}
	doc.d.strict.mark(key)
	line, column := doc.At(key)
	doc.d.add(line, column, "%s%s", prefix(key), fmt.Sprintf(format, args...))
}

// Bad reports whether there is a problem of the value with a key, of what it is
// part of, or of a part of it.
func (doc *Document) Bad(key string) bool {
	s := doc.d.strict
	for k := key; k != ""; k = parent(k) {
		if s.bad[k] {
			return true
		}
	}
	return s.below[key]
}

// parent returns the key of what the value with a key is part of.
func parent(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

// At returns where the value with a key is, or the nearest one above that is
// there.
func (doc *Document) At(key string) (line, column int) {
	for {
		if at, ok := doc.d.strict.where[key]; ok {
			return at[0], at[1]
		}
		key = parent(key)
	}
}

// Problems returns what is wrong with the document.
func (doc *Document) Problems() []Problem { return doc.d.problems }

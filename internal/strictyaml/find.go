package strictyaml

import (
	"bytes"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Find returns where in a document, which Decode has accepted, the value with a
// key such as "kernel.modules[0].name" is, or the nearest one above that is
// there. Line and column count from 1.
func Find(data []byte, key string) (line, column int) {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return 1, 1
	}
	var doc yaml.Node
	if err := loader.Load(&doc); err != nil || len(doc.Content) == 0 {
		return 1, 1
	}
	n := doc.Content[0]
	for part := range strings.FieldsFuncSeq(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next := child(n, part)
		if next == nil {
			break
		}
		n = next
	}
	return n.Line, n.Column
}

func child(n *yaml.Node, part string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == part {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

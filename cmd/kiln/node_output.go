package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/client"
)

// A table is printed in columns.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, head ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(head...)
	return t
}

// row adds a row. What nodes say must not do anything to the terminal.
func (t table) row(cells ...string) {
	for i, c := range cells {
		if c == "" && i > 0 {
			c = "-"
		}
		cells[i] = printable(c)
	}
	fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t "))
}

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}

// format checks how to print.
func (n *nodeFlags) format() (string, error) {
	switch {
	case n.json && n.output != "table" && n.output != "json":
		return "", usageError{fmt.Errorf("--json and --output %s, want one of them", n.output)}
	case n.json:
		return "json", nil
	case n.output == "table" || n.output == "json" || n.output == "yaml":
		return n.output, nil
	}
	return "", usageError{fmt.Errorf("--output %q, want table, json or yaml", n.output)}
}

// document returns a message as JSON, with the names of the definition, and the
// node that it is from.
func document(node string, m proto.Message, err error) (map[string]any, error) {
	doc := map[string]any{}
	if m != nil && m.ProtoReflect().IsValid() {
		data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
		if err != nil {
			return nil, err
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&doc); err != nil {
			return nil, err
		}
	}
	if err != nil {
		doc = map[string]any{"error": err.Error()}
	}
	doc["node"] = node
	return doc, nil
}

// A view is how a verb's answer is printed as a table.
type view[M proto.Message] struct {
	head []string
	rows func(M) [][]string
}

// query asks every node and prints the answers, in the order of the nodes: a
// table for all, or a list of documents.
func query[M proto.Message](c *cobra.Command, n *nodeFlags, ask func(context.Context, v1alpha1.NodeClient) (M, error), v view[M]) error {
	format, err := n.format()
	if err != nil {
		return err
	}
	list, err := n.targets()
	if err != nil {
		return err
	}
	answers := make([]M, len(list))
	errs := make([]error, len(list))
	failed := n.each(c.Context(), func(ctx context.Context, i int, t client.Target, nc v1alpha1.NodeClient) (err error) {
		ctx, cancel := context.WithTimeout(ctx, n.timeout)
		defer cancel()
		answers[i], err = ask(ctx, nc)
		errs[i] = client.Explain(t.Node, err)
		return err
	})
	if format != "table" {
		docs := []map[string]any{}
		for i, t := range list {
			d, err := document(t.Node, answers[i], errs[i])
			if err != nil {
				return err
			}
			docs = append(docs, d)
		}
		return errors.Join(printDocuments(c, format, docs), failed)
	}
	head := v.head
	if len(list) > 1 {
		head = append([]string{"NODE"}, head...)
	}
	w := newTable(c.OutOrStdout(), head...)
	for i, t := range list {
		if errs[i] != nil {
			continue
		}
		for _, row := range v.rows(answers[i]) {
			if len(list) > 1 {
				row = append([]string{t.Node}, row...)
			}
			w.row(row...)
		}
	}
	return errors.Join(w.Flush(), failed)
}

func printDocuments(c *cobra.Command, format string, docs []map[string]any) error {
	if format == "json" {
		return printJSON(c, docs)
	}
	for _, d := range docs {
		numbers(d)
	}
	data, err := yaml.Dump(docs)
	if err != nil {
		return err
	}
	_, err = c.OutOrStdout().Write(data)
	return err
}

// numbers makes numbers of what JSON has as their text.
func numbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = numbers(x)
		}
	case []any:
		for i, x := range v {
			v[i] = numbers(x)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
	}
	return v
}

// lines prints what every node sends, as it comes: a line for each message, with
// the node's name in front if there are several; or a JSON document in a line.
func lines[M any](c *cobra.Command, n *nodeFlags, ask func(context.Context, v1alpha1.NodeClient) (grpc.ServerStreamingClient[M], error), line func(*M) []string) error {
	format, err := n.format()
	if err != nil {
		return err
	}
	list, err := n.targets()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	return n.each(c.Context(), func(ctx context.Context, _ int, t client.Target, nc v1alpha1.NodeClient) error {
		s, err := ask(ctx, nc)
		if err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			err = printMessage(c.OutOrStdout(), format, t.Node, len(list) > 1, any(m).(proto.Message), func() []string { return line(m) })
			mu.Unlock()
			if err != nil {
				return err
			}
		}
	})
}

func printMessage(w io.Writer, format, node string, several bool, m proto.Message, text func() []string) error {
	if format != "table" {
		d, err := document(node, m, nil)
		if err != nil {
			return err
		}
		if format == "json" {
			return json.NewEncoder(w).Encode(d)
		}
		numbers(d)
		data, err := yaml.Dump(d)
		if err == nil {
			_, err = fmt.Fprintf(w, "---\n%s", data)
		}
		return err
	}
	for _, l := range text() {
		if several {
			l = node + ": " + l
		}
		if _, err := fmt.Fprintln(w, printable(strings.ReplaceAll(l, "\t", "    "))); err != nil {
			return err
		}
	}
	return nil
}

// when is a time as tables have it; a zero one is empty.
func when(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

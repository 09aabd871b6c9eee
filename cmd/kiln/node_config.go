package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/client"
	"github.com/kilnhq/kiln/machine/meta"
)

func newNodeConfig(n *nodeFlags) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Print or replace the machine configuration"}
	c.AddCommand(newNodeConfigGet(n), newNodeConfigApply(n))
	return c
}

// print prints what one node answers as it is.
func (n *nodeFlags) print(c *cobra.Command, f func(context.Context, v1alpha1.NodeClient) ([]byte, error)) error {
	t, err := n.one()
	if err != nil {
		return err
	}
	return with(t, func(nc v1alpha1.NodeClient) error {
		ctx, cancel := context.WithTimeout(c.Context(), n.timeout)
		defer cancel()
		data, err := f(ctx, nc)
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(data)
		return err
	})
}

func newNodeConfigGet(n *nodeFlags) *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Print the machine configuration, with its secrets for admins only", Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if format, err := n.format(); err != nil || format != "table" {
				return errors.Join(err, n.configDocuments(c, format))
			}
			return n.print(c, func(ctx context.Context, nc v1alpha1.NodeClient) ([]byte, error) {
				m, err := nc.ConfigGet(ctx, &v1alpha1.ConfigGetRequest{})
				if m.GetRedacted() {
					fmt.Fprintln(c.ErrOrStderr(), "note: secrets are left out; they take the role kiln:admin")
				}
				return m.GetConfig(), err
			})
		},
	}
}

// configDocuments prints the configurations of all nodes as a list, each a text of its
// own; the definition's bytes would be base64.
func (n *nodeFlags) configDocuments(c *cobra.Command, format string) error {
	list, err := n.targets()
	if err != nil || format == "" {
		return err
	}
	docs := make([]map[string]any, len(list))
	failed := n.each(c.Context(), func(ctx context.Context, i int, t client.Target, nc v1alpha1.NodeClient) error {
		ctx, cancel := context.WithTimeout(ctx, n.timeout)
		defer cancel()
		m, err := nc.ConfigGet(ctx, &v1alpha1.ConfigGetRequest{})
		docs[i] = map[string]any{"node": t.Node, "config": string(m.GetConfig()), "source": m.GetSource(), "redacted": m.GetRedacted()}
		if err != nil {
			docs[i] = map[string]any{"node": t.Node, "error": client.Explain(t.Node, err).Error()}
		}
		return err
	})
	return errors.Join(printDocuments(c, format, docs), failed)
}

func newNodeConfigApply(n *nodeFlags) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use:   "apply FILE",
		Short: "Replace the machine configuration",
		Long: `Check a machine configuration, compare it with the one that the node has, and
replace that. FILE is a file, an http or https URL, or - for standard input.

A node that has none yet waits with a certificate that nobody vouches for. Its
console shows the certificate's fingerprint; --insecure --fingerprint sends the
configuration, with its secrets, to no other.`,
		Example: "  kiln node config apply --dry-run machine.yaml\n  kiln node config apply --insecure --fingerprint SHA256:… --nodes 192.0.2.10 machine.yaml",
		Args:    args(1, "a configuration"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := n.named(); err != nil {
				return err
			}
			data, err := machineConfig(c.Context(), args[0])
			if err != nil {
				return err
			}
			return query(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (*v1alpha1.ConfigApplyResponse, error) {
				return nc.ConfigApply(ctx, &v1alpha1.ConfigApplyRequest{Config: []byte(data), DryRun: dry})
			}, view[*v1alpha1.ConfigApplyResponse]{[]string{"RESULT"}, applyRows})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "only check and compare")
	return c
}

func applyRows(m *v1alpha1.ConfigApplyResponse) [][]string {
	var rows [][]string
	for l := range strings.Lines(m.GetDiff()) {
		rows = append(rows, []string{strings.TrimSuffix(l, "\n")})
	}
	for _, w := range m.GetWarnings() {
		rows = append(rows, []string{"warning: " + w})
	}
	result := "valid; nothing was changed"
	switch {
	case m.GetApplied() && m.GetReboot():
		result = "applied; it takes effect with the next start (kiln node reboot)"
	case m.GetApplied():
		result = "applied"
	case m.GetReboot():
		result += "; it would take effect with the next start"
	}
	return append(rows, []string{result})
}

func newNodeMeta(n *nodeFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "meta",
		Short: "Read and change the values in the META partition",
		Long:  "Read and change the values in a node's partition META. Keys are as in 'kiln meta'.",
	}
	c.AddCommand(newNodeMetaList(n), newNodeMetaGet(n), newNodeMetaSet(n), newNodeMetaDelete(n))
	return c
}

func askMeta(ctx context.Context, nc v1alpha1.NodeClient) (*v1alpha1.MetaListResponse, error) {
	return nc.MetaList(ctx, &v1alpha1.MetaListRequest{})
}

func newNodeMetaList(n *nodeFlags) *cobra.Command {
	c := newQuery(n, "list", "List the values; those of keys that may hold secrets for admins only", askMeta, view[*v1alpha1.MetaListResponse]{
		[]string{"KEY", "NAME", "VALUE"}, func(m *v1alpha1.MetaListResponse) [][]string {
			var rows [][]string
			for _, v := range m.GetValues() {
				rows = append(rows, []string{fmt.Sprintf("%#02x", v.GetKey()), v.GetName(), shownValue(v)})
			}
			return rows
		},
	})
	c.Example = "  kiln node meta list"
	return c
}

// shownValue is a value as a table has it.
func shownValue(v *v1alpha1.MetaValue) string {
	if v.GetRedacted() {
		return "(secret)"
	}
	text := string(v.GetValue())
	if !utf8.ValidString(text) {
		text = "base64 " + base64.StdEncoding.EncodeToString(v.GetValue())
	}
	if runes := []rune(text); len(runes) > maxShown {
		return string(runes[:maxShown]) + "…"
	}
	return text
}

func newNodeMetaGet(n *nodeFlags) *cobra.Command {
	return &cobra.Command{
		Use: "get KEY", Short: "Print a value as it is", Args: args(1, "a key"), ValidArgs: metaNames(),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := meta.ParseKey(args[0])
			if err != nil {
				return usageError{err}
			}
			return n.print(c, func(ctx context.Context, nc v1alpha1.NodeClient) ([]byte, error) {
				m, err := askMeta(ctx, nc)
				if err != nil {
					return nil, err
				}
				for _, v := range m.GetValues() {
					switch {
					case v.GetKey() != uint32(key):
					case v.GetRedacted():
						return nil, fmt.Errorf("the value of %v is for the role kiln:admin: %w", key, fs.ErrPermission)
					default:
						return v.GetValue(), nil
					}
				}
				return nil, fmt.Errorf("there is no value of %v: %w", key, fs.ErrNotExist)
			})
		},
	}
}

func metaNames() []string {
	var names []string
	for _, k := range meta.Known() {
		names = append(names, k.Name)
	}
	return names
}

func newNodeMetaSet(n *nodeFlags) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use: "set KEY=VALUE…", Short: "Set values", Example: "  kiln node meta set 0x80=rack-7 --file metal-network=network.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			r := &v1alpha1.MetaSetRequest{}
			for i, a := range append(args[:len(args):len(args)], files...) {
				name, value, ok := strings.Cut(a, "=")
				if !ok {
					return usageError{fmt.Errorf("%q, want KEY=VALUE", a)}
				}
				key, err := meta.ParseKey(name)
				if err != nil {
					return usageError{err}
				}
				data := []byte(value)
				if i >= len(args) {
					if data, err = readLimited(value, 1<<20); err != nil {
						return err
					}
				}
				r.Values = append(r.Values, &v1alpha1.MetaValue{Key: uint32(key), Value: data})
			}
			if len(r.Values) == 0 {
				return usageError{errors.New("no values, want KEY=VALUE or --file KEY=FILE")}
			}
			return n.do(c, func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
				_, err := nc.MetaSet(ctx, r)
				return fmt.Sprintf("%d values set", len(r.Values)), err
			})
		},
	}
	c.Flags().StringArrayVar(&files, "file", nil, "KEY=FILE: the value is the content of the file")
	return c
}

func newNodeMetaDelete(n *nodeFlags) *cobra.Command {
	return &cobra.Command{
		Use: "delete KEY…", Short: "Delete values", ValidArgs: metaNames(), Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := &v1alpha1.MetaDeleteRequest{}
			for _, a := range args {
				key, err := meta.ParseKey(a)
				if err != nil {
					return usageError{err}
				}
				r.Keys = append(r.Keys, uint32(key))
			}
			return n.do(c, func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
				m, err := nc.MetaDelete(ctx, r)
				return fmt.Sprintf("%d values deleted", len(m.GetDeleted())), err
			})
		},
	}
}

func newNodeKubeconfig(n *nodeFlags) *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print an administrator's kubeconfig", Args: args(0, "no arguments"),
		Example: "  (umask 077; kiln node kubeconfig >kubeconfig)",
		RunE: func(c *cobra.Command, _ []string) error {
			return n.print(c, func(ctx context.Context, nc v1alpha1.NodeClient) ([]byte, error) {
				m, err := nc.Kubeconfig(ctx, &v1alpha1.KubeconfigRequest{})
				return m.GetKubeconfig(), err
			})
		},
	}
}

func newNodeRead(n *nodeFlags) *cobra.Command {
	var offset, limit uint64
	c := &cobra.Command{
		Use: "read PATH", Short: "Print a file; those closed to other users for admins only", Args: args(1, "a path"),
		Example: "  kiln node read /proc/cmdline",
		RunE: func(c *cobra.Command, args []string) error {
			t, err := n.one()
			if err != nil {
				return err
			}
			return with(t, func(nc v1alpha1.NodeClient) error {
				s, err := nc.ReadFile(c.Context(), &v1alpha1.ReadFileRequest{Path: args[0], Offset: offset, Limit: limit})
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
					if _, err := c.OutOrStdout().Write(m.GetData()); err != nil {
						return err
					}
				}
			})
		},
	}
	c.Flags().Uint64Var(&offset, "offset", 0, "first byte")
	c.Flags().Uint64Var(&limit, "limit", 0, "number of bytes; 0 is all")
	return c
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/machine/api/client"
	"github.com/kilnhq/kiln/machine/api/selfsigned"
	"github.com/kilnhq/kiln/machine/config"
)

// nodeFlags are the flags of every command for nodes.
type nodeFlags struct {
	file, context, endpoint, output, fingerprint string
	nodes                                        []string
	json, insecure                               bool
	timeout                                      time.Duration
}

func newNode() *cobra.Command {
	var n nodeFlags
	c := &cobra.Command{
		Use:   "node",
		Short: "Ask running nodes, and manage them",
		Long: `Ask running nodes, and manage them, through their API: gRPC over TLS 1.3, with a
certificate on both sides. The role in the client's certificate says what it may
do: a reader sees what is no secret, an operator also stops and starts services
and the machine, an admin also changes the system.

Certificates and nodes come from a file of contexts, ~/.config/kiln/nodes.yaml
or KILN_NODES, as 'kiln config generate' makes one. Without --nodes all nodes of
the context are asked, at the same time.`,
		Example: `  kiln node health
  kiln node ps --nodes 192.0.2.10,192.0.2.11
  kiln node logs --follow containerd
  kiln node config apply --insecure --fingerprint SHA256:… --nodes 192.0.2.10 machine.yaml`,
	}
	f := c.PersistentFlags()
	f.StringVar(&n.file, "contexts", "", "file of contexts (default: KILN_NODES, or kiln/nodes.yaml in the user's configuration directory)")
	f.StringVar(&n.context, "context", "", "context to use instead of the current one")
	f.StringSliceVarP(&n.nodes, "nodes", "n", nil, "nodes to ask, with commas: names or addresses, with or without port")
	f.StringVar(&n.endpoint, "endpoint", "", "address to connect to instead of the node's, as when its port is forwarded; for one node")
	f.StringVarP(&n.output, "output", "o", "table", "how to print: table, json or yaml")
	f.BoolVar(&n.json, "json", false, "as --output json")
	f.DurationVar(&n.timeout, "timeout", 30*time.Second, "how long a node may take to answer; what follows something takes as long as it likes")
	f.BoolVar(&n.insecure, "insecure", false, "the node has no configuration yet: show no certificate, and trust it by --fingerprint")
	f.StringVar(&n.fingerprint, "fingerprint", "", "with --insecure: fingerprint of the node's certificate, from its console")
	complete(c, "context", func(*cobra.Command) []string {
		all, err := n.contexts()
		if err != nil {
			return nil
		}
		return slices.Sorted(maps.Keys(all.Contexts))
	})
	complete(c, "output", func(*cobra.Command) []string { return []string{"table", "json", "yaml"} })
	complete(c, "nodes", func(*cobra.Command) []string {
		_, context, err := n.current()
		if err != nil {
			return nil
		}
		return context.Nodes
	})
	c.AddCommand(newNodeContexts(&n), newNodeVersion(&n), newNodeHealth(&n), newNodeServices(&n), newNodeService(&n), newNodeLogs(&n),
		newNodeDmesg(&n), newNodeEvents(&n), newNodePS(&n), newNodeContainers(&n), newNodeImages(&n), newNodeStats(&n), newNodeMemory(&n),
		newNodeMounts(&n), newNodeDisks(&n), newNodeModules(&n), newNodeExtensions(&n), newNodeHardening(&n),
		newNodeConfig(&n), newNodeMeta(&n), newNodeUpgrade(&n), newNodeRollback(&n), newNodeReset(&n), newNodeReboot(&n), newNodeShutdown(&n), newNodeRead(&n), newNodeList(&n),
		newNodeKubeconfig(&n), newNodeSupport(&n))
	return c
}

// complete makes the shell complete the values of a flag.
func complete(c *cobra.Command, flag string, values func(*cobra.Command) []string) {
	// It fails for flags that there are not.
	if err := c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return values(c), cobra.ShellCompDirectiveNoFileComp
	}); err != nil {
		panic(err)
	}
}

// contexts reads the file of contexts.
func (n *nodeFlags) contexts() (*config.Contexts, error) {
	name := n.file
	if name == "" {
		name = os.Getenv("KILN_NODES")
	}
	if name == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return nil, usageError{fmt.Errorf("%w; name the file of contexts with --contexts or KILN_NODES", err)}
		}
		name = filepath.Join(dir, "kiln", "nodes.yaml")
	}
	data, err := readLimited(name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; 'kiln config generate' makes one (client.yaml), and --contexts or KILN_NODES names another", err)
	}
	if err != nil {
		return nil, err
	}
	return config.ParseContexts(name, data)
}

// current returns the context to use.
func (n *nodeFlags) current() (name string, c *config.Context, err error) {
	all, err := n.contexts()
	if err != nil {
		return "", nil, err
	}
	names := slices.Sorted(maps.Keys(all.Contexts))
	name = n.context
	if name == "" {
		name = all.Current
	}
	if name == "" && len(names) == 1 {
		name = names[0]
	}
	found, ok := all.Contexts[name]
	switch {
	case ok:
		return name, &found, nil
	case name == "":
		return "", nil, usageError{fmt.Errorf("no context is the current one; name one with --context: %s", strings.Join(names, ", "))}
	}
	return "", nil, usageError{fmt.Errorf("there is no context %q%s", name, spelling.Hint(name, names))}
}

// targets returns the nodes to ask.
func (n *nodeFlags) targets() ([]client.Target, error) {
	var base client.Target
	nodes := n.nodes
	if n.insecure {
		if n.fingerprint != "" {
			f, err := selfsigned.Parse(n.fingerprint)
			if err != nil {
				return nil, usageError{err}
			}
			base.Fingerprint = &f
		}
	} else {
		if n.fingerprint != "" {
			return nil, usageError{errors.New("--fingerprint is of no use without --insecure")}
		}
		_, context, err := n.current()
		if err != nil {
			return nil, err
		}
		base.Context = context
		if nodes == nil {
			nodes = context.Nodes
		}
	}
	if nodes == nil && n.endpoint != "" {
		nodes = []string{n.endpoint}
	}
	if len(nodes) == 0 {
		return nil, usageError{errors.New("no nodes: name them with --nodes, or in the context")}
	}
	if n.endpoint != "" && len(nodes) > 1 {
		return nil, usageError{fmt.Errorf("--endpoint leads to one node, want one of %s with --nodes", strings.Join(nodes, ", "))}
	}
	if base.Fingerprint != nil && len(nodes) > 1 {
		return nil, usageError{fmt.Errorf("--fingerprint is that of one node, want one with --nodes, got %d", len(nodes))}
	}
	base.Endpoint = n.endpoint
	var list []client.Target
	seen := map[string]bool{}
	for _, node := range nodes {
		if seen[node] {
			continue
		}
		seen[node] = true
		t := base
		t.Node = node
		list = append(list, t)
	}
	return list, nil
}

// one returns the only node to ask, for what is not for many at once.
func (n *nodeFlags) one() (client.Target, error) {
	list, err := n.targets()
	if err == nil && len(list) > 1 {
		err = usageError{fmt.Errorf("this is for one node at a time, want one with --nodes, got %d", len(list))}
	}
	if err != nil {
		return client.Target{}, err
	}
	return list[0], nil
}

// named returns an error if the nodes were not named, but taken from a context
// with several: what ends a machine is not done to all of them by accident.
func (n *nodeFlags) named() error {
	list, err := n.targets()
	if err == nil && n.nodes == nil && len(list) > 1 {
		var names []string
		for _, t := range list {
			names = append(names, t.Node)
		}
		err = usageError{fmt.Errorf("the context has %d nodes; say with --nodes which: %s", len(list), strings.Join(names, ","))}
	}
	return err
}

// with calls f with a connection to t. The error says which node it is of.
func with(t client.Target, f func(v1alpha1.NodeClient) error) error {
	conn, err := client.Dial(t)
	if err != nil {
		return err
	}
	defer func(conn *grpc.ClientConn) { conn.Close() }(conn)
	return client.Explain(t.Node, f(v1alpha1.NewNodeClient(conn)))
}

// each calls f for every node at the same time. All errors are returned, in the
// order of the nodes.
func (n *nodeFlags) each(ctx context.Context, f func(ctx context.Context, i int, t client.Target, c v1alpha1.NodeClient) error) error {
	list, err := n.targets()
	if err != nil {
		return err
	}
	errs := make([]error, len(list))
	done := make(chan struct{})
	for i, t := range list {
		go func() {
			defer func() { done <- struct{}{} }()
			errs[i] = with(t, func(c v1alpha1.NodeClient) error { return f(ctx, i, t, c) })
		}()
	}
	for range list {
		<-done
	}
	return errors.Join(errs...)
}

func newNodeContexts(n *nodeFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "contexts",
		Short: "List the contexts; the current one has a star",
		Args:  args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := n.contexts()
			if err != nil {
				return err
			}
			format, err := n.format()
			if err != nil {
				return err
			}
			if format != "table" {
				docs := []map[string]any{}
				for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
					docs = append(docs, map[string]any{"name": name, "current": name == all.Current, "nodes": all.Contexts[name].Nodes})
				}
				return printDocuments(c, format, docs)
			}
			t := newTable(c.OutOrStdout(), "", "NAME", "NODES")
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				star := ""
				if name == all.Current {
					star = "*"
				}
				t.row(star, name, strings.Join(all.Contexts[name].Nodes, ","))
			}
			return t.Flush()
		},
	}
}

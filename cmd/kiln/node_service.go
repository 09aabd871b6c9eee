package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/client"
)

func serviceRow(s *v1alpha1.Service) []string {
	return []string{s.GetName(), s.GetState(), yesNo(s.GetHealthy()), decimal(s.GetPid()), decimal(s.GetRestarts()), when(s.GetSince()), s.GetMessage()}
}

func serviceHead() []string {
	return []string{"NAME", "STATE", "HEALTHY", "PID", "RESTARTS", "SINCE", "MESSAGE"}
}

func newNodeServices(n *nodeFlags) *cobra.Command {
	return newQuery(n, "services", "List the services", func(ctx context.Context, c v1alpha1.NodeClient) (*v1alpha1.ServicesResponse, error) {
		return c.Services(ctx, &v1alpha1.ServicesRequest{})
	}, view[*v1alpha1.ServicesResponse]{serviceHead(), func(m *v1alpha1.ServicesResponse) [][]string {
		var rows [][]string
		for _, s := range m.GetServices() {
			rows = append(rows, serviceRow(s))
		}
		return rows
	}})
}

func newNodeService(n *nodeFlags) *cobra.Command {
	c := &cobra.Command{
		Use:     "service",
		Short:   "Start, stop or restart a service",
		Example: "  kiln node service restart containerd",
	}
	for _, a := range []struct {
		use, short string
		action     v1alpha1.ServiceControlRequest_Action
	}{
		{"start", "Start a service", v1alpha1.ServiceControlRequest_START},
		{"stop", "Stop a service", v1alpha1.ServiceControlRequest_STOP},
		{"restart", "Stop a service and start it again", v1alpha1.ServiceControlRequest_RESTART},
	} {
		c.AddCommand(&cobra.Command{
			Use: a.use + " SERVICE", Short: a.short, Args: args(1, "a service"), ValidArgsFunction: n.completeService,
			RunE: func(c *cobra.Command, args []string) error {
				return query(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (*v1alpha1.ServiceControlResponse, error) {
					return nc.ServiceControl(ctx, &v1alpha1.ServiceControlRequest{Name: args[0], Action: a.action})
				}, view[*v1alpha1.ServiceControlResponse]{serviceHead(), func(m *v1alpha1.ServiceControlResponse) [][]string {
					return [][]string{serviceRow(m.GetService())}
				}})
			},
		})
	}
	return c
}

// completeService asks the first node for its services.
func (n *nodeFlags) completeService(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	list, err := n.targets()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var names []string
	_ = with(list[0], func(nc v1alpha1.NodeClient) error {
		m, err := nc.Services(ctx, &v1alpha1.ServicesRequest{})
		for _, s := range m.GetServices() {
			names = append(names, s.GetName())
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// tailFlags adds the flags of what can be followed. A command that only prints
// the past prints all of it, one that follows begins near the end.
func tailFlags(c *cobra.Command) func() (follow bool, tail int32) {
	var follow bool
	var tail int32
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	c.Flags().Int32Var(&tail, "tail", -1, "begin with so many lines of the past (default: all; 10 with --follow)")
	return func() (bool, int32) {
		if follow && !c.Flags().Changed("tail") {
			return true, 10
		}
		return follow, tail
	}
}

// lost is a line about lines that are gone.
func lost(n uint64, of []string) []string {
	if n == 0 {
		return of
	}
	return append([]string{fmt.Sprintf("… %d lines are lost", n)}, of...)
}

func newNodeLogs(n *nodeFlags) *cobra.Command {
	var tail func() (bool, int32)
	var times bool
	c := &cobra.Command{
		Use: "logs SERVICE", Short: "Print the log of a service", Args: args(1, "a service"), ValidArgsFunction: n.completeService,
		Example: "  kiln node logs containerd\n  kiln node logs --follow --tail 100 kubelet",
		RunE: func(c *cobra.Command, args []string) error {
			return lines(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (grpc.ServerStreamingClient[v1alpha1.LogLine], error) {
				follow, tail := tail()
				return nc.Logs(ctx, &v1alpha1.LogsRequest{Service: args[0], Follow: follow, Tail: tail})
			}, func(l *v1alpha1.LogLine) []string {
				text := strings.ToValidUTF8(string(l.GetText()), "�")
				if times {
					text = when(l.GetTime()) + " " + text
				}
				return lost(l.GetLost(), []string{text})
			})
		},
	}
	tail = tailFlags(c)
	c.Flags().BoolVar(&times, "times", false, "with the time of every line")
	return c
}

func newNodeDmesg(n *nodeFlags) *cobra.Command {
	var tail func() (bool, int32)
	c := &cobra.Command{
		Use: "dmesg", Short: "Print the kernel's log", Args: args(0, "no arguments"), Example: "  kiln node dmesg --follow",
		RunE: func(c *cobra.Command, _ []string) error {
			return lines(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (grpc.ServerStreamingClient[v1alpha1.DmesgLine], error) {
				follow, tail := tail()
				return nc.Dmesg(ctx, &v1alpha1.DmesgRequest{Follow: follow, Tail: tail})
			}, func(l *v1alpha1.DmesgLine) []string {
				return lost(l.GetLost(), []string{dmesgLine(l)})
			})
		},
	}
	tail = tailFlags(c)
	return c
}

// dmesgLine is a line as dmesg(1) has it.
func dmesgLine(l *v1alpha1.DmesgLine) string {
	return fmt.Sprintf("[%5d.%06d] %s", l.GetMicroseconds()/1e6, l.GetMicroseconds()%1e6, l.GetMessage())
}

func newNodeEvents(n *nodeFlags) *cobra.Command {
	var tail func() (bool, int32)
	c := &cobra.Command{
		Use: "events", Short: "Print what happens", Args: args(0, "no arguments"), Example: "  kiln node events --follow --json",
		RunE: func(c *cobra.Command, _ []string) error {
			return lines(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (grpc.ServerStreamingClient[v1alpha1.Event], error) {
				follow, tail := tail()
				return nc.Events(ctx, &v1alpha1.EventsRequest{Follow: follow, Tail: tail})
			}, func(e *v1alpha1.Event) []string {
				return []string{strings.TrimRight(fmt.Sprintf("%s %s %s %s", when(e.GetTime()), e.GetKind(), e.GetSubject(), e.GetMessage()), " ")}
			})
		},
	}
	tail = tailFlags(c)
	return c
}

// do asks every node to do something, and prints what became of it.
func (n *nodeFlags) do(c *cobra.Command, f func(context.Context, v1alpha1.NodeClient) (said string, err error)) error {
	format, err := n.format()
	if err != nil {
		return err
	}
	list, err := n.targets()
	if err != nil {
		return err
	}
	docs := make([]map[string]any, len(list))
	failed := n.each(c.Context(), func(ctx context.Context, i int, t client.Target, nc v1alpha1.NodeClient) error {
		ctx, cancel := context.WithTimeout(ctx, n.timeout)
		defer cancel()
		said, err := f(ctx, nc)
		docs[i] = map[string]any{"node": t.Node, "result": said}
		if err != nil {
			docs[i] = map[string]any{"node": t.Node, "error": client.Explain(t.Node, err).Error()}
		}
		return err
	})
	if format != "table" {
		return errors.Join(printDocuments(c, format, docs), failed)
	}
	for _, d := range docs {
		if said, ok := d["result"].(string); ok {
			if _, err := fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", d["node"], printable(said)); err != nil {
				return err
			}
		}
	}
	return failed
}

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/client"
)

func newNodeList(n *nodeFlags) *cobra.Command {
	var recursive bool
	c := &cobra.Command{
		Use: "ls PATH", Short: "List a directory, or a file; what is closed to other users for admins only", Args: args(1, "a path"), Example: "  kiln node ls /var/log",
		RunE: func(c *cobra.Command, args []string) error {
			return lines(c, n, func(ctx context.Context, nc v1alpha1.NodeClient) (grpc.ServerStreamingClient[v1alpha1.FileInfo], error) {
				return nc.ListDirectory(ctx, &v1alpha1.ListDirectoryRequest{Path: args[0], Recursive: recursive})
			}, func(i *v1alpha1.FileInfo) []string { return []string{fileLine(i)} })
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "and what is below it, on the same file system")
	return c
}

// fileLine is a line as ls -ln has it.
func fileLine(i *v1alpha1.FileInfo) string {
	line := fmt.Sprintf("%s %5d %5d %12d %s %s", modeString(i.GetMode()), i.GetUid(), i.GetGid(), i.GetSize(), when(i.GetModified()), i.GetPath())
	if i.GetLink() != "" {
		line += " -> " + i.GetLink()
	}
	if i.GetError() != "" {
		line += ": " + i.GetError()
	}
	return line
}

// modeString is st_mode as ls(1) has it.
func modeString(m uint32) string {
	kinds := map[uint32]byte{0o040000: 'd', 0o120000: 'l', 0o020000: 'c', 0o060000: 'b', 0o010000: 'p', 0o140000: 's', 0o100000: '-'}
	kind, ok := kinds[m&0o170000]
	if !ok {
		kind = '?'
	}
	s := []byte(fs.FileMode(m & 0o777).String())
	s[0] = kind
	for _, special := range []struct {
		bit  uint32
		at   int
		with byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if m&special.bit == 0 {
			continue
		}
		if s[special.at] == '-' {
			s[special.at] = special.with - 'a' + 'A'
		} else {
			s[special.at] = special.with
		}
	}
	return string(s)
}

func newNodeSupport(n *nodeFlags) *cobra.Command {
	var output string
	var force bool
	c := &cobra.Command{
		Use:   "support",
		Short: "Collect what helps to find a fault into a file",
		Long: `Collect what the nodes say about themselves into a tar.gz: versions, health,
services and their logs, the kernel's log, events, processes, memory, mounts,
disks, modules and extensions. There are no secrets in it, but names and addresses.
What cannot be had is said in errors.txt, and the rest is collected all the same.`,
		Example: "  kiln node support --file support.tar.gz",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := n.targets()
			if err != nil {
				return err
			}
			if err := parentOf(output); err != nil {
				return err
			}
			flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
			if force {
				flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
			}
			f, err := os.OpenFile(output, flags, 0o600)
			if err != nil {
				return writing(output, err)
			}
			defer f.Close()
			names := make([]string, len(list))
			for i, t := range list {
				names[i] = t.Node
			}
			b := client.NewBundle(f)
			errs := make([]*client.Facts, len(list))
			failed := n.each(c.Context(), func(ctx context.Context, i int, t client.Target, nc v1alpha1.NodeClient) error {
				errs[i] = client.Collect(ctx, nc, n.timeout)
				return nil
			})
			if failed != nil {
				return failed
			}
			for i, facts := range errs {
				if err := b.Add(names[i], facts); err != nil {
					return writing(output, err)
				}
			}
			if err := b.Close(); err != nil {
				return writing(output, err)
			}
			if err := f.Close(); err != nil {
				return writing(output, err)
			}
			if slices.ContainsFunc(errs, func(f *client.Facts) bool { return len(f.Errors) > 0 }) {
				fmt.Fprintln(c.ErrOrStderr(), "note: not everything could be had; errors.txt in it says what, and why")
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), filepath.Clean(output))
			return err
		},
	}
	c.Flags().StringVar(&output, "file", "support.tar.gz", "file to write")
	c.Flags().BoolVar(&force, "force", false, "replace the file if it is there")
	return c
}

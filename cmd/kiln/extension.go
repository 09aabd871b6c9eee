package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/internal/bytesize"
)

func newExtension(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "extension", Short: "Build, check and store system extensions"}
	c.AddCommand(newExtensionBuild(g), newExtensionCheck(), newExtensionInspect(), newExtensionPush(), newExtensionConvert())
	return c
}

// extensionFlags are the flags of commands that read extensions: from where, and
// how much.
type extensionFlags struct {
	insecure []string
	paths    []string
	entries  int
	bytes    string
}

func (f *extensionFlags) add(s *pflag.FlagSet) {
	s.StringArrayVar(&f.insecure, "insecure", nil, "registry, HOST or HOST:PORT, that may be asked over plain HTTP (repeatable)")
	s.StringArrayVar(&f.paths, "allow-path", nil, "further path below which extensions may have files (repeatable)")
	s.IntVar(&f.entries, "max-entries", 0, "most files that an extension may have (default 1000000)")
	s.StringVar(&f.bytes, "max-size", "", "most bytes that an extension may unpack to, for example 8GiB (default 4GiB)")
}

// open reads extensions in their order.
func (f *extensionFlags) open(ctx context.Context, refs []string, arch string) ([]*extensions.Extension, error) {
	limits := extensions.Limits{Insecure: f.insecure, Entries: f.entries}
	if len(f.paths) > 0 {
		limits.Paths = append(extensions.AllowedPaths(), f.paths...)
	}
	if f.bytes != "" {
		n, err := bytesize.Parse(f.bytes)
		if err != nil {
			return nil, usageError{fmt.Errorf("--max-size: %w", err)}
		}
		limits.Bytes = int64(n)
	}
	var all []*extensions.Extension
	for _, ref := range refs {
		e, err := extensions.Open(ctx, ref, arch, limits)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// atLeastOne refuses a command line without an extension.
func atLeastOne(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("%s takes at least one extension; see '%s --help'", c.CommandPath(), c.CommandPath())}
	}
	return nil
}

package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "devel"

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of kiln",
		Example: "  kiln version\n  kiln version --json",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			info := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if b, ok := debug.ReadBuildInfo(); ok {
				info["module"] = b.Main.Path
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(info)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "kiln %s %s %s\n", info["version"], info["go"], info["platform"])
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

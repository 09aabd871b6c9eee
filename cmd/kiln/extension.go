package main

import "github.com/spf13/cobra"

func newExtension(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "extension", Short: "Build and check system extensions"}
	c.AddCommand(newExtensionBuild(g), newExtensionCheck())
	return c
}

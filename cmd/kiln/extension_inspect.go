package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
)

func newExtensionInspect() *cobra.Command {
	var f struct {
		base, arch string
		insecure   []string
		asJSON     bool
	}
	c := &cobra.Command{
		Use:   "inspect EXTENSION…",
		Short: "Show what system extensions are and add",
		Long: `Show the manifest and the digests of a system extension, and what it adds: files,
kernel modules, firmware. With several, lowest layer first, or with a base, show
what stands in the way of stacking them too. That does not change the exit code;
'kiln extension check' does.`,
		Example: `  kiln extension inspect zfs.oci
  kiln extension inspect --json ghcr.io/example/zfs:2.3 | jq -r '.layers[0].imageDigest'
  kiln extension inspect spl.oci zfs.oci --base base`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s takes at least one extension; see '%s --help'", c.CommandPath(), c.CommandPath())}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var target extensions.Target
			if f.base != "" {
				b, err := base.Open(f.base, f.arch)
				if err != nil {
					return err
				}
				files, err := b.Files()
				if err != nil {
					return err
				}
				target = extensions.Target{Release: b.Config.Release, Arch: b.Config.Arch, Files: files}
			}
			var all []*extensions.Extension
			for _, ref := range args {
				e, err := extensions.Open(c.Context(), ref, f.arch, extensions.Limits{Insecure: f.insecure})
				if err != nil {
					return err
				}
				all = append(all, e)
			}
			report, err := extensions.NewReport(c.Context(), target, all)
			if err != nil {
				return err
			}
			if !f.asJSON {
				return report.WriteText(c.OutOrStdout())
			}
			enc := json.NewEncoder(c.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(report)
		},
	}
	c.Flags().StringVar(&f.base, "base", "", "base to stack the extensions on")
	c.Flags().StringVar(&f.arch, "arch", "amd64", "architecture: amd64 or arm64")
	c.Flags().StringArrayVar(&f.insecure, "insecure", nil, "registry, HOST or HOST:PORT, that may be asked over plain HTTP (repeatable)")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

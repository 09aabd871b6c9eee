package main

import (
	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
)

func newExtensionInspect() *cobra.Command {
	var f struct {
		extensionFlags
		base, arch string
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
  kiln extension inspect --json registry.example.com/example/zfs:2.3 | jq -r '.layers[0].imageDigest'
  kiln extension inspect spl.oci zfs.oci --base base`,
		Args: atLeastOne,
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
			all, err := f.open(c.Context(), args, f.arch)
			if err != nil {
				return err
			}
			report, err := extensions.NewReport(c.Context(), target, all)
			if err != nil {
				return err
			}
			if f.asJSON {
				return printJSON(c, report)
			}
			return report.WriteText(c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&f.base, "base", "", "base to stack the extensions on")
	c.Flags().StringVar(&f.arch, "arch", "amd64", "architecture: amd64 or arm64")
	f.add(c.Flags())
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

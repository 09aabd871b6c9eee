package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
)

func newExtension(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "extension", Short: "Build and check system extensions"}
	c.AddCommand(newExtensionBuild(g), newExtensionCheck())
	return c
}

func newExtensionBuild(g *globals) *cobra.Command {
	var f struct {
		base, arch, output, name, version, description string
		kernel, modules                                []string
	}
	c := &cobra.Command{
		Use:   "build",
		Short: "Build a system extension from modules of a kernel package",
		Long: `Build a system extension with modules that the distribution's kernel package
has and the base does not ship, together with whatever modules they need. The
modules named are loaded when the node starts.`,
		Example: `  kiln extension build --name wireguard --version 6.12.117 --module wireguard \
    --kernel debs/linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1_amd64.deb --base base --output wireguard`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			b, err := base.Open(f.base, f.arch)
			if err != nil {
				return err
			}
			m := extensions.Manifest{Version: extensions.ManifestVersion, Metadata: extensions.Metadata{
				Name: f.name, Version: f.version, Description: f.description,
			}}
			t, err := imager.ModuleExtension(c.Context(), b, f.kernel, m, f.modules)
			if err != nil {
				return err
			}
			if err := extensions.WriteLayout(c.Context(), f.output, t, f.arch, b.Config.Epoch); err != nil {
				return err
			}
			r.Logger().Info("extension", "name", f.name, "files", t.Len())
			_, err = fmt.Fprintln(c.OutOrStdout(), f.output)
			return err
		},
	}
	c.Flags().StringVar(&f.base, "base", "base", "base the extension is for")
	c.Flags().StringVar(&f.arch, "arch", "amd64", "architecture: amd64 or arm64")
	c.Flags().StringArrayVar(&f.kernel, "kernel", nil, "kernel package (.deb, repeatable) or a directory with boot/ and lib/modules/")
	c.Flags().StringArrayVar(&f.modules, "module", nil, "module to add and to load at boot (repeatable)")
	c.Flags().StringVar(&f.name, "name", "", "name of the extension")
	c.Flags().StringVar(&f.version, "version", "", "version of the extension")
	c.Flags().StringVar(&f.description, "description", "", "what the extension is for")
	c.Flags().StringVarP(&f.output, "output", "o", "", "OCI image layout to write")
	for _, name := range []string{"kernel", "module", "name", "version", "output"} {
		c.MarkFlagRequired(name)
	}
	return c
}

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/rootfs"
)

func newBase(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "base", Short: "Build and show the base of images"}
	c.AddCommand(newBaseBuild(g))
	return c
}

func newBaseBuild(g *globals) *cobra.Command {
	var f struct {
		recipeFlags
		grubCore, grubCD, output string
		kernel                   []string
	}
	c := &cobra.Command{
		Use:   "build",
		Short: "Build a base: kernel, init, root file system and boot loaders",
		Long: `Build a base from a recipe and a kernel package, as an OCI image layout. The
kernel's architecture is the base's. Packages are Debian packages, downloaded
beforehand; they are read without dpkg. Programs of the recipe that are written
in Go are built with the go command; those of other projects, whose versions the
recipe pins, are kept in a cache. Those with parts in C need gcc as well.

A base that is larger than the recipe allows is refused.`,
		Example: `  kiln base build --kernel debs/linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1_amd64.deb \
    --packages debs --tree userland --grub-core core.img --output base`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			recipe, err := rootfs.Load(f.file)
			if err != nil {
				return err
			}
			when, err := epoch(0)
			if err != nil {
				return err
			}
			src, done, err := f.sources(version, when, r)
			if err != nil {
				return err
			}
			defer done()
			req := base.Request{
				Recipe: recipe, Sources: src, Kernel: f.kernel, GrubCore: f.grubCore, GrubCD: f.grubCD, Version: version, Log: r.Logger(),
			}
			if err := parentOf(f.output); err != nil {
				return err
			}
			if err := base.Build(c.Context(), req, f.output); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), f.output)
			return err
		},
	}
	c.Flags().StringVar(&f.file, "recipe", "rootfs/recipe.yaml", "recipe of the root file system")
	f.add(c.Flags())
	c.Flags().StringArrayVar(&f.kernel, "kernel", nil, "kernel package (.deb, repeatable) or a directory with boot/ and lib/modules/")
	c.Flags().StringVar(&f.grubCore, "grub-core", "", "GRUB core image for BIOS")
	c.Flags().StringVar(&f.grubCD, "grub-cd", "", "GRUB's boot program of a CD, for ISO images that boot from BIOS")
	c.Flags().StringVarP(&f.output, "output", "o", "base", "OCI image layout to write")
	c.MarkFlagRequired("kernel")
	return c
}

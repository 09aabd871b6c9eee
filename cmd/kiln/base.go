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
		recipe, grubCore, grubCD, output, goDir, cache string
		kernel, packages, trees                        []string
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
			recipe, err := rootfs.Load(f.recipe)
			if err != nil {
				return err
			}
			when, err := epoch(0)
			if err != nil {
				return err
			}
			cache, done, err := cacheDir(f.cache)
			if err != nil {
				return err
			}
			defer done()
			req := base.Request{
				Recipe: recipe, Kernel: f.kernel, GrubCore: f.grubCore, GrubCD: f.grubCD, Version: version, Log: r.Logger(),
				Sources: rootfs.Sources{Version: version, ModTime: when, PackageDirs: f.packages, TreeDirs: f.trees, GoDir: f.goDir, Cache: cache, Log: r.Logger()},
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
	c.Flags().StringVar(&f.recipe, "recipe", "rootfs/recipe.yaml", "recipe of the root file system")
	c.Flags().StringArrayVar(&f.kernel, "kernel", nil, "kernel package (.deb, repeatable) or a directory with boot/ and lib/modules/")
	c.Flags().StringArrayVar(&f.packages, "packages", nil, "directory with .deb files (repeatable)")
	c.Flags().StringArrayVar(&f.trees, "tree", nil, "directory in which the recipe's prebuilt trees are (repeatable)")
	c.Flags().StringVar(&f.grubCore, "grub-core", "", "GRUB core image for BIOS")
	c.Flags().StringVar(&f.grubCD, "grub-cd", "", "GRUB's boot program of a CD, for ISO images that boot from BIOS")
	c.Flags().StringVar(&f.goDir, "go-dir", ".", "Go module in which the recipe's programs are")
	c.Flags().StringVar(&f.cache, "cache", "", "directory of the cache of built programs (default: kiln in the user's cache directory)")
	c.Flags().StringVarP(&f.output, "output", "o", "base", "OCI image layout to write")
	c.MarkFlagRequired("kernel")
	return c
}

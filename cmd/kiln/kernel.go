package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/kernel/kit"
)

func newKernel(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "kernel", Short: "Check kernels, and prepare building modules for them"}
	c.AddCommand(newKernelCheck(), newKernelKit(g))
	return c
}

// maxSymvers bounds Module.symvers, in bytes. That of Debian's kernel with all
// drivers has 1.5 MB.
const maxSymvers = 64 << 20

func newKernelKit(g *globals) *cobra.Command {
	var f struct {
		base, arch, output string
		headers            []string
	}
	c := &cobra.Command{
		Use:   "kit",
		Short: "Pack what builds modules for a base's kernel",
		Long: `Pack the distribution's packages of kernel headers as a kernel kit: headers,
kbuild with its programs, Module.symvers and configuration of the very kernel
that the base has. With it, 'kiln extension build --module-source' builds modules
without the kernel's source and without its signing key.

The packages are those that linux-headers-RELEASE depends on, downloaded
beforehand ('apt-get download'): linux-headers-RELEASE, linux-headers-…-common
and linux-kbuild-…. Headers of another build than the base's kernel are refused.`,
		Example: `  kiln kernel kit --base base \
    --headers debs/linux-headers-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1_amd64.deb \
    --headers debs/linux-headers-6.12.117+deb12-common_6.12.117-1~deb12u1_all.deb \
    --headers debs/linux-kbuild-6.12.117+deb12_6.12.117-1~deb12u1_amd64.deb --output kit`,
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
			part, err := b.Part(base.Symvers)
			if err != nil {
				return fmt.Errorf("base %s: %w; build the base with linux-headers-%s among its packages", f.base, err, b.Config.Release)
			}
			symvers, err := part.Bytes(maxSymvers)
			if err != nil {
				return err
			}
			req := kit.Request{Packages: f.headers, Arch: b.Config.Arch, Release: b.Config.Release, Symvers: symvers, Epoch: b.Config.Epoch}
			if err := parentOf(f.output); err != nil {
				return err
			}
			if err := kit.Build(c.Context(), req, f.output); err != nil {
				return err
			}
			r.Logger().Info("kernel kit", "release", b.Config.Release, "arch", b.Config.Arch)
			_, err = fmt.Fprintln(c.OutOrStdout(), f.output)
			return err
		},
	}
	c.Flags().StringVar(&f.base, "base", "base", "base whose kernel the kit is for")
	c.Flags().StringVar(&f.arch, "arch", "", "architecture, if the base is for several: amd64 or arm64")
	c.Flags().StringArrayVar(&f.headers, "headers", nil, "package with kernel headers (.deb, repeatable)")
	c.Flags().StringVarP(&f.output, "output", "o", "kit", "OCI image layout to write")
	c.MarkFlagRequired("headers")
	return c
}

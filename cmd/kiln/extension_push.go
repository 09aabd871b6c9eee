package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/internal/ocilayout"
)

func newExtensionPush() *cobra.Command {
	var f extensionSource
	c := &cobra.Command{
		Use:   "push EXTENSION HOST/NAME:TAG",
		Short: "Store a system extension in a registry",
		Long: `Store a system extension in a registry and print where it is, by digest. An
extension that is an image already keeps its digest. Credentials are those of
'docker login'.`,
		Example: "  kiln extension push zfs.oci registry.example.com/example/zfs:2.3",
		Args:    args(2, "an extension and where to store it"),
		RunE: func(c *cobra.Command, args []string) error {
			e, when, err := f.one(c.Context(), args[0])
			if err != nil {
				return err
			}
			img, err := e.Image(c.Context(), f.arch, when)
			if err != nil {
				return err
			}
			digest, err := extensions.Push(c.Context(), img, args[1], f.insecure)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), args[1]+"@"+digest)
			return err
		},
	}
	f.flags(c)
	return c
}

func newExtensionConvert() *cobra.Command {
	var f extensionSource
	var output, format string
	c := &cobra.Command{
		Use:   "convert EXTENSION",
		Short: "Store a system extension in another form",
		Long: `Store a system extension in another form:

  layout  an OCI image layout, a directory
  tar     an OCI image layout that 'docker load' takes too
  sysext  a squashfs image for systemd-sysext

Layout and tar hold the image that 'kiln extension push' stores, with one digest.`,
		Example: "  kiln extension convert my-driver/ --format tar --output my-driver.tar",
		Args:    args(1, "one extension"),
		RunE: func(c *cobra.Command, args []string) error {
			if format != "layout" && format != "tar" && format != "sysext" {
				return usageError{fmt.Errorf("--format %q, want layout, tar or sysext", format)}
			}
			e, when, err := f.one(c.Context(), args[0])
			if err != nil {
				return err
			}
			if err := save(c.Context(), e, output, format, f.arch, when); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), output)
			return err
		},
	}
	f.flags(c)
	c.Flags().StringVar(&format, "format", "layout", "layout, tar or sysext")
	c.Flags().StringVarP(&output, "output", "o", "", "file or directory to write")
	c.MarkFlagRequired("output")
	return c
}

func save(ctx context.Context, e *extensions.Extension, output, format, arch string, when int64) error {
	if format == "sysext" {
		return writing(output, e.SaveSysext(ctx, output, arch, when))
	}
	img, err := e.Image(ctx, arch, when)
	if err != nil {
		return err
	}
	if format == "tar" {
		return writing(output, extensions.SaveTar(ctx, output, img))
	}
	return writing(output, ocilayout.Write(output, img))
}

// extensionSource are the flags of commands that read one extension.
type extensionSource struct {
	extensionFlags
	arch string
}

func (f *extensionSource) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.arch, "arch", "amd64", "architecture: amd64 or arm64")
	f.add(c.Flags())
}

// one returns the extension and the time of what is made of it.
func (f *extensionSource) one(ctx context.Context, ref string) (*extensions.Extension, int64, error) {
	when, err := epoch(0)
	if err != nil {
		return nil, 0, err
	}
	all, err := f.open(ctx, []string{ref}, f.arch)
	if err != nil {
		return nil, 0, err
	}
	return all[0], when, nil
}

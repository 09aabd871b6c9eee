package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/profiles"
)

type buildFlags struct {
	composeFlags

	arch       string
	formats    []string
	size       string
	output     string
	noSidecars bool
	program    string
}

func newBuild(g *globals) *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:   "build PROFILE",
		Short: "Compose an image from a profile, a base and system extensions",
		Long: `Compose a bootable image. PROFILE is a built-in profile (see
'kiln profile list'), a YAML file, or - for standard input. Composing needs no
privilege, no network and no other program, and the same inputs always give the
same bytes. Next to each file go its digest, FILE.sha256, a description of all
that went into it, FILE.json, and the list of the software in it, FILE.spdx.json.`,
		Example: `  kiln build metal --base base --output metal.raw
  kiln build metal --base base --extension wireguard.oci --kernel-arg quiet --output metal.raw
  kiln build ./my-profile.yaml --base base --output disk.raw.zst
  kiln build metal --base base --format raw,uki --output images/
  kiln build metal --base base --output - | zstd -dc - >/dev/null`,
		Args: args(1, "one profile"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			return build(c.Context(), c, r, args[0], f)
		},
		ValidArgs: profiles.Names(),
	}
	f.add(c)
	c.Flags().StringVar(&f.config, "config", "", configUsage)
	c.Flags().StringVar(&f.arch, "arch", "", "architecture: amd64 or arm64 (default: the base's, if it is for one only, or the profile's)")
	c.Flags().StringSliceVar(&f.formats, "format", nil, "output formats, instead of the profile's or the file name's: "+strings.Join(imager.Formats(), ", "))
	c.Flags().StringVar(&f.size, "size", "", "size of the disk, instead of the profile's, for example 8GiB")
	c.Flags().StringVarP(&f.output, "output", "o", "", "file or directory to write to; - is standard output (default: the profile's file name)")
	c.Flags().BoolVar(&f.noSidecars, "no-sidecars", false, "do not write FILE.sha256, FILE.json and FILE.spdx.json")
	c.Flags().StringVar(&f.program, "installer-program", "", "kiln for installer and ISO images, static and for their architecture (default: this program)")
	return c
}

func build(ctx context.Context, c *cobra.Command, r *progress.Reporter, name string, f buildFlags) error {
	p, err := profile(name, f)
	if err != nil {
		return err
	}
	req, done, err := f.request(ctx, r, p)
	if err != nil {
		return err
	}
	defer done()
	if req.Tool, err = tool(f.program); err != nil {
		return err
	}
	img, err := imager.Compose(ctx, req)
	if err != nil {
		return err
	}
	formats := f.formats
	if len(formats) == 0 {
		formats = []string{p.Output.Format}
	}
	written := map[string]string{}
	for _, format := range formats {
		output, err := outputPath(img, f.output, format, len(formats) > 1)
		if err != nil {
			return err
		}
		if other := written[output]; other != "" {
			return usageError{fmt.Errorf("%s would be %s and then %s; build one at a time", output, other, format)}
		}
		written[output] = format
		if err := write(ctx, c, r, img, format, output, !f.noSidecars); err != nil {
			return err
		}
	}
	return nil
}

// tool is kiln as a file.
func tool(name string) (extent.Source, error) {
	if name == "" {
		var err error
		if name, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	return extent.File(name)
}

// outputPath is where the image goes in a format: into the directory given, or
// by the name given, if it is the only one.
func outputPath(img *imager.Image, output, format string, several bool) (string, error) {
	name, err := img.FileName(format)
	if err != nil || output == "" {
		return name, err
	}
	if fi, err := os.Stat(output); err == nil && fi.IsDir() || strings.HasSuffix(output, "/") {
		return filepath.Join(output, name), nil
	}
	if several {
		return "", usageError{fmt.Errorf("--output %s: several formats go into a directory, and it is none", output)}
	}
	return output, nil
}

func write(ctx context.Context, c *cobra.Command, r *progress.Reporter, img *imager.Image, format, output string, sidecars bool) error {
	bar := r.Bar("write "+output, img.Size(ctx, format, output != "-"))
	if output == "-" {
		err := img.WriteTo(ctx, os.Stdout, format, bar.Add)
		bar.Done(err)
		return err
	}
	a, err := img.WriteFile(ctx, output, format, sidecars, bar.Add)
	bar.Done(err)
	if err == nil && sidecars {
		err = img.WriteSidecars(ctx, a)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), output)
	return err
}

// profile loads the profile and lays the flags over it.
func profile(name string, f buildFlags) (*profiles.Profile, error) {
	p, err := f.load(name, f.arch)
	if err != nil {
		return nil, err
	}
	if format := imager.FormatOf(f.output); format != "" {
		p.Output.Format = format
	}
	if len(f.formats) > 0 {
		p.Output.Format = f.formats[0]
	}
	if f.size != "" {
		if p.Disk.Size, err = profiles.ParseSize(f.size); err != nil {
			return nil, usageError{fmt.Errorf("--size: %w", err)}
		}
	}
	if err := p.Validate(); err != nil {
		return nil, usageError{errors.Join(fmt.Errorf("profile %s with the flags given", name), err)}
	}
	return p, nil
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/inspect"
	"github.com/kilnhq/kiln/internal/atomicfile"
)

func newInspect() *cobra.Command {
	var asJSON, sizes bool
	var svg string
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show the partitions, boot entries and layers of a disk image",
		Long: `Show what is in a disk image or on a disk: the partition map, the boot entries
with their command lines, the sections of unified kernel images, and the layers
that the initramfs carries; or, with --sizes, where the bytes go. Nothing is
mounted or unpacked. ` + imageFormatsHelp,
		Example: "  kiln inspect metal.raw\n  kiln inspect --json metal.qcow2 | jq .partitions\n  kiln inspect --sizes metal.raw\n  kiln inspect --sizes --svg sizes.svg metal.raw",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := openDisk(args[0])
			if err != nil {
				return err
			}
			defer d.disk.Close()
			if sizes || svg != "" {
				return showSizes(c, d, asJSON, svg)
			}
			if !asJSON {
				return d.img.WriteText(c.OutOrStdout())
			}
			return printJSON(c, d.img)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&sizes, "sizes", false, "show where the bytes of the image go")
	c.Flags().StringVar(&svg, "svg", "", "draw where the bytes go, as an SVG file")
	return c
}

func showSizes(c *cobra.Command, d *openedDisk, asJSON bool, svg string) error {
	files, err := d.contents(c.Context())
	if err != nil {
		return err
	}
	root := inspect.Sizes(d.img, files)
	if svg != "" {
		var b bytes.Buffer
		if err := root.WriteSVG(&b); err != nil {
			return err
		}
		if err := atomicfile.WriteFile(svg, b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("%w: %w", imager.ErrOutput, err)
		}
	}
	if asJSON {
		return printJSON(c, root)
	}
	return root.WriteText(c.OutOrStdout())
}

func printJSON(c *cobra.Command, v any) error {
	enc := json.NewEncoder(c.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

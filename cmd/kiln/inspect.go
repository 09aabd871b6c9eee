package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/inspect"
)

func newInspect() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show the partitions, boot entries and layers of a raw disk image",
		Long: `Show what is in a raw disk image or on a disk: the partition map, the boot
entries with their command lines, the sections of unified kernel images, and
the layers that the initramfs carries. Nothing is mounted or unpacked.`,
		Example: "  kiln inspect metal.raw\n  kiln inspect --json metal.raw | jq .partitions",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := inspectFile(args[0])
			if err != nil {
				return err
			}
			if !asJSON {
				return img.WriteText(c.OutOrStdout())
			}
			return printJSON(c, img)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printJSON(c *cobra.Command, v any) error {
	enc := json.NewEncoder(c.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func inspectFile(name string) (*inspect.Image, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	img, err := inspect.Read(f, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", imager.ErrRefused, name, err)
	}
	return img, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/container"
	"github.com/kilnhq/kiln/imager/inspect"
)

const imageFormatsHelp = "Images may be in any of the formats that\n'kiln convert' reads."

// openedDisk is an image of a disk that was opened, in whatever format it is.
type openedDisk struct {
	name string
	disk *container.Disk
	img  *inspect.Image
}

func openDisk(name string) (*openedDisk, error) {
	disk, err := openContainer(name)
	if err != nil {
		return nil, err
	}
	img, err := inspect.Read(disk, disk.Size())
	if err != nil {
		disk.Close()
		return nil, refused(name, err)
	}
	return &openedDisk{name, disk, img}, nil
}

func openContainer(name string) (*container.Disk, error) {
	disk, err := container.Open(name)
	var path *fs.PathError
	if err != nil && !errors.As(err, &path) {
		return nil, fmt.Errorf("%w: %w", imager.ErrRefused, err)
	}
	return disk, err
}

func (d *openedDisk) contents(ctx context.Context) ([]inspect.File, error) {
	files, err := inspect.Contents(ctx, d.disk, d.disk.Size())
	if err != nil && ctx.Err() == nil {
		err = refused(d.name, err)
	}
	return files, err
}

// refused marks an error for an image that cannot be read.
func refused(name string, err error) error {
	return fmt.Errorf("%w: %s: %w", imager.ErrRefused, name, err)
}

func newVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify IMAGE…",
		Short: "Check that images are whole",
		Long: `Check images: the partition table, the file systems, that every boot entry has
its kernel and its initramfs, that the layers in it are what the list of layers
says, and that all boot loaders start the same system. ` + imageFormatsHelp,
		Example: "  kiln verify metal.raw metal.qcow2",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				d, err := openDisk(name)
				if err != nil {
					return err
				}
				defer d.disk.Close()
				files, err := d.contents(c.Context())
				if err != nil {
					return err
				}
				problems := inspect.Verify(d.img, files)
				for _, p := range problems {
					errs = append(errs, refused(name, errors.New(p)))
				}
				if len(problems) == 0 {
					fmt.Fprintf(c.OutOrStdout(), "%s: whole, %s, %d files\n", name, d.disk.Format, len(files))
				}
			}
			return errors.Join(errs...)
		},
	}
}

func newDiff() *cobra.Command {
	var asJSON, quiet bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show the differences between two images",
		Long: `Show what is different in two images: the disk, partitions, boot entries, kernel
arguments, layers, kernel modules and files, those in layers included. The exit
code is 1 if there are differences. ` + imageFormatsHelp,
		Example: "  kiln diff metal-1.raw metal-2.qcow2\n  kiln diff --json a.raw b.raw | jq -r '.[] | select(.kind == \"module\") | .name'",
		Args:    args(2, "two images"),
		RunE: func(c *cobra.Command, args []string) error {
			var disks [2]*openedDisk
			var files [2][]inspect.File
			for i, name := range args {
				var err error
				if disks[i], err = openDisk(name); err != nil {
					return err
				}
				defer disks[i].disk.Close()
				if files[i], err = disks[i].contents(c.Context()); err != nil {
					return err
				}
			}
			changes := inspect.Diff(disks[0].img, disks[1].img, files[0], files[1])
			switch {
			case asJSON:
				if changes == nil {
					changes = []inspect.Change{}
				}
				if err := printJSON(c, changes); err != nil {
					return err
				}
			case !quiet:
				for _, ch := range changes {
					fmt.Fprintln(c.OutOrStdout(), ch)
				}
			}
			if len(changes) > 0 {
				return fmt.Errorf("%s and %s: %d differences", args[0], args[1], len(changes))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only set the exit code")
	return c
}

func newConvert(g *globals) *cobra.Command {
	var f struct {
		format, output string
		set            []string
	}
	c := &cobra.Command{
		Use:   "convert IMAGE",
		Short: "Write an image of a disk in another format",
		Long: `Write an image of a disk in another format. The format that it is in is told by
its content; nothing is unpacked on the way. Formats to write: ` + strings.Join(imager.DiskFormats(), ", ") + `.`,
		Example: "  kiln convert metal.raw --output metal.qcow2\n  kiln convert metal.qcow2 --format raw --output - | ssh host dd of=/dev/sdb",
		Args:    args(1, "one image"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			format := f.format
			if format == "" {
				format = imager.FormatOf(f.output)
			}
			if !slices.Contains(imager.DiskFormats(), format) {
				return usageError{fmt.Errorf("--output %s does not tell the format: --format is one of %s", f.output, strings.Join(imager.DiskFormats(), ", "))}
			}
			p, err := loadProfile("metal", f.set)
			if err != nil {
				return err
			}
			disk, err := openContainer(args[0])
			if err != nil {
				return err
			}
			defer disk.Close()
			img, err := imager.FromDisk(disk.Map, p.Output, p.Machine)
			if err != nil {
				return refused(args[0], err)
			}
			return write(c.Context(), c, r, img, format, f.output, false)
		},
	}
	c.Flags().StringVar(&f.format, "format", "", "format to write (default: what the name of the output says)")
	c.Flags().StringVarP(&f.output, "output", "o", "", "file to write; - is standard output")
	c.Flags().StringArrayVar(&f.set, "set", nil, "KEY=VALUE as in a profile: output.compression=none, output.level=19 or machine.memory=4GiB (repeatable)")
	c.MarkFlagRequired("output")
	return c
}

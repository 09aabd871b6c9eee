package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/slots"
)

func newUpgrade(g *globals) *cobra.Command {
	var f struct {
		composeFlags
		disk, platform, source string
	}
	c := &cobra.Command{
		Use:   "upgrade --disk DISK",
		Short: "Write a new system into the other slot of an installed disk",
		Long: `Write a new system into the slot of an installed disk, or of an image of one, that
is not in use, and put it on trial: boot loaders start it up to three times, and go
back to the system that is there now unless the new one comes up and confirms
itself. Machine configuration and data stay as they are.

In an installer image all that is needed is there; elsewhere --base and the other
flags of 'kiln build' say what to write. What is written is read back before one
sector for each boot loader switches. If anything fails, the disk boots what it
booted before.`,
		Example: `  kiln upgrade --disk /dev/sda --base base --extension zfs.oci
  docker run --rm --privileged -v /dev:/dev kiln:TAG upgrade --disk /dev/sda`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			if f.source != "" {
				if err := f.use(c, f.source); err != nil {
					return err
				}
			}
			p, err := f.load(cmp.Or(f.platform, f.profile, "metal"), "")
			if err != nil {
				return err
			}
			if len(p.ImageCache)+len(f.images) > 0 {
				r.Logger().Warn("the image cache of the disk stays as it is; 'kiln install --keep STATE,EPHEMERAL' replaces it")
				p.ImageCache, f.images = nil, nil
			}
			req, done, err := f.request(c.Context(), r, p)
			if err != nil {
				return err
			}
			defer done()
			img, err := imager.Compose(c.Context(), req)
			if err != nil {
				return err
			}
			return withSlots(f.disk, func(d *slots.Disk) error {
				return upgrade(c, r, img, d, f.disk)
			})
		},
	}
	f.add(c)
	diskFlag(c, &f.disk)
	c.Flags().StringVar(&f.platform, "platform", "", "profile to install, a built-in one or a file (default: the installer image's, or metal)")
	c.Flags().StringVar(&f.source, "source", os.Getenv(imager.SourceVariable), "directory of an installer image with what to install")
	return c
}

func upgrade(c *cobra.Command, r *progress.Reporter, img *imager.Image, d *slots.Disk, disk string) error {
	if err := img.Verify(c.Context()); err != nil {
		return err
	}
	var bar *progress.Bar
	slot, err := d.Upgrade(c.Context(), func(slot string) (*slots.System, error) {
		s, err := img.System(slot, d.ID.String())
		if err == nil {
			bar = r.Bar("upgrade slot "+slot+" of "+disk, d.Size(s))
		}
		return s, err
	}, func(n int64) { bar.Add(n) })
	if bar != nil {
		bar.Done(err)
	}
	if err != nil {
		return err
	}
	clearLoaderEntry(r, d.Table)
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s: slot %s is tried at the next start\n", disk, slot)
	return err
}

func newRollback(g *globals) *cobra.Command {
	var disk, to string
	c := &cobra.Command{
		Use:   "rollback --disk DISK",
		Short: "Make an installed disk boot the system in its other slot",
		Long: `Make an installed disk, or an image of one, boot the system that it booted before:
the confirmed one if another is on trial, otherwise the one in the other slot.`,
		Example: "  kiln rollback --disk /dev/sda\n  kiln rollback --disk metal.raw --to A",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			return withSlots(disk, func(d *slots.Disk) error {
				var err error
				if to == "" {
					to, err = d.Rollback()
				} else {
					err = d.Confirm(to)
				}
				if err != nil {
					return err
				}
				clearLoaderEntry(r, d.Table)
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s: boots slot %s\n", disk, to)
				return err
			})
		},
	}
	diskFlag(c, &disk)
	c.Flags().StringVar(&to, "to", "", "slot to boot, A or B")
	return c
}

func newSlots() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "slots DISK",
		Short:   "Show which of its two systems a disk boots",
		Long:    "Show, for each boot loader of an installed disk or an image of one, the slot that\nit boots, and the one that is on trial or has failed.",
		Example: "  kiln slots /dev/sda\n  kiln slots metal.raw --json | jq -r .bios.slot",
		Args:    args(1, "one disk"),
		RunE: func(c *cobra.Command, args []string) error {
			return withSlots(args[0], func(d *slots.Disk) error {
				bios, uefi, err := d.States()
				if err != nil {
					return err
				}
				states := map[string]*slots.State{"bios": bios, "uefi": uefi}
				if asJSON {
					return printJSON(c, states)
				}
				for _, firmware := range []string{"bios", "uefi"} {
					if s := states[firmware]; s != nil {
						fmt.Fprintf(c.OutOrStdout(), "%s: %s\n", firmware, s)
					}
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func diskFlag(c *cobra.Command, disk *string) {
	c.Flags().StringVar(disk, "disk", "", "the disk: a device, a link to one, or a file")
	c.MarkFlagRequired("disk")
}

// withSlots opens the slots of a disk, which may be the one that the machine runs
// from: nothing that is mounted is touched.
func withSlots(path string, do func(*slots.Disk) error) error {
	dev, err := blockdev.Local().Resolve(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// As udev and systemd do, so that nobody else changes the disk meanwhile.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return &blockdev.Refusal{Path: path, Why: blockdev.ErrInUse, Detail: "try again later"}
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	d, err := slots.Open(f, size)
	if err == nil {
		err = do(d)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

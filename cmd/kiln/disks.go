package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/blockdev"
)

func newDisks(*globals) *cobra.Command { return disksOf(blockdev.Local()) }

// disksOf is the command for the disks of a machine.
func disksOf(host blockdev.Host) *cobra.Command {
	var f struct {
		json, quiet bool
		selector    string
	}
	c := &cobra.Command{
		Use:   "disks",
		Short: "List the disks to install on, with what is on them",
		Long: `List the disks of this machine, who uses them, and what is on them: partitions,
file systems, members of RAID sets and volume groups. Loop devices are listed if
they can be written. Only root may see what is on a disk.

With --selector only the disks that it matches are listed, and the exit code is
0 if there is exactly one. A selector compares fields with values:
  size >= 10GB && transport == "nvme" && !removable
  by-id =~ "ata-ST4000*" || (model.contains("SSD") && size < 1TiB)
Fields: name, path, size, sectorsize, model, serial, wwn, transport (nvme, sata,
sas, scsi, fc, iscsi, usb, mmc, virtio, xen, nbd, rbd, pmem or loop), rotational,
removable, readonly, by-id, links (in /dev/disk) and buspath; 'disk.size' is
'size'. Operators: == != < <= > >=, =~ for patterns with * and ?, "text" in
field, startsWith, endsWith and contains, && || ! and parentheses. Units: KB, MB,
GB, TB, PB of 1000; KiB, MiB, GiB, TiB, PiB of 1024.`,
		Example: "  kiln disks\n  kiln disks --selector 'size > 100GB && !rotational'\n  kiln disks --json | jq -r '.[] | select(.refused | not) | .path'",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			devices, err := host.List()
			if err != nil {
				return err
			}
			devices = blockdev.Candidates(devices)
			var selected error
			if c.Flags().Changed("selector") {
				if devices, selected, err = selectDisks(devices, f.selector); err != nil {
					return err
				}
			}
			if f.quiet {
				for _, d := range devices {
					fmt.Fprintln(c.OutOrStdout(), d.Path)
				}
				return selected
			}
			list := []disk{}
			for _, d := range devices {
				x := inspectDisk(host, d)
				if x.Unread != "" {
					fmt.Fprintf(c.ErrOrStderr(), "warning: what is on %s is not known: %s\n", d.Path, x.Unread)
				}
				list = append(list, x)
			}
			if f.json {
				err = printJSON(c, list)
			} else {
				err = printDisks(c, list)
			}
			return errors.Join(err, selected)
		},
	}
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print only the paths")
	c.Flags().StringVar(&f.selector, "selector", "", "list only the disks that the expression matches")
	return c
}

// selectDisks returns the devices that match, and as selected the error that an
// installation would end with.
func selectDisks(devices []*blockdev.Device, expr string) (matching []*blockdev.Device, selected, err error) {
	s, err := blockdev.ParseSelector(expr)
	if err != nil {
		return nil, nil, usageError{err}
	}
	for _, d := range devices {
		if s.Match(d) {
			matching = append(matching, d)
		}
	}
	_, selected = blockdev.Select(devices, s)
	return matching, selected, nil
}

// A disk is what is printed of one.
type disk struct {
	*blockdev.Device
	Refused []string `json:"refused,omitempty"` // why it must not be overwritten
	Unread  string   `json:"unread,omitempty"`  // why its contents are not known
}

func inspectDisk(host blockdev.Host, d *blockdev.Device) disk {
	x := disk{Device: d}
	if err := host.Inspect(d); err != nil {
		x.Unread = err.Error()
	}
	if err := d.Check(0); err != nil {
		x.Refused = strings.Split(err.Error(), "\n")
	}
	return x
}

func printDisks(c *cobra.Command, list []disk) error {
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PATH\tSIZE\tTRANSPORT\tMODEL\tSERIAL\tUSE\tHOLDS")
	for _, d := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Path, progress.Bytes(d.Size), cmp.Or(d.Transport, "-"), cmp.Or(d.Model, "-"),
			cmp.Or(d.Serial, "-"), use(d.Device), holds(d.Contents))
	}
	return w.Flush()
}

// use says in a word or two whether and how a disk is used.
func use(d *blockdev.Device) string {
	var words []string
	for _, u := range d.Users {
		if s := string(u.Use); len(words) == 0 || words[len(words)-1] != s {
			words = append(words, s)
		}
	}
	if d.ReadOnly {
		words = append(words, "read-only")
	}
	return cmp.Or(strings.Join(words, ", "), "free")
}

func holds(c *blockdev.Contents) string {
	if c == nil {
		return "?"
	}
	return cmp.Or(c.String(), "nothing")
}

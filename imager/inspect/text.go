package inspect

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/layers"
)

// WriteText prints the image for a person.
func (img *Image) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "disk %s, %s, %d-byte sectors\n\n", img.DiskID, progress.Bytes(img.Size), img.SectorSize)
	fmt.Fprintln(tw, "#\tLABEL\tSTART\tSIZE\tFILE SYSTEM\tUSED\tTYPE")
	for _, p := range img.Partitions {
		used := ""
		if p.FileSystem != "" {
			used = progress.Bytes(p.Used)
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Number, p.Label, progress.Bytes(p.Start), progress.Bytes(p.Size), p.FileSystem, used, p.Type)
	}
	if len(img.ContainerImages) > 0 {
		fmt.Fprintln(tw)
	}
	for _, c := range img.ContainerImages {
		fmt.Fprintf(tw, "container image\t%s\t%.19s\n", c.Name, c.Digest)
	}
	for _, e := range img.Entries {
		fmt.Fprintf(tw, "\nboot entry\t%s\nloader\t%s\nfile\t%s\nkernel\t%s\ncommand line\t%s\n", e.Title, e.Loader, e.File, e.Release, e.Cmdline)
		if e.Arch != "" {
			fmt.Fprintf(tw, "architecture\t%s\n", e.Arch)
		}
		if e.State != "" {
			fmt.Fprintf(tw, "slot %s\t%s\n", e.Slot, e.State)
		}
		for _, s := range e.Sections {
			fmt.Fprintf(tw, "section\t%s\t%s\n", s.Name, progress.Bytes(s.Size))
		}
		if e.Initrd == nil {
			continue
		}
		for _, s := range e.Initrd.Segments {
			fmt.Fprintf(tw, "initramfs\t%s cpio\t%s\t%d files\n", s.Compression, progress.Bytes(s.Size), s.Files)
		}
		for _, l := range e.Initrd.Layers {
			place := "initramfs"
			if l.Verity != nil {
				place = fmt.Sprintf("BOOT:/%s/%s, root hash %.12s", e.Slot, layers.File, l.Verity.Root)
			}
			fmt.Fprintf(tw, "layer\t%s\t%s\t%s %s\tsha256:%.12s\t%s\n", l.Kind, progress.Bytes(l.Size), l.Name, l.Version, l.SHA256, place)
		}
		for _, m := range e.Initrd.Modules {
			fmt.Fprintf(tw, "module\t%s\t%s\tfrom %s\n", m.Name, m.Parameters, m.Extension)
		}
	}
	return tw.Flush()
}

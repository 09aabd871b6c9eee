package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/install"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/profiles"
)

type installFlags struct {
	composeFlags

	disk, selector string
	platform       string
	source         string
	instance       string
	keep           []string
	verify         string
	plan, json     bool
	force          bool
	noBootEntry    bool

	arch string     // of what is installed
	old  *gpt.Table // of the disk, if anything is kept
}

func newInstall(g *globals) *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "install",
		Short: "Install onto a disk of this machine",
		Long: `Install onto a disk: compose it and write it there. In an installer image all that
is needed is there; elsewhere --base and the other flags of 'kiln build' say what
to install.

A disk that holds anything is refused without --force. One that is mounted, part
of something that is active, the disk of the running system, read-only or too
small is always refused. --plan shows what is there and what would be written.

The partition table is written last, after everything else has been written and
read back: a disk whose installation was cut short does not boot, and the command
that was interrupted can be run again.

An ISO image that is mounted has what to install as well, in its directory kiln; a
machine that is started from one installs with the kernel argument
kiln.install.disk=DISK.`,
		Example: `  kiln install --disk /dev/sdb --plan
  kiln install --disk /dev/disk/by-id/nvme-example --config http://192.0.2.1/node.yaml
  kiln install --disk-selector 'size >= 10GB && transport == "nvme"' --platform metal --config node.yaml --force
  kiln install --disk /dev/sdb --keep STATE,EPHEMERAL --force
  docker run --rm -i --privileged -v /dev:/dev kiln:TAG install --disk /dev/sdb --platform metal --config - <node.yaml`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			return runInstall(c, r, f)
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.config, "config", "", configUsage)
	c.Flags().StringVar(&f.disk, "disk", "", "disk to install on: a device, a link to one, or a file")
	c.Flags().StringVar(&f.selector, "disk-selector", "", "expression that matches the disk to install on, see 'kiln disks --help'")
	c.Flags().StringVar(&f.platform, "platform", "", "profile to install, a built-in one or a file (default: the installer image's, or metal)")
	c.Flags().StringVar(&f.source, "source", os.Getenv(imager.SourceVariable), "directory with what to install: of an installer image, or /kiln of an ISO image")
	c.Flags().StringVar(&f.instance, "instance", "", "UUID from which those of the disk and its partitions derive (default: a random one)")
	c.Flags().StringSliceVar(&f.keep, "keep", nil, "labels of partitions to keep as they are: META, STATE, EPHEMERAL")
	c.Flags().StringVar(&f.verify, "verify", "full", "how much to read back: full, quick or none")
	c.Flags().BoolVar(&f.plan, "plan", false, "show what is on the disk and what would be written, and write nothing")
	c.Flags().BoolVar(&f.json, "json", false, "print the plan as JSON")
	c.Flags().BoolVar(&f.force, "force", false, "overwrite what is on the disk")
	c.Flags().BoolVar(&f.noBootEntry, "no-boot-entry", false, "do not make the disk the first that this machine's UEFI firmware boots")
	return c
}

// newImage is how disks were written before there was 'kiln install'.
func newImage(g *globals) *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:     "image -b DISK [-f] [-p PLATFORM] [-u URL]",
		Short:   "Install onto a disk: the old form of 'kiln install'",
		Example: "  docker run --rm --privileged --volume /dev:/dev kiln:TAG image -b /dev/sdb -f -p bare-metal -u http://192.0.2.1:8080/master.yaml",
		Hidden:  true,
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			if f.platform == "bare-metal" {
				f.platform = "metal"
			}
			return runInstall(c, r, f)
		},
	}
	f.add(c)
	c.Flags().StringVarP(&f.disk, "block-device", "b", "", "disk to install on")
	c.Flags().BoolVarP(&f.force, "force", "f", false, "overwrite what is on the disk")
	c.Flags().StringVarP(&f.platform, "platform", "p", "", "platform; bare-metal is metal")
	c.Flags().StringVarP(&f.config, "url", "u", "", "URL of the machine configuration")
	f.source, f.verify = os.Getenv(imager.SourceVariable), "full"
	return c
}

func runInstall(c *cobra.Command, r *progress.Reporter, f installFlags) error {
	ctx := c.Context()
	switch install.Verify(f.verify) {
	case install.Full, install.Quick, install.None:
	default:
		return usageError{fmt.Errorf("--verify %q, want full, quick or none", f.verify)}
	}
	if f.config != "" && slices.Contains(f.keep, "STATE") {
		return usageError{fmt.Errorf("--config %s and --keep STATE: the configuration is what is kept there; leave out one of the two", f.config)}
	}
	host := blockdev.Local()
	dev, err := f.device(host)
	if err != nil {
		return err
	}
	if err := host.Inspect(dev); err != nil {
		return err
	}
	if f.source != "" {
		if err := f.use(c, f.source); err != nil {
			return err
		}
	}
	img, done, err := f.compose(ctx, r, dev)
	if err != nil {
		return err
	}
	defer done()
	plan, err := install.NewPlan(install.Request{
		Host: host, Device: dev, Disk: img.Disk, Table: img.Table, Force: f.force, Keep: f.keep, Old: f.old,
	})
	if err != nil {
		return err
	}
	if f.plan {
		if f.json {
			err = printJSON(c, plan)
		} else {
			err = plan.WriteText(c.OutOrStdout())
		}
		return errors.Join(err, plan.Err())
	}
	if err := plan.Err(); err != nil {
		return err
	}
	// A disk is not erased for a base that is damaged.
	if err := img.Verify(ctx); err != nil {
		return err
	}
	bar := r.Bar("install on "+dev.Path, plan.Size(install.Verify(f.verify)))
	err = plan.Run(ctx, install.Verify(f.verify), func(_ install.Phase, n int64) { bar.Add(n) })
	if errors.Is(err, blockdev.ErrStale) { // the disk is what it should be
		r.Logger().Warn(err.Error())
		err = nil
	}
	bar.Done(err)
	if err != nil {
		return err
	}
	if !f.noBootEntry {
		registerBoot(r, host, dev, plan.Table(), f.arch)
	}
	if f.json {
		return printJSON(c, plan)
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s: installed\n", dev.Path)
	return err
}

// device finds the disk.
func (f *installFlags) device(host blockdev.Host) (*blockdev.Device, error) {
	switch {
	case (f.disk == "") == (f.selector == ""):
		return nil, usageError{errors.New("which disk? give --disk or --disk-selector, one of the two; 'kiln disks' lists what there is")}
	case f.disk != "":
		return host.Resolve(f.disk)
	}
	s, err := blockdev.ParseSelector(f.selector)
	if err != nil {
		return nil, usageError{fmt.Errorf("--disk-selector: %w", err)}
	}
	return host.Select(s)
}

// compose makes the disk for the device. The caller must call done when it is no
// longer needed.
func (f *installFlags) compose(ctx context.Context, r *progress.Reporter, dev *blockdev.Device) (img *imager.Image, done func(), err error) {
	name := f.platform
	if name == "" {
		name = f.profile
	}
	if name == "" {
		name = "metal"
	}
	p, err := f.load(name, "")
	if err != nil {
		return nil, nil, err
	}
	if f.platform != "" && f.profile != "" {
		if err := f.inherit(p); err != nil {
			return nil, nil, err
		}
	}
	f.arch = p.Arch
	fitDevice(p, dev)
	if len(f.keep) > 0 {
		if f.old, err = readTable(dev); err != nil {
			return nil, nil, err
		}
		keepSizes(p, f.old, f.keep)
	}
	if err := p.Validate(); err != nil {
		return nil, nil, fmt.Errorf("profile %s for %s: %w", name, dev.Path, err)
	}
	req, done, err := f.request(ctx, r, p)
	if err != nil {
		return nil, nil, err
	}
	if req.Instance = f.instance; req.Instance == "" {
		req.Instance = uuid.NewString()
	}
	if img, err = imager.Compose(ctx, req); err != nil {
		done()
		return nil, nil, err
	}
	return img, done, nil
}

// inherit takes what another platform does not change from the profile of what is
// installed: the machine configuration.
func (f *installFlags) inherit(p *profiles.Profile) error {
	own, err := profiles.Load(f.profile)
	if err != nil {
		return err
	}
	p.MachineConfig = cmp.Or(p.MachineConfig, own.MachineConfig)
	return nil
}

// fitDevice makes p a profile for the device: what platforms want of the sizes
// of images does not matter there.
func fitDevice(p *profiles.Profile, dev *blockdev.Device) {
	p.Disk.Size, p.Disk.Minimum, p.Disk.Maximum, p.Disk.Multiple = 0, 0, 0, profiles.MiB
	if dev.Sector != 0 {
		p.Disk.SectorSize = dev.Sector
	}
	if p.Disk.SectorSize != 512 && p.Disk.BootLoader == profiles.Dual {
		p.Disk.BootLoader = profiles.UEFI // no BIOS boots from it
	}
}

// keepSizes gives the partitions the sizes that they have, up to the last one of
// those that are kept, so that these stay where they are.
func keepSizes(p *profiles.Profile, old *gpt.Table, keep []string) {
	sizes := map[string]*profiles.Size{
		"EFI": &p.Disk.Partitions.EFI, "BOOT": &p.Disk.Partitions.BOOT, "STATE": &p.Disk.Partitions.State,
		"IMAGECACHE": &p.Disk.Partitions.ImageCache, "EPHEMERAL": &p.Disk.Partitions.Ephemeral,
	}
	end := 0
	for i, part := range old.Partitions {
		if slices.Contains(keep, part.Name) {
			end = i + 1
		}
	}
	for _, part := range old.Partitions[:end] {
		if size := sizes[part.Name]; size != nil {
			*size = profiles.Size(part.Size)
		}
	}
}

func readTable(dev *blockdev.Device) (*gpt.Table, error) {
	f, err := os.Open(dev.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := gpt.Read(f, dev.Size)
	if err != nil {
		return nil, fmt.Errorf("--keep: %s: %w", dev.Path, err)
	}
	return t, nil
}

package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/grow"
)

// Plan is what installing a disk on a device does. It is made, and shown, before
// anything is written.
type Plan struct {
	Device *blockdev.Device `json:"device"` // with what is on it

	// Refused says why it cannot be carried out; empty if it can.
	Refused []string `json:"refused,omitempty"`

	Keep       []string    `json:"keep,omitempty"` // labels of partitions
	Partitions []Partition `json:"partitions"`
	Bytes      int64       `json:"bytes"` // to write, without zeros

	host  blockdev.Host
	disk  *extent.Map
	table *gpt.Table
	err   error
}

// Partition is one that the device has afterwards.
type Partition struct {
	Number int    `json:"number"` // from 1
	Label  string `json:"label"`
	Type   string `json:"type"`
	Start  int64  `json:"start"` // bytes
	Size   int64  `json:"size"`  // bytes
	Kept   bool   `json:"kept,omitempty"`
}

// Request is what a plan is made of.
type Request struct {
	Host   blockdev.Host
	Device *blockdev.Device // inspected
	Disk   *extent.Map
	Table  *gpt.Table // of Disk

	// Force overwrites a device that holds something.
	Force bool
	// Keep are labels of partitions that stay as they are, and Old is the
	// partition table of the device, if there are any.
	Keep []string
	Old  *gpt.Table
}

// NewPlan makes a plan. What forbids to carry it out is in the plan, and the
// error of Run; the error of NewPlan is for what makes no sense.
func NewPlan(r Request) (*Plan, error) {
	if sector := r.Device.Sector; sector != 0 && sector != r.Table.SectorSize {
		return nil, fmt.Errorf("the device has sectors of %d bytes, the disk is for sectors of %d", sector, r.Table.SectorSize)
	}
	p := &Plan{Device: r.Device, Keep: r.Keep, host: r.Host, disk: r.Disk}
	p.table, _ = grow.Fit(r.Table, max(r.Device.Size, r.Table.Size))
	if len(r.Keep) > 0 {
		kept, err := Kept(r.Old, p.table, r.Keep)
		if err != nil {
			return nil, err
		}
		for _, k := range kept {
			i := slices.IndexFunc(p.table.Partitions, func(n gpt.Partition) bool { return n.Name == k.Name })
			p.table.Partitions[i] = k
		}
	}
	p.err = r.Device.Check(r.Table.Size)
	if !r.Force {
		p.err = errors.Join(p.err, r.Device.Occupied())
	}
	if p.err != nil {
		p.Refused = strings.Split(p.err.Error(), "\n")
	}
	for i, part := range p.table.Partitions {
		if part.Size > 0 {
			p.Partitions = append(p.Partitions, Partition{
				i + 1, part.Name, gpt.TypeName(part.Type), part.Start, part.Size, slices.Contains(r.Keep, part.Name),
			})
		}
	}
	w := newWriter(p.disk, p.table, Options{Keep: r.Keep})
	p.Bytes = w.plan()
	return p, nil
}

// Table returns the partition table that the device gets.
func (p *Plan) Table() *gpt.Table { return p.table }

// Err says why the plan cannot be carried out, or nil.
func (p *Plan) Err() error { return p.err }

// Size returns the number of bytes that Run tells progress of.
func (p *Plan) Size(v Verify) int64 {
	return Size(p.disk, p.table, Options{Keep: p.Keep, Verify: v})
}

// Run carries the plan out: it locks the device, refuses it if it is not as it
// was when the plan was made, and writes it. The error of the kernel not learning
// of the new partitions wraps blockdev.ErrStale; the disk is whole then.
func (p *Plan) Run(ctx context.Context, v Verify, tell func(Phase, int64)) error {
	if p.err != nil {
		return p.err
	}
	t, err := p.host.Lock(ctx, p.Device)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := Write(ctx, &target{ctx, t}, p.disk, p.table, Options{Keep: p.Keep, Verify: v, Progress: tell}); err != nil {
		return fmt.Errorf("%s: %w", p.Device.Path, err)
	}
	return t.Reread()
}

// target is a device as Write takes it.
type target struct {
	ctx context.Context
	*blockdev.Target
}

// WriteAt has the device begin to write at once, and not when Sync waits for it.
func (t *target) WriteAt(p []byte, off int64) (int, error) {
	n, err := t.Target.WriteAt(p, off)
	if err == nil {
		_ = unix.SyncFileRange(int(t.Fd()), off, int64(n), unix.SYNC_FILE_RANGE_WRITE) // a favour, too
	}
	return n, err
}

func (t *target) Zero(off, n int64) error { return t.Target.Zero(t.ctx, off, n) }

// Discard is a favour to flash disks, which some devices do not take.
func (t *target) Discard(off, n int64) error {
	_ = t.Target.Discard(t.ctx, off, n)
	return t.ctx.Err()
}

// Forget makes the next read ask the device, for pages that are clean.
func (t *target) Forget(off, n int64) error {
	return unix.Fadvise(int(t.Fd()), off, n, unix.FADV_DONTNEED)
}

// WriteText writes the plan for people.
func (p *Plan) WriteText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	d := p.Device
	fmt.Fprintf(w, "disk\t%s\n\t%s\n", d.Path, d.Facts())
	what := "nothing"
	if d.Contents == nil {
		what = "not known"
	} else if s := d.Contents.String(); s != "" {
		what = s
	}
	fmt.Fprintf(w, "holds\t%s\n", what)
	for _, u := range d.Users {
		fmt.Fprintf(w, "in use\t%s\n", u)
	}
	erased := "everything on it"
	if len(p.Keep) > 0 {
		erased = "everything on it but " + strings.Join(p.Keep, ", ")
	}
	fmt.Fprintf(w, "is erased\t%s\n", erased)
	fmt.Fprintf(w, "is written\t%s\n", progress.Bytes(p.Bytes))
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintln(w, "PARTITION\tLABEL\tTYPE\tSTART\tSIZE\t")
	for _, part := range p.Partitions {
		kept := ""
		if part.Kept {
			kept = "kept"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", part.Number, part.Label, part.Type, progress.Bytes(part.Start), progress.Bytes(part.Size), kept)
	}
	return w.Flush()
}

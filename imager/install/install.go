// Package install writes a composed disk to a device so that at no time the
// device looks as if it could be booted and cannot.
//
// What makes a disk bootable are a few sectors: the partition table in both its
// copies, with the boot code in sector 0. They are erased first and written
// last, after everything else has been written, flushed to the medium and read
// back:
//
//  1. erase the table and flush;
//  2. write what partitions hold, zeros where that is what they are to read as,
//     and flush;
//  3. read back and compare;
//  4. write the backup table, flush, then the primary table's entries, flush,
//     then its header and sector 0, and flush.
//
// A cut at any write leaves a disk without a table until the last step, and a
// whole system from then on. Firmware that looks for the backup table finds one
// only when all it points to is there.
//
// A disk whose data partitions are to be kept keeps its table. There the boot
// code and the beginnings of the partitions that firmware and boot loader read
// take the place of the table: erased first, written last.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
)

// Device is what is written to. Sync returns when all that was written before
// is on the medium.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64 // bytes

	// Zero makes n bytes at off read as zeros.
	Zero(off, n int64) error

	// Discard tells the device that n bytes at off are not needed. What they
	// read as then is not known.
	Discard(off, n int64) error

	// Forget drops what is cached of n bytes at off, so that reading them asks
	// the medium.
	Forget(off, n int64) error
}

// Verify says how much of what was written is read back.
type Verify string

// How much is read back.
const (
	Full  Verify = "full"  // all of it
	Quick Verify = "quick" // one piece of 4 MiB in sixteen, and all small ones
	None  Verify = "none"
)

// Options of Write.
type Options struct {
	// Keep are the partitions that stay as they are, by label. They must be on
	// the device where the new table has them; see Kept.
	Keep   []string
	Verify Verify // empty is Full

	// Progress, which may be nil, is told of every n bytes that were written, or
	// read back.
	Progress func(phase Phase, n int64)
}

// Phase is what is being done.
type Phase string

// The phases that take their time.
const (
	Writing   Phase = "write"
	Verifying Phase = "verify"
)

// State is what a failed Write leaves.
type State string

// The states of a device.
const (
	// Untouched devices are as they were.
	Untouched State = "nothing was written"
	// Damaged devices may have lost their partition table, and nothing else.
	Damaged State = "the disk's old partition table may be damaged"
	// Erased devices have no partition table.
	Erased State = "the disk has no partition table now and does not boot"
	// Disabled devices have their table and the data that was to be kept.
	Disabled State = "the disk keeps its partition table and the data that was to stay, but does not boot"
)

// Error is returned by Write once it has begun.
type Error struct {
	State State
	Err   error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%v; %s", e.Err, e.State)
	if e.State != Untouched {
		s += "; run the same command again to finish"
	}
	return s
}

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// ErrVerify is wrapped by the error for a device that does not give back what
// was written.
var ErrVerify = errors.New("the device does not give back what was written")

// ErrKeep is wrapped by the errors for partitions that cannot be kept.
var ErrKeep = errors.New("cannot keep the partition")

// Size returns the number of bytes that Write tells progress of, in both phases
// together.
func Size(disk *extent.Map, table *gpt.Table, o Options) int64 {
	w := newWriter(disk, table, o)
	n := w.plan()
	for _, p := range w.pieces {
		if w.reads(p) {
			n += p.length
		}
	}
	return n
}

// Write writes disk, with the partition table table, to dev. The table of disk
// itself is not written: that of the argument, which may be for a larger disk,
// is.
func Write(ctx context.Context, dev Device, disk *extent.Map, table *gpt.Table, o Options) error {
	if o.Progress == nil {
		o.Progress = func(Phase, int64) {}
	}
	if dev.Size() < table.Size {
		return &Error{Untouched, fmt.Errorf("the device has %d bytes, %d are needed", dev.Size(), table.Size)}
	}
	tables, err := table.Map()
	if err != nil {
		return &Error{Untouched, err}
	}
	w := newWriter(disk, table, o)
	w.dev = dev
	w.plan()
	state, err := w.disable()
	if err != nil {
		return &Error{state, err}
	}
	for _, step := range []func(context.Context) error{w.write, w.verify, w.writeHeads} {
		if err := step(ctx); err != nil {
			return &Error{state, err}
		}
	}
	if err := w.finish(tables); err != nil {
		if _, again := w.disable(); again != nil {
			err = fmt.Errorf("%w (and then: %w)", err, again)
		}
		return &Error{state, err}
	}
	return nil
}

// Kept returns the partitions of the table old that stay when table is written
// over it, which must have them at the same place.
func Kept(old, table *gpt.Table, labels []string) ([]gpt.Partition, error) {
	find := func(t *gpt.Table, label string) (gpt.Partition, bool) {
		i := slices.IndexFunc(t.Partitions, func(p gpt.Partition) bool { return p.Name == label && p.Size > 0 })
		if i < 0 {
			return gpt.Partition{}, false
		}
		return t.Partitions[i], true
	}
	var out []gpt.Partition
	for _, label := range labels {
		was, ok := find(old, label)
		if !ok {
			return nil, fmt.Errorf("%w %s: the disk has none; leave it out", ErrKeep, label)
		}
		is, ok := find(table, label)
		if !ok {
			return nil, fmt.Errorf("%w %s: the new layout has none; leave it out", ErrKeep, label)
		}
		if was.Start != is.Start || was.Size != is.Size {
			return nil, fmt.Errorf("%w %s: it is %d bytes at %d, the new layout has %d at %d", ErrKeep, label, was.Size, was.Start, is.Size, is.Start)
		}
		out = append(out, was)
	}
	return out, nil
}

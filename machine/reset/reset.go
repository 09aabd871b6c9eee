// Package reset erases what a node keeps on its disk: the partition EPHEMERAL,
// the partition STATE, or both.
//
// META remembers what was asked for, under the key meta.ResetRequest: the words
// "ephemeral", "state" and "all", with commas or white space between them. The
// value is removed when every partition asked for has been made anew and is on
// the medium; a reset that was cut short anywhere is done again at the next
// start. So nothing else has to be remembered, and it does not matter how far it
// came.
//
// A partition is erased in three steps. The device is told that it is not needed
// (discard), as far as the device can be told. The part that the new file system
// takes is zeroed. An empty ext4 is written there, as an image has it but with a
// UUID of its own. What EPHEMERAL has beyond its first 128 MiB is discarded only:
// the file system grows to there when it is mounted (package grow).
package reset

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Labels of the partitions in a GPT.
const (
	State     = "STATE"
	Ephemeral = "EPHEMERAL"
)

// What EPHEMERAL begins with, in bytes, as in an image.
const (
	ephemeralSize    = 128 << 20
	ephemeralJournal = 32 << 20
)

// step is how much is discarded or zeroed at a time, in bytes.
const step = 1 << 30

// labels are the partitions' labels, in the order in which they are erased.
func (p Parts) labels() []string {
	var l []string
	if p.State {
		l = append(l, State)
	}
	if p.Ephemeral {
		l = append(l, Ephemeral)
	}
	return l
}

// Disk is an installed disk whose partitions STATE and EPHEMERAL are not in use.
// What was discarded reads as anything, what was zeroed as zeros. Sync returns
// when all that was done before is on the medium.
type Disk interface {
	meta.Device
	Discard(off, n int64) error
	Zero(off, n int64) error
}

// Requested returns what META of a disk of size bytes asks for. It fails with
// ErrParts if that is not understood, and as meta.Locate and meta.Read do.
func Requested(disk io.ReaderAt, size int64) (Parts, error) {
	place, err := meta.Locate(disk, size)
	if err != nil {
		return Parts{}, err
	}
	contents, err := meta.Read(io.NewSectionReader(disk, place.Offset, place.Size), place.Size)
	if err != nil {
		return Parts{}, err
	}
	value, ok := contents.Values[meta.ResetRequest]
	if !ok {
		return Parts{}, nil
	}
	p, err := Parse(string(value))
	if err != nil {
		return p, fmt.Errorf("META %v: %w", meta.ResetRequest, err)
	}
	return p, nil
}

// Options are properties of the new file systems, and who watches.
type Options struct {
	UUID  func() [16]byte // a new one for each
	Time  int64           // in seconds since 1970
	Alive func()          // called now and then; may be nil
}

// Run makes META of a disk of size bytes ask for p, erases the partitions, makes
// new file systems in them, and removes the request from META. When it returns
// without an error everything is on the medium; otherwise there may be anything in
// the partitions, and META asks for them still. META that is damaged is left as it
// is; nothing remembers p then.
//
// The labels in kept are of partitions that could not be discarded: what they had
// beyond the new file system may still be on the medium, though no file has it.
func Run(disk Disk, size int64, p Parts, o Options) (kept []string, err error) {
	if o.Alive == nil {
		o.Alive = func() {}
	}
	r, err := open(disk, size)
	if err != nil {
		return nil, err
	}
	var parts []gpt.Partition
	for _, label := range p.labels() {
		part, err := r.find(label)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if err := r.request([]byte(p.String())); err != nil {
		return nil, fmt.Errorf("request to reset: %w; nothing was erased", err)
	}
	for _, part := range parts {
		discarded, err := r.erase(part, o)
		if err != nil {
			return nil, fmt.Errorf("erase %s: %w", part.Name, err)
		}
		if !discarded {
			kept = append(kept, part.Name)
		}
	}
	o.Alive()
	if err := disk.Sync(); err != nil {
		return nil, fmt.Errorf("erase %v: %w", p, err)
	}
	if err := r.request(nil); err != nil {
		return nil, fmt.Errorf("all is erased, but the request to reset is still there: %w", err)
	}
	return kept, nil
}

// resetter erases partitions of one disk.
type resetter struct {
	disk  Disk
	table *gpt.Table
	meta  meta.Device
	size  int64 // of META
}

func open(disk Disk, size int64) (*resetter, error) {
	table, err := gpt.Read(disk, size)
	if err != nil {
		return nil, err
	}
	place, err := meta.Locate(disk, size)
	if err != nil {
		return nil, err
	}
	return &resetter{disk, table, meta.Section(disk, place.Offset, place.Size), place.Size}, nil
}

// request changes the request in META; nil removes it.
func (r *resetter) request(value []byte) error {
	contents, err := meta.Read(r.meta, r.size)
	if errors.Is(err, meta.ErrDamaged) {
		return nil
	}
	if err != nil {
		return err
	}
	v := contents.Values
	old, ok := v[meta.ResetRequest]
	switch {
	case ok == (value != nil) && bytes.Equal(old, value):
		return nil
	case value == nil:
		delete(v, meta.ResetRequest)
	default:
		v[meta.ResetRequest] = value
	}
	return meta.Write(r.meta, v)
}

func (r *resetter) find(label string) (gpt.Partition, error) {
	var found []gpt.Partition
	for _, p := range r.table.Partitions {
		if p.Size > 0 && p.Name == label {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return gpt.Partition{}, fmt.Errorf("%d partitions have the label %s, want one; nothing is erased", len(found), label)
	}
	return found[0], nil
}

// erase reports whether the device could be told to forget the partition.
func (r *resetter) erase(p gpt.Partition, o Options) (discarded bool, err error) {
	fs, err := fileSystem(p, o)
	if err != nil {
		return false, err
	}
	// That a device cannot, or will not, is its business: it is only advice.
	discarded = inSteps(p.Start, p.Size, o.Alive, r.disk.Discard) == nil
	if err := inSteps(p.Start, fs.Size(), o.Alive, r.disk.Zero); err != nil {
		return false, err
	}
	for _, e := range fs.Extents() {
		data := make([]byte, e.Length) // tables of some blocks
		if n, err := e.Source.ReadAt(data, e.At); n < len(data) {
			return false, err
		}
		if _, err := r.disk.WriteAt(data, p.Start+e.Offset); err != nil {
			return false, err
		}
	}
	return discarded, nil
}

// fileSystem is the empty file system of a partition.
func fileSystem(p gpt.Partition, o Options) (*extent.Map, error) {
	options := ext4.Options{Size: p.Size, Label: p.Name, UUID: o.UUID(), Time: o.Time}
	if p.Name == Ephemeral && p.Size >= ephemeralSize {
		options.Size, options.Journal = ephemeralSize, ephemeralJournal
	}
	return ext4.Build(tree.New(), options)
}

func inSteps(off, n int64, alive func(), do func(off, n int64) error) error {
	for n > 0 {
		alive()
		m := min(n, step)
		if err := do(off, m); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

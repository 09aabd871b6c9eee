// Package powercut is a disk in memory that remembers every write and flush, to
// test what is left of a disk when the power fails in between.
//
// It models a device as the ATA and NVMe specifications let one behave: a sector
// is written whole or not at all, writes reach the medium in any order, and a
// flush returns when all that was written before is there.
package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
)

// Sector is the size in bytes of what is written whole or not at all.
const Sector = 512

// Disk is a disk in memory. Its methods may be called by several goroutines.
type Disk struct {
	// Fail, if it is not nil, is asked before every write and flush, which are
	// counted from 0; what it returns is the operation's error.
	Fail func(n int) error

	mu      sync.Mutex
	start   []byte // as it was when recording began
	content []byte
	log     []operation
}

// operation is a write, or a flush if there is no data.
type operation struct {
	offset int64
	data   []byte
}

// New returns a disk with the given content, which it keeps, and nothing
// recorded.
func New(content []byte) *Disk {
	return &Disk{start: slices.Clone(content), content: content}
}

// Size returns the size in bytes.
func (d *Disk) Size() int64 { return int64(len(d.content)) }

// Bytes returns a copy of the content.
func (d *Disk) Bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.content)
}

// Operations returns how many writes and flushes there were.
func (d *Disk) Operations() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off >= int64(len(d.content)) {
		return 0, io.EOF
	}
	n := copy(p, d.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ErrBounds is returned for a write beyond the end.
var ErrBounds = errors.New("write beyond the end of the disk")

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(d.content)) {
		return 0, fmt.Errorf("%w: %d bytes at %d", ErrBounds, len(p), off)
	}
	if err := d.fail(); err != nil {
		return 0, err
	}
	d.log = append(d.log, operation{off, slices.Clone(p)})
	return copy(d.content[off:], p), nil
}

// Zero writes zeros.
func (d *Disk) Zero(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

// Discard writes what nobody would take for what was there.
func (d *Disk) Discard(off, n int64) error {
	_, err := d.WriteAt(bytes.Repeat([]byte{0xDC}, int(n)), off)
	return err
}

// Sync is a flush.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fail(); err != nil {
		return err
	}
	d.log = append(d.log, operation{})
	return nil
}

// Forget does nothing: there is no cache.
func (d *Disk) Forget(int64, int64) error { return nil }

func (d *Disk) fail() error {
	if d.Fail == nil {
		return nil
	}
	return d.Fail(len(d.log))
}

// Cut is a state that a power failure may leave.
type Cut struct {
	// After is how many operations came before the failure.
	After int
	// Whole says that these and no others reached the medium; otherwise, of what
	// was not flushed, some sectors did.
	Whole   bool
	Content []byte // valid until the next one
}

func (c Cut) String() string {
	if c.Whole {
		return fmt.Sprintf("cut after operation %d", c.After)
	}
	return fmt.Sprintf("cut after operation %d, some of what was not flushed", c.After)
}

// Cuts calls check with the state after every operation, and for each of these
// with torn others, in which of all sectors written since the last flush a part,
// chosen by seed, is on the medium. It returns how many states there were, and
// the first error of check.
func (d *Disk) Cuts(seed uint64, torn int, check func(Cut) error) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	random := rand.New(rand.NewPCG(seed, 0))
	flushed, all := slices.Clone(d.start), slices.Clone(d.start)
	states, since := 0, 0 // since is the first operation after the last flush
	try := func(c Cut) error {
		states++
		if err := check(c); err != nil {
			return fmt.Errorf("%v: %w", c, err)
		}
		return nil
	}
	if err := try(Cut{0, true, all}); err != nil {
		return states, err
	}
	for i, op := range d.log {
		if op.data == nil {
			copyWrites(flushed, d.log[since:i])
			since = i + 1
			continue
		}
		copy(all[op.offset:], op.data)
		if err := try(Cut{i + 1, true, all}); err != nil {
			return states, err
		}
		for range torn {
			image := slices.Clone(flushed)
			for _, w := range d.log[since : i+1] {
				tear(random, image, w)
			}
			if err := try(Cut{i + 1, false, image}); err != nil {
				return states, err
			}
		}
	}
	return states, nil
}

// At returns the content after so many operations, of which those since the last
// flush arrived in part, chosen by seed.
func (d *Disk) At(after int, seed uint64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	flushed := 0
	for i, op := range d.log[:after] {
		if op.data == nil {
			flushed = i + 1
		}
	}
	image := slices.Clone(d.start)
	copyWrites(image, d.log[:flushed])
	random := rand.New(rand.NewPCG(seed, 0))
	for _, op := range d.log[flushed:after] {
		tear(random, image, op)
	}
	return image
}

func copyWrites(image []byte, ops []operation) {
	for _, op := range ops {
		copy(image[op.offset:], op.data)
	}
}

// tear writes some sectors of op: none, all or any.
func tear(random *rand.Rand, image []byte, op operation) {
	chance := []float64{0, 0.5, 1}[random.IntN(3)]
	for at := 0; at < len(op.data); {
		n := min(Sector-int(op.offset+int64(at))%Sector, len(op.data)-at)
		if random.Float64() < chance {
			copy(image[op.offset+int64(at):], op.data[at:at+n])
		}
		at += n
	}
}

package meta

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Contents are what Read finds.
type Contents struct {
	Values Values // never nil

	// Degraded says what is wrong with the copy that Values do not come from:
	// it is damaged, or a write was cut short. Nil if both copies are the same.
	// Writing Values repairs it.
	Degraded error
}

// Read reads META of size bytes. Of two copies that are whole and differ it takes
// the first, like Talos. It fails with ErrDamaged, or what reading failed with, if
// neither copy is whole; but META whose one copy is all zeros, while the other is
// damaged, is one whose first write was cut short, and empty.
func Read(r io.ReaderAt, size int64) (*Contents, error) {
	first, second, err := read(r, size)
	if err != nil {
		return nil, err
	}
	values, other := first.values, second
	if first.err != nil {
		values, other = second.values, first
	}
	c := &Contents{Values: values}
	switch {
	case first.err == nil && second.err == nil:
		if !bytes.Equal(first.bytes, second.bytes) {
			c.Degraded = errors.New("the second copy of META differs from the first: a write was cut short before the first was written")
		}
	case first.err == nil || second.err == nil:
		c.Degraded = other.fault()
	case first.blank() && second.blank():
		c.Values = Values{}
	default: // one is blank
		if first.blank() {
			other = second
		}
		c.Values, c.Degraded = Values{}, other.fault()
	}
	return c, nil
}

// half is one copy as it was found.
type half struct {
	name   string
	bytes  []byte
	values Values
	err    error // why the copy has no values
	lost   bool  // err is from reading
}

func (h *half) blank() bool  { return h.err == errBlank }
func (h *half) fault() error { return fmt.Errorf("the %s copy of META is unusable: %w", h.name, h.err) }

// read reads both copies. It fails if there is nothing that can be told from them.
func read(r io.ReaderAt, size int64) (first, second *half, err error) {
	if size < copies*CopySize {
		return nil, nil, fmt.Errorf("%w: it has %d bytes, want at least %d", ErrDamaged, size, copies*CopySize)
	}
	first, second = readCopy(r, "first", 0), readCopy(r, "second", CopySize)
	if first.err == nil || second.err == nil || (first.blank() || second.blank()) && !first.lost && !second.lost {
		return first, second, nil
	}
	return nil, nil, fmt.Errorf("%w: %w; %w", ErrDamaged, first.fault(), second.fault())
}

func readCopy(r io.ReaderAt, name string, off int64) *half {
	h := &half{name: name, bytes: make([]byte, CopySize)}
	if n, err := r.ReadAt(h.bytes, off); n < len(h.bytes) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		h.err, h.lost = err, true
		return h
	}
	h.values, h.err = decode(h.bytes)
	return h
}

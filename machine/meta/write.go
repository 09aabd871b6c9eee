package meta

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Device is where META is: a partition, or a Section of a disk. Sync returns when
// all that was written before is on the medium. If it drops what is cached, too,
// Write sees what the medium has.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrVerify is wrapped by the error for a device that does not give back what was
// written.
var ErrVerify = errors.New("the device does not give back what was written")

// Write replaces all values of META by v. The copy that Read takes is written
// last, when the other has been written, flushed and read back. Wherever a power
// failure cuts this, even if the device had written the sectors since the last
// flush in any order, Read finds the values of before or v.
//
// Everything is flushed before the first write: what Read takes to be on the
// medium may be in a cache. META of which Read says ErrDamaged is overwritten.
//
// There must be only one writer at a time.
func Write(dev Device, v Values) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	if err := dev.Sync(); err != nil {
		return fmt.Errorf("flush META before it is written: %w; nothing was written", err)
	}
	order, left := [copies]int64{CopySize, 0}, "it had no values that could be read"
	if first, second, err := read(dev, copies*CopySize); err == nil {
		// What Read makes nothing of is written first: a damaged copy, then
		// one of zeros, which says that the other was never whole.
		if first.err != nil && (second.err == nil || second.blank() && !first.blank()) {
			order = [copies]int64{0, CopySize}
		}
		left = "the values of before are still there"
	}
	for _, off := range order {
		if err := writeCopy(dev, b, off); err != nil {
			return fmt.Errorf("write META: %w; %s", err, left)
		}
		left = "the new values are there, in one copy only"
	}
	return nil
}

func writeCopy(dev Device, b []byte, off int64) error {
	if _, err := dev.WriteAt(b, off); err != nil {
		return err
	}
	if err := dev.Sync(); err != nil {
		return err
	}
	got := make([]byte, len(b))
	if n, err := dev.ReadAt(got, off); n < len(got) {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(got, b) {
		return fmt.Errorf("%w: %d bytes at %d", ErrVerify, len(b), off)
	}
	return nil
}

// Section returns the n bytes of dev from off on as a Device, as Locate tells them.
func Section(dev Device, off, n int64) Device {
	return &section{dev, io.NewSectionReader(dev, off, n), off, n}
}

type section struct {
	dev Device
	*io.SectionReader
	off, size int64
}

func (s *section) Sync() error { return s.dev.Sync() }

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size-int64(len(p)) {
		return 0, fmt.Errorf("%d bytes at %d of a partition of %d: %w", len(p), off, s.size, io.ErrShortWrite)
	}
	return s.dev.WriteAt(p, s.off+off)
}

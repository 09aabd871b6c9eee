// Package ova writes and reads OVA files: a virtual machine for VMware in one
// file, as described in DMTF DSP0243, the Open Virtualization Format
// Specification 1.1, and as ESXi takes it.
//
// An OVA file is a tar archive (ustar) of
//
//	NAME.ovf          the descriptor, XML: the machine, its hardware and disk
//	NAME.mf           the manifest: the SHA-256 digests of the other two
//	NAME-disk1.vmdk   the disk, a streamOptimized VMDK
//
// in this order, so that a hypervisor can take it from a stream. But what comes
// first, the size of the disk, in the headers of the archive and in the
// descriptor, and its digest are known last. Write goes back for them in a file;
// Stream, which cannot go back, compresses the disk twice. Nothing is put aside,
// in memory or in a temporary file, and both give the same bytes.
package ova

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vmdk"
)

var (
	// ErrInvalid is wrapped by errors about machines that cannot be described.
	ErrInvalid = errors.New("cannot be an OVA file")

	// ErrCorrupt is wrapped by errors about files that contradict themselves or
	// have been cut off.
	ErrCorrupt = errors.New("damaged OVA file")

	// ErrUnsupported is wrapped by errors about files that need something this
	// package does not have.
	ErrUnsupported = errors.New("unsupported OVA file")
)

// Package is what an OVA file has besides the content of the disk. The same disk
// and package are the same bytes.
type Package struct {
	Machine Machine

	// Disk are the identifiers of the disk. Name and Adapter are not looked at:
	// they follow from the machine.
	Disk vmdk.Options

	// ModTime is the time of the files in the archive, in whole seconds.
	ModTime time.Time
}

// Target is what Write writes to, an *os.File for example.
type Target interface {
	io.WriterAt
	// Truncate changes the size. Bytes that are added are zeros.
	Truncate(size int64) error
}

// Write writes an OVA file to dst, whose content it replaces. Memory, processors
// and progress are those of vmdk.Write.
func Write(ctx context.Context, dst Target, disk *extent.Map, p Package, progress func(n int64)) error {
	l, err := newLayout(p, disk.Size())
	if err != nil {
		return err
	}
	if err := dst.Truncate(0); err != nil {
		return err
	}
	sum, err := l.disk(ctx, io.NewOffsetWriter(dst, l.start), disk, progress)
	if err != nil {
		return err
	}
	head, err := l.head(sum)
	if err != nil {
		return err
	}
	if _, err := dst.WriteAt(head, 0); err != nil {
		return err
	}
	return dst.Truncate(l.start + int64(sum.size) + tail(sum.size))
}

// Stream writes an OVA file to w, from start to end. It reads and compresses the
// disk twice. progress counts every byte once, half of them at the first time.
func Stream(ctx context.Context, w io.Writer, disk *extent.Map, p Package, progress func(n int64)) error {
	l, err := newLayout(p, disk.Size())
	if err != nil {
		return err
	}
	half := func(int64) {}
	if progress != nil {
		var done int64
		half = func(n int64) {
			progress((done+n)/2 - done/2)
			done += n
		}
	}
	sum, err := l.disk(ctx, io.Discard, disk, half)
	if err != nil {
		return err
	}
	head, err := l.head(sum)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	again, err := l.disk(ctx, w, disk, half)
	if err != nil {
		return err
	}
	if again != sum {
		return fmt.Errorf("%w: the disk changed between two readings", ErrInvalid)
	}
	_, err = w.Write(make([]byte, tail(sum.size)))
	return err
}

// summary is what the start of the archive says of the disk's file.
type summary struct {
	size   uint64 // bytes
	digest [sha256.Size]byte
}

// disk writes the disk's file.
func (l *layout) disk(ctx context.Context, w io.Writer, disk *extent.Map, progress func(int64)) (summary, error) {
	h := sha256.New()
	counted := &counter{w: io.MultiWriter(w, h)}
	if err := vmdk.Write(ctx, counted, disk, l.options, progress); err != nil {
		return summary{}, err
	}
	return summary{counted.n, [sha256.Size]byte(h.Sum(nil))}, nil
}

type counter struct {
	w io.Writer
	n uint64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	return n, err
}

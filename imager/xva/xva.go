// Package xva writes a virtual machine with one disk as an XVA, the archive that
// "xe vm-import" of XenServer and XCP-ng takes, and finds the disk in one.
//
// An XVA is a tar archive. The first file, ova.xml, is an XML-RPC value: a version
// and the objects of the machine as the Xen API has them, see objects.go. After it
// comes the disk in chunks of 1 MiB, named after the reference of the VDI and their
// number: Ref:4/00000000. Each is followed by a file with its SHA-1 in hexadecimal,
// Ref:4/00000000.checksum. Chunks of zeros are left out, but for the first and the
// last.
//
// There is no specification. This follows what reads and writes the format: xapi
// (ocaml/xapi/stream_vdi.ml, importexport.ml, import.ml and the data model in
// ocaml/idl of xapi-project/xen-api). Since 2020 it writes .xxhash in place of
// .checksum, and reads both, as xva-img does; before that it reads .checksum only.
package xva

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	sector    = 512
	chunkSize = 1 << 20
	maxChunks = 100_000_000 // their numbers have 8 digits

	descriptorName = "ova.xml"
	checksumSuffix = ".checksum"
	xxhashSuffix   = ".xxhash"
)

// Errors, returned wrapped.
var (
	// ErrInvalid is returned for machines that cannot be in an XVA.
	ErrInvalid = errors.New("cannot put the machine into an XVA")

	// ErrCorrupt is returned for archives that break the rules of the format.
	ErrCorrupt = errors.New("not an XVA with a disk")
)

// Machine describes the virtual machine in an XVA.
type Machine struct {
	Name        string
	Description string

	// ID is what the UUIDs of the objects are derived from. Hosts replace them
	// unless they restore a backup.
	ID [16]byte

	CPUs   int
	Memory int64 // bytes
	UEFI   bool  // the firmware; otherwise BIOS. Either way it is an HVM guest

	Time time.Time // of the files in the archive
}

func (m *Machine) check(size int64) error {
	switch {
	case m.Name == "":
		return fmt.Errorf("%w: it has no name", ErrInvalid)
	case m.CPUs < 1:
		return fmt.Errorf("%w: it has %d CPUs, want 1 at least", ErrInvalid, m.CPUs)
	case m.Memory < 16<<20 || m.Memory%chunkSize != 0:
		return fmt.Errorf("%w: it has %d bytes of memory, want a multiple of 1 MiB, 16 MiB at least", ErrInvalid, m.Memory)
	case size <= 0 || size%sector != 0 || size > maxChunks*chunkSize:
		return fmt.Errorf("%w: its disk has %d bytes, want a multiple of %d up to %d", ErrInvalid, size, sector, int64(maxChunks)*chunkSize)
	}
	return nil
}

// Write writes the XVA of m with the disk to w, from start to end. Holes are not
// read. If progress is not nil it is called, from one goroutine, with the number
// of bytes of the disk, holes included, that are dealt with since the last call.
func Write(ctx context.Context, w io.Writer, disk *extent.Map, m Machine, progress func(n int64)) error {
	if err := m.check(disk.Size()); err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	a := &archive{tar: tar.NewWriter(w), time: m.Time.UTC().Truncate(time.Second)}
	if err := a.file(descriptorName, m.descriptor(disk.Size())); err != nil {
		return err
	}
	// One goroutine reads and digests while the other writes.
	chunks, free := make(chan *chunk), make(chan *chunk, 4)
	for range cap(free) {
		free <- &chunk{content: make([]byte, chunkSize)}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(chunks)
		return readChunks(ctx, disk, chunks, free)
	})
	group.Go(func() error {
		var done int64
		for c := range chunks {
			if err := a.chunk(c); err != nil {
				return err
			}
			end := c.number*chunkSize + int64(len(c.content))
			progress(end - done)
			done = end
			free <- c
		}
		return ctx.Err()
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return a.tar.Close()
}

// chunk is a piece of the disk, of chunkSize bytes unless it is the last.
type chunk struct {
	number  int64
	content []byte
	sum     [sha1.Size]byte
}

// readChunks sends the chunks that are in the archive.
func readChunks(ctx context.Context, disk *extent.Map, chunks chan<- *chunk, free <-chan *chunk) error {
	last := (disk.Size() - 1) / chunkSize
	var c *chunk
	for number := range allocated(disk, last) {
		if c == nil {
			select {
			case c = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := c.read(disk, number); err != nil {
			return err
		}
		if number != 0 && number != last && allZero(c.content) {
			continue
		}
		c.sum = sha1.Sum(c.content)
		select {
		case chunks <- c:
			c = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// allocated yields, in order, the numbers of the first chunk, of those that
// extents touch, and of the last.
func allocated(disk *extent.Map, last int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		next := int64(0)
		run := func(first, end int64) bool {
			for next = max(next, first); next < end; next++ {
				if !yield(next) {
					return false
				}
			}
			return true
		}
		if !run(0, 1) {
			return
		}
		for _, x := range disk.Extents() {
			if !run(x.Offset/chunkSize, (x.End()-1)/chunkSize+1) {
				return
			}
		}
		run(last, last+1)
	}
}

func (c *chunk) read(disk *extent.Map, number int64) error {
	c.number = number
	c.content = c.content[:min(chunkSize, disk.Size()-number*chunkSize)]
	n, err := disk.ReadAt(c.content, number*chunkSize)
	if n == len(c.content) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// archive is the tar archive that is being written.
type archive struct {
	tar  *tar.Writer
	time time.Time
}

func (a *archive) file(name string, content []byte) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: a.time, Format: tar.FormatUSTAR}
	if err := a.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

func (a *archive) chunk(c *chunk) error {
	name := fmt.Sprintf("%s/%08d", refVDI, c.number)
	if err := a.file(name, c.content); err != nil {
		return err
	}
	return a.file(name+checksumSuffix, []byte(hex.EncodeToString(c.sum[:])))
}

// allZero reports whether all bytes of p, of which there is at least one, are 0.
func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

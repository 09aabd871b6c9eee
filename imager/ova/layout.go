package ova

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vmdk"
)

const (
	block = 512 // of a tar archive

	// maxDisk is more than any size of the disk's file.
	maxDisk = 1 << 42

	// maxUSTAR is the largest size that ustar's field of 11 octal digits holds.
	// Above that the header is GNU's, which differs in that field and in the
	// version: hypervisors read both.
	maxUSTAR = 1<<33 - 1
)

// layout is an archive of which the disk's file is not known yet.
type layout struct {
	machine  Machine
	options  vmdk.Options
	modTime  time.Time
	capacity int64 // of the disk
	ovfSize  int64 // blocks that the descriptor fills whatever the disk's file is like
	start    int64 // of the disk's file
}

func newLayout(p Package, capacity int64) (*layout, error) {
	m, err := p.Machine.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &layout{machine: m, options: p.Disk, modTime: time.Unix(0, 0), capacity: capacity}
	if !p.ModTime.IsZero() {
		l.modTime = time.Unix(p.ModTime.Unix(), 0)
	}
	l.options.Name, l.options.Adapter = m.diskName(), m.Controller
	longest, err := m.descriptor(capacity, maxDisk)
	if err != nil {
		return nil, err
	}
	l.ovfSize = extent.Align(int64(len(longest)), block) / block
	head, err := l.head(summary{})
	l.start = int64(len(head))
	return l, err
}

// head returns everything before the content of the disk's file. It has the same
// length whatever the file is like.
func (l *layout) head(disk summary) ([]byte, error) {
	descriptor, err := l.machine.descriptor(l.capacity, disk.size)
	if err != nil {
		return nil, err
	}
	// White space is allowed behind the end. It takes some only if the missing
	// digits would make it a block less.
	for int64(len(descriptor)) <= (l.ovfSize-1)*block {
		descriptor = append(descriptor, '\n')
	}
	manifest := fmt.Appendf(nil, "SHA256(%s)= %x\nSHA256(%s)= %x\n",
		l.machine.Name+".ovf", sha256.Sum256(descriptor), l.machine.diskName(), disk.digest)

	var b bytes.Buffer
	for _, f := range []struct {
		name    string
		content []byte
		size    int64
	}{
		{l.machine.Name + ".ovf", descriptor, int64(len(descriptor))},
		{l.machine.Name + ".mf", manifest, int64(len(manifest))},
		{l.machine.diskName(), nil, int64(disk.size)},
	} {
		if err := l.file(&b, f.name, f.size); err != nil {
			return nil, err
		}
		b.Write(f.content)
		b.Write(make([]byte, extent.Align(int64(len(f.content)), block)-int64(len(f.content))))
	}
	return b.Bytes(), nil
}

// file writes the header of a file of the archive.
func (l *layout) file(b *bytes.Buffer, name string, size int64) error {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: l.modTime, Format: tar.FormatUSTAR}
	if size > maxUSTAR {
		h.Format = tar.FormatGNU
	}
	// A writer that is not closed has written nothing but the header.
	if err := tar.NewWriter(b).WriteHeader(&h); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return nil
}

// tail is the number of zeros behind a disk's file of so many bytes: to the end
// of its block, and the end of the archive.
func tail(size uint64) int64 {
	return extent.Align(int64(size), block) - int64(size) + 2*block
}

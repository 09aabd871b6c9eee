// Package container opens images of disks in whatever format they are, told by
// their content: as a map of the disk inside, of which nothing has been unpacked.
package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gcetar"
	"github.com/kilnhq/kiln/imager/ova"
	"github.com/kilnhq/kiln/imager/qcow2"
	"github.com/kilnhq/kiln/imager/vhd"
	"github.com/kilnhq/kiln/imager/vhdx"
	"github.com/kilnhq/kiln/imager/vmdk"
	"github.com/kilnhq/kiln/imager/xva"
)

// Disk is an open image.
type Disk struct {
	*extent.Map
	Format string // as profiles name it

	file *os.File
}

// Close closes the image; the map cannot be read any more.
func (d *Disk) Close() error { return d.file.Close() }

// kind is a format, and how it is known: by the bytes at an offset, from the end
// of the file if it is negative.
type kind struct {
	format string
	offset int64
	magic  string
	open   func(src extent.Source) (*extent.Map, error)
}

func kinds() []kind {
	return []kind{
		{"qcow2", 0, "QFI\xfb", qcow2.Open},
		{"vhdx", 0, "vhdxfile", vhdx.Open},
		{"vmdk", 0, "KDMV", vmdk.Open},
		{"raw.zst", 0, "\x28\xb5\x2f\xfd", openCompressed},
		{"raw.gz", 0, "\x1f\x8b", openCompressed},
		{"raw.xz", 0, "\xfd7zXZ\x00", openCompressed},
		{"ova or xva", 257, "ustar", openAppliance},
		{"vhd-dynamic", 0, "conectix", vhd.Open},
		{"vhd", -512, "conectix", vhd.Open},
	}
}

// openCompressed opens a compressed disk, or one in Compute Engine's archive.
func openCompressed(src extent.Source) (*extent.Map, error) {
	m, err := compress.Open(src)
	if err == nil && isTar(m) {
		return gcetar.Open(src)
	}
	if errors.Is(err, compress.ErrSequential) {
		return nil, fmt.Errorf("%w; unpack it first", err)
	}
	return m, err
}

func isTar(m *extent.Map) bool {
	var magic [5]byte
	_, err := m.ReadAt(magic[:], 257)
	return err == nil && string(magic[:]) == "ustar"
}

// openAppliance opens a tar archive with a machine: for XenServer, whose first
// file is ova.xml, or for VMware.
func openAppliance(src extent.Source) (*extent.Map, error) {
	name := make([]byte, len("ova.xml\x00"))
	if _, err := src.ReadAt(name, 0); err == nil && string(name) == "ova.xml\x00" {
		return xva.Open(src)
	}
	a, err := ova.Open(src)
	if err != nil {
		return nil, err
	}
	return a.Disk, nil
}

// Open opens the image in a file or on a block device.
func Open(name string) (*Disk, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	d, err := open(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

func open(f *os.File) (*Disk, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if m := fi.Mode(); !m.IsRegular() && m.Type()&fs.ModeDevice == 0 {
		return nil, fmt.Errorf("%w: %s, want a file or a block device", errors.ErrUnsupported, m.Type())
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	// The formats keep the holes of what they are in.
	file, err := raw(f, io.NewSectionReader(f, 0, size), fi.Mode().IsRegular())
	if err != nil {
		return nil, err
	}
	for _, k := range kinds() {
		off := k.offset
		if off < 0 {
			off += size
		}
		magic := make([]byte, len(k.magic))
		if off < 0 {
			continue
		}
		if _, err := file.ReadAt(magic, off); err != nil && err != io.EOF || string(magic) != k.magic {
			continue
		}
		m, err := k.open(file)
		if err != nil {
			return nil, err
		}
		return &Disk{m, k.format, f}, nil
	}
	return &Disk{file, "raw", f}, nil
}

// raw maps a raw image: holes of a sparse file are holes of the disk.
func raw(f *os.File, src *io.SectionReader, sparse bool) (*extent.Map, error) {
	m := extent.New(src.Size())
	for off := int64(0); off < src.Size(); {
		start, end := off, src.Size()
		if sparse {
			var err error
			start, err = f.Seek(off, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break // a hole up to the end
			}
			if err == nil {
				end, err = f.Seek(start, unix.SEEK_HOLE)
			}
			if err != nil { // the file system does not tell
				start, end, sparse = off, src.Size(), false
			}
		}
		part, err := extent.Section(src, start, end-start)
		if err == nil {
			err = m.Put(start, part)
		}
		if err != nil {
			return nil, err
		}
		off = end
	}
	return m, nil
}

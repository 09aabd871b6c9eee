// Package container opens images of disks in whatever format they are, told by
// their content: as a map of the disk inside, of which nothing has been unpacked.
package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

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

// kinds lists them in the order in which they are tried: an XVA and Compute Engine's
// archive are tar archives, told from an OVA by the name of their first file.
func kinds() []kind {
	return []kind{
		{"qcow2", 0, "QFI\xfb", qcow2.Open},
		{"vhdx", 0, "vhdxfile", vhdx.Open},
		{"vmdk", 0, "KDMV", vmdk.Open},
		{"raw.zst", 0, "\x28\xb5\x2f\xfd", openCompressed},
		{"raw.gz", 0, "\x1f\x8b", openCompressed},
		{"raw.xz", 0, "\xfd7zXZ\x00", openCompressed},
		{"xva", 0, "ova.xml\x00", xva.Open},
		{"gce", 0, gcetar.Name + "\x00", gcetar.Open},
		{"ova", 257, "ustar", openOVA},
		{"vhd-dynamic", 0, "conectix", vhd.Open},
		{"vhd", -512, "conectix", vhd.Open},
	}
}

func openCompressed(src extent.Source) (*extent.Map, error) {
	m, err := compress.Open(src)
	if errors.Is(err, compress.ErrSequential) {
		return nil, fmt.Errorf("%w; unpack it first", err)
	}
	return m, err
}

func openOVA(src extent.Source) (*extent.Map, error) {
	a, err := ova.Open(src)
	if err != nil {
		return nil, err
	}
	return a.Disk, nil
}

func isTar(m *extent.Map) bool {
	var magic [5]byte
	_, err := m.ReadAt(magic[:], 257)
	return err == nil && string(magic[:]) == "ustar"
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
		if err == nil && strings.HasPrefix(k.format, "raw.") && isTar(m) {
			k.format = "gce"
			m, err = gcetar.Open(m)
		}
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

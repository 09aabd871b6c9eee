// Package volume finds the small read-only volumes on which platforms put a
// machine's configuration, by their labels, and reads files of them: ISO 9660, UDF
// and FAT, read without mounting.
package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/iso"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/blockdev/signature"
	"github.com/kilnhq/kiln/machine/platform/udf"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxRead bounds what is read of a volume, in bytes, so that a hostile one costs
// no more than that: a FAT of 64 GiB has 64 MiB of tables.
const maxRead = 128 << 20

// Errors wrapped by Find's.
var (
	ErrNotFound  = errors.New("no volume")
	ErrAmbiguous = errors.New("more than one volume")
)

// A Device is a block device that may hold a volume.
type Device struct {
	Path   string
	Parent string // path of the disk that a partition is part of
	CD     bool
	Size   int64 // bytes
	Open   func() (File, error)
}

// A File is an open device.
type File interface {
	io.ReaderAt
	io.Closer
}

// Devices returns the disks, partitions and CDs of a machine that have a medium.
func Devices(h blockdev.Host) ([]Device, error) {
	list, err := h.List()
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, d := range list {
		paths[d.Name] = d.Path
	}
	var devices []Device
	for _, d := range list {
		switch d.Kind {
		case blockdev.Disk, blockdev.Partition, blockdev.CD, blockdev.Floppy, blockdev.Loop:
			if d.Size > 0 {
				devices = append(devices, Device{d.Path, paths[d.Parent], d.Kind == blockdev.CD, d.Size,
					func() (File, error) { return os.Open(d.Path) }})
			}
		}
	}
	return devices, nil
}

// A Volume is a file system with a label. It is to be closed.
type Volume struct {
	Device string // path
	Label  string
	Type   string // "iso9660", "udf" or "vfat"
	file   File
	tree   *tree.Tree
	plain  bool // names are those of ISO 9660: short, without the characters it lacks
}

// Find opens the volume with one of the labels, in capital or small letters.
// Devices that cannot be read are left out; if the volume is not found the error
// says so. Two volumes with one label are refused, for there is no telling which
// of them is meant.
func Find(devices []Device, labels ...string) (*Volume, error) {
	var found []Device
	var types, names []string
	var failed []error
	for _, d := range devices {
		s, err := detect(d, labels)
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", d.Path, err))
		case s.Type == "":
		case slices.Contains(names, d.Parent): // an image on a stick: disk and first partition begin alike
		default:
			found, types, names = append(found, d), append(types, s.Type), append(names, d.Path)
		}
	}
	label := strings.Join(labels, " or ")
	switch len(found) {
	case 0:
		err := fmt.Errorf("%w is labelled %s", ErrNotFound, label)
		if len(failed) > 0 {
			err = fmt.Errorf("%w; not all devices can be read: %w", err, errors.Join(failed...))
		}
		return nil, err
	case 1:
		return open(found[0], types[0])
	}
	return nil, fmt.Errorf("%w is labelled %s: %s; detach all but one", ErrAmbiguous, label, strings.Join(names, ", "))
}

// detect returns the signature of a volume with one of the labels, or none.
func detect(d Device, labels []string) (signature.Signature, error) {
	f, err := d.Open()
	if err != nil {
		return signature.Signature{}, err
	}
	defer f.Close()
	all, err := signature.Detect(f, d.Size)
	if err != nil {
		return signature.Signature{}, err
	}
	for _, s := range all {
		named := slices.ContainsFunc(labels, func(l string) bool { return strings.EqualFold(l, s.Label) })
		if named && (s.Type == "iso9660" || s.Type == "vfat") {
			return s, nil
		}
	}
	return signature.Signature{}, nil
}

// FindFile opens the CD that has a file of that name in its root.
func FindFile(devices []Device, name string) (*Volume, error) {
	var failed []error
	for _, d := range devices {
		if !d.CD {
			continue
		}
		v, err := open(d, "udf")
		if errors.Is(err, udf.ErrFormat) {
			v, err = open(d, "iso9660")
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if _, ok := v.find(name); ok {
			return v, nil
		}
		v.Close()
	}
	err := fmt.Errorf("%w on a CD has %s", ErrNotFound, name)
	if len(failed) > 0 {
		err = fmt.Errorf("%w; not all can be read: %w", err, errors.Join(failed...))
	}
	return nil, err
}

func open(d Device, kind string) (*Volume, error) {
	f, err := d.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path, err)
	}
	v := &Volume{Device: d.Path, Type: kind, file: f}
	if err := v.read(&limited{f, d.Size, maxRead}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", d.Path, err)
	}
	return v, nil
}

// read reads the directories.
func (v *Volume) read(r *limited) error {
	switch v.Type {
	case "vfat":
		s, err := fat.Open(r, r.size)
		if err != nil {
			return err
		}
		v.tree, v.Label = s.Tree, s.Label
	case "udf":
		s, err := udf.Open(r)
		if err != nil {
			return err
		}
		v.tree, v.Label = s.Tree, s.Label
	default:
		s, err := iso.Open(r)
		if err != nil {
			return err
		}
		v.tree, v.Label, v.plain = s.Tree, s.VolumeID, !s.RockRidge
	}
	return nil
}

// limited fails when more than left bytes were read.
type limited struct {
	r    io.ReaderAt
	size int64
	left int64
}

func (l *limited) Size() int64 { return l.size }

func (l *limited) ReadAt(b []byte, off int64) (int, error) {
	if l.left -= int64(len(b)); l.left < 0 {
		return 0, fmt.Errorf("the volume has more than %d bytes of tables and directories", int64(maxRead))
	}
	return l.r.ReadAt(b, off)
}

// Close closes the device.
func (v *Volume) Close() error { return v.file.Close() }

// ReadFile returns the content of the file at a slash-separated path, of at most
// limit bytes. The error for a file that is not there is fs.ErrNotExist.
func (v *Volume) ReadFile(name string, limit int64) ([]byte, error) {
	bad := func(err error) error { return &fs.PathError{Op: "read", Path: v.Device + ":" + name, Err: err} }
	at, ok := v.find(name)
	if !ok {
		return nil, bad(fs.ErrNotExist)
	}
	ino := v.tree.Lookup(at)
	switch {
	case !ino.Mode.IsRegular():
		return nil, bad(errors.New("not a regular file"))
	case ino.Size() > limit:
		return nil, bad(fmt.Errorf("the file has %d bytes, want at most %d", ino.Size(), limit))
	case ino.Content == nil:
		return nil, nil
	}
	data := make([]byte, ino.Size())
	if _, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), data); err != nil {
		return nil, bad(err)
	}
	return data, nil
}

// find returns the path of a file whose name may be spelt as the file system
// lets it: FAT does not tell capital from small letters, and plain ISO 9660 knows
// no "-" and has, at level 1, names of 8 and 3 characters.
func (v *Volume) find(name string) (string, bool) {
	at := "."
	for want := range strings.SplitSeq(name, "/") {
		var match string
		for _, have := range v.tree.Children(at) {
			if have == want {
				match = have
				break
			}
			if match == "" && v.same(have, want) {
				match = have
			}
		}
		if match == "" {
			return "", false
		}
		at = path.Join(at, match)
		if r, err := v.tree.Resolve(at); err == nil && v.tree.Lookup(r) != nil {
			at = r
		}
	}
	return at, v.tree.Lookup(at) != nil
}

func (v *Volume) same(have, want string) bool {
	if !v.plain {
		return v.Type == "vfat" && strings.EqualFold(have, want)
	}
	have = strings.TrimSuffix(have, ".")
	want = strings.ReplaceAll(want, "-", "_")
	if strings.EqualFold(strings.ReplaceAll(have, "-", "_"), want) {
		return true
	}
	base, extension, _ := strings.Cut(want, ".")
	short := base[:min(len(base), 8)]
	if extension != "" {
		short += "." + extension[:min(len(extension), 3)]
	}
	return strings.EqualFold(have, short)
}

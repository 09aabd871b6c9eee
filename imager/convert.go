package imager

import (
	"context"
	"crypto/sha256"
	"io"
	"slices"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/profiles"
)

// FromDisk returns a disk that somebody composed before, to be written in other
// formats. Identifiers in these derive from the disk's first MiB, where its own
// are. Only the formats in DiskFormats can be written.
func FromDisk(disk *extent.Map, o profiles.Output, m profiles.Machine) (*Image, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(disk, 0, min(disk.Size(), mib))); err != nil {
		return nil, err
	}
	return &Image{
		Disk: disk, id: identity(h.Sum(nil)), converted: true,
		request: Request{Profile: &profiles.Profile{Name: "image", Arch: "amd64", Output: o, Machine: m}},
	}, nil
}

// DiskFormats lists the formats that hold a disk and nothing else.
func DiskFormats() []string {
	all := forms(profiles.Output{})
	return slices.DeleteFunc(Formats(), func(f string) bool { return !all[f].disk })
}

// Verify reads the parts of the base and compares them with their digests. The
// methods that write files do so themselves.
func (i *Image) Verify(ctx context.Context) error {
	if i.converted {
		return nil
	}
	if err := i.request.Base.Verify(ctx); err != nil || i.request.ImageCache == nil {
		return err
	}
	return i.request.ImageCache.Verify(ctx)
}

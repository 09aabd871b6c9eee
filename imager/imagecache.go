package imager

import (
	"fmt"
	"path"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// imageCacheTree has the layout of the image cache in directory dir, or nothing.
func imageCacheTree(r Request, dir string) (*tree.Tree, error) {
	files := map[string]tree.Content{}
	if r.ImageCache != nil {
		for name, content := range r.ImageCache.Files() {
			files[path.Join(dir, name)] = content
		}
	}
	return fileTree(files, r.Epoch)
}

// hasImageCache reports whether what is written in a format has room for the image
// cache: a disk, or files beside what boots.
func (i *Image) hasImageCache(format string) bool {
	return forms(i.request.Profile.Output)[format].disk || format == "iso" || format == "installer"
}

// warnImageCache says that what is written has no images.
func (i *Image) warnImageCache(format string) {
	if i.request.ImageCache != nil && !i.hasImageCache(format) {
		i.request.Log.Warn("the image cache is not in format " + format + ": what boots from it has no disk to have it on; its nodes get their images from registries")
	}
}

// imageCachePartition has the layout of the image cache at its root. It is exactly
// as large as that, if the profile does not say otherwise, and has no size if there
// is neither. Nothing is ever written to it on the node, which is why it needs no
// journal.
func imageCachePartition(r Request, id identity) (partition, error) {
	p := partition{label: disk.ImageCache, kind: gpt.LinuxFilesystem, size: int64(r.Profile.Disk.Partitions.ImageCache)}
	if r.ImageCache == nil && p.size == 0 {
		return p, nil
	}
	t, err := imageCacheTree(r, ".")
	if err != nil {
		return p, err
	}
	options := ext4Options(r, id, p.label, 0)
	options.Journal = ext4.NoJournal
	least, err := ext4.MinSize(t, options)
	if err != nil {
		return p, fmt.Errorf("%s: %w", p.label, err)
	}
	if least = extent.Align(least, mib); p.size == 0 {
		p.size = least
	}
	if p.size < least {
		return p, refuse("disk.partitions.imageCache: %s is too small: the images need %d MiB; enlarge it or leave it out", profiles.Size(p.size), least/mib)
	}
	options.Size = p.size
	p.content = func(int64) (extent.Source, error) { return ext4.Build(t, options) }
	return p, nil
}

// Package ocidisk makes OCI images that are the same bytes for the same content:
// of layers that are file trees, and containerDisks, which KubeVirt boots virtual
// machines from.
//
// An image (OCI image specification) is a manifest that names, by digest, a
// configuration and layers. A layer is a tar archive, compressed or not. A
// containerDisk is an image of one file below /disk that QEMU can read: KubeVirt
// user guide, "Disks and Volumes", containerDisk. The user there is qemu, 107:107.
//
// The digest and size of a layer are needed before its first byte is written, so
// a layer is made twice: once to learn them, and again each time it is read. It is
// never kept, neither in memory nor in a file.
package ocidisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrInvalid is wrapped by errors about what cannot be in an image.
var ErrInvalid = errors.New("cannot be in an OCI image")

// qemu is the user and the group of QEMU in KubeVirt's containers.
const qemu = 107

// Config is what an image says about itself and what runs in it.
type Config struct {
	Architecture string // as Go names it; the OS is Linux
	Created      time.Time
	CreatedBy    string // of each layer, in the history
	Entrypoint   []string
	Cmd          []string
	Env          []string // as "NAME=value"
	WorkingDir   string
	Labels       map[string]string // of the configuration
	Annotations  map[string]string // of the manifest
}

// Image returns an image of layers, the lowest first, which may come from other
// images.
func Image(c Config, layers ...v1.Layer) (v1.Image, error) {
	if c.Architecture == "" {
		return nil, fmt.Errorf("%w: an image without an architecture", ErrInvalid)
	}
	created := v1.Time{Time: c.Created.UTC().Truncate(time.Second)}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", c.Architecture, created
	config.Config = v1.Config{
		Entrypoint: slices.Clone(c.Entrypoint), Cmd: slices.Clone(c.Cmd), Env: slices.Clone(c.Env),
		WorkingDir: c.WorkingDir, Labels: maps.Clone(c.Labels),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	for _, l := range layers {
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: c.CreatedBy, Created: created}}); err != nil {
			return nil, err
		}
	}
	if len(c.Annotations) > 0 {
		img = mutate.Annotations(img, c.Annotations).(v1.Image)
	}
	return img, nil
}

// ContainerDisk returns the image of a disk for KubeVirt. name is that of the file
// below /disk, disk.img for a raw disk or disk.qcow2; what it is QEMU finds out. In
// an image that is not compressed the holes of a raw disk take space, and wherever
// it is unpacked.
func ContainerDisk(ctx context.Context, name string, disk extent.Source, c Config, compression Compression) (v1.Image, error) {
	const dir = "disk"
	if !tree.Valid(dir+"/"+name) || name == "" {
		return nil, fmt.Errorf("%w: a disk of the name %q", ErrInvalid, name)
	}
	t := tree.New()
	epoch := c.Created.Unix()
	for _, add := range []struct {
		name string
		ino  *tree.Inode
	}{
		{dir, &tree.Inode{Mode: fs.ModeDir | 0o755, UID: qemu, GID: qemu, ModTime: epoch}},
		{dir + "/" + name, &tree.Inode{Mode: 0o444, UID: qemu, GID: qemu, ModTime: epoch, Content: disk}},
	} {
		if err := t.Add(add.name, add.ino); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	l, err := Layer(ctx, t, compression)
	if err != nil {
		return nil, err
	}
	return Image(c, l)
}

// SaveLayout stores img as an OCI image layout at path, replacing one that is
// there.
func SaveLayout(path string, img v1.Image) error {
	platform, err := platformOf(img)
	if err != nil {
		return err
	}
	return ocilayout.Write(path, img, platform)
}

func platformOf(img v1.Image) (v1.Platform, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return v1.Platform{}, err
	}
	return v1.Platform{OS: config.OS, Architecture: config.Architecture}, nil
}

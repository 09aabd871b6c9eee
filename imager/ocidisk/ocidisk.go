// Package ocidisk makes containerDisks, which KubeVirt boots virtual machines
// from: OCI images of one file below /disk that QEMU can read. See the KubeVirt user
// guide, "Disks and Volumes", containerDisk. The user there is qemu, 107:107.
package ocidisk

import (
	"context"
	"fmt"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// qemu is the user and the group of QEMU in KubeVirt's containers.
const qemu = 107

// ContainerDisk returns the image of a disk for KubeVirt. name is that of the file
// below /disk, disk.img for a raw disk or disk.qcow2; what it is QEMU finds out. In
// an image that is not compressed the holes of a raw disk take space, and wherever
// it is unpacked. What cannot be in an image is [ociimage.ErrInvalid].
func ContainerDisk(ctx context.Context, name string, disk extent.Source, c ociimage.Config, compression ociimage.Compression) (v1.Image, error) {
	const dir = "disk"
	if !tree.Valid(dir+"/"+name) || name == "" {
		return nil, fmt.Errorf("%w: a disk of the name %q", ociimage.ErrInvalid, name)
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
			return nil, fmt.Errorf("%w: %w", ociimage.ErrInvalid, err)
		}
	}
	l, err := ociimage.Layer(ctx, t, compression)
	if err != nil {
		return nil, err
	}
	return ociimage.Image(c, l)
}

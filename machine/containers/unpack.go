//go:build linux

package containers

import (
	"context"
	"errors"
	"fmt"
	"os"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// unpackLease and unpackKey are of what is being unpacked.
const (
	unpackLease = "kiln-unpack"
	unpackKey   = "kiln-unpack"
)

// Unpack makes snapshots of the layers of an image that has none yet, as those of
// the image cache. The file lock is for one at a time to do so.
func (c *Client) Unpack(ctx context.Context, name, lock string) error {
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("%s: %w", lock, err)
	}
	r, err := c.images.Get(ctx, &imageapi.GetImageRequest{Name: name})
	if err != nil {
		return err
	}
	m, err := c.manifest(ctx, r.GetImage().GetTarget())
	if err != nil {
		return err
	}
	var config ocispec.Image
	if err := c.document(ctx, m.Config, &config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if n, want := len(m.Layers), len(config.RootFS.DiffIDs); n != want {
		return fmt.Errorf("%d layers, the configuration names %d", n, want)
	}
	ctx, done, err := c.lease(ctx, unpackLease)
	if err != nil {
		return err
	}
	defer done()
	chain := ""
	for i, l := range m.Layers {
		if chain, err = c.unpackLayer(ctx, chain, l, config.RootFS.DiffIDs[i]); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	if chain == "" {
		return nil
	}
	return c.labelBlob(ctx, m.Config.Digest, map[string]string{"containerd.io/gc.ref.snapshot." + snapshotter: chain})
}

// unpackLayer makes the snapshot of a layer over its parent, and returns its name.
func (c *Client) unpackLayer(ctx context.Context, parent string, l ocispec.Descriptor, diffID digest.Digest) (chain string, err error) {
	chain = chained(parent, diffID)
	if _, err := c.snapshots.Stat(ctx, &snapshotapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: chain}); err == nil || !errors.Is(err, ErrNotFound) {
		return chain, err
	}
	remove := func() error {
		_, err := c.snapshots.Remove(context.WithoutCancel(ctx), &snapshotapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: unpackKey})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	if err := remove(); err != nil { // what was given up before
		return "", err
	}
	p, err := c.snapshots.Prepare(ctx, &snapshotapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: unpackKey, Parent: parent})
	if err != nil {
		return "", err
	}
	applied, err := c.diffs.Apply(ctx, &diffapi.ApplyRequest{
		Diff: &types.Descriptor{MediaType: l.MediaType, Digest: l.Digest.String(), Size: l.Size}, Mounts: p.GetMounts(),
	})
	if err == nil && applied.GetApplied().GetDigest() != diffID.String() {
		err = fmt.Errorf("unpacked it is %s, want %s", applied.GetApplied().GetDigest(), diffID)
	}
	if err == nil {
		_, err = c.snapshots.Commit(ctx, &snapshotapi.CommitSnapshotRequest{Snapshotter: snapshotter, Name: chain, Key: unpackKey})
	}
	if err != nil {
		return "", errors.Join(err, remove())
	}
	return chain, nil
}

// chained is the name of the snapshot of a layer over a parent: the chain ID of the
// OCI image specification, config.md.
func chained(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.String()
	}
	return digest.FromString(parent + " " + diffID.String()).String()
}

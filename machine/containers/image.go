//go:build linux

package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imageapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds manifests, indexes and configurations of images, in bytes.
const maxDocument = 4 << 20

// Media types of Docker, which mean the same as OCI's.
const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// A manifest is that of an image for this machine's architecture.
type manifest struct {
	ocispec.Manifest
	length int64 // of the manifest itself, in bytes
}

func (m *manifest) size() uint64 {
	n := m.length + m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return uint64(max(n, 0))
}

// manifest reads the manifest that an image's target is or leads to.
func (c *Client) manifest(ctx context.Context, target *types.Descriptor) (*manifest, error) {
	d := ocispec.Descriptor{MediaType: target.GetMediaType(), Digest: digest.Digest(target.GetDigest()), Size: target.GetSize()}
	for depth := 0; depth < 4; depth++ {
		switch d.MediaType {
		case ocispec.MediaTypeImageManifest, dockerManifest:
			m := &manifest{length: d.Size}
			if err := c.document(ctx, d, &m.Manifest); err != nil {
				return nil, fmt.Errorf("manifest: %w", err)
			}
			return m, nil
		case ocispec.MediaTypeImageIndex, dockerIndex:
			var index ocispec.Index
			if err := c.document(ctx, d, &index); err != nil {
				return nil, fmt.Errorf("index: %w", err)
			}
			next, ok := choose(index.Manifests)
			if !ok {
				return nil, fmt.Errorf("%w: the image has nothing for linux/%s", ErrNotFound, runtime.GOARCH)
			}
			d = next
		default:
			return nil, fmt.Errorf("%s is %q, want a manifest or an index of an image", d.Digest, d.MediaType)
		}
	}
	return nil, errors.New("indexes of an image that lead to indexes, want a manifest")
}

// choose returns the first manifest for this machine. One that does not say what
// it is for is taken if it is the only one.
func choose(list []ocispec.Descriptor) (ocispec.Descriptor, bool) {
	for _, d := range list {
		if p := d.Platform; p != nil && p.OS == "linux" && p.Architecture == runtime.GOARCH {
			return d, true
		}
	}
	if len(list) == 1 && list[0].Platform == nil {
		return list[0], true
	}
	return ocispec.Descriptor{}, false
}

// document reads JSON from containerd's content store, and checks its digest.
func (c *Client) document(ctx context.Context, d ocispec.Descriptor, v any) error {
	if d.Size < 0 || d.Size > maxDocument {
		return fmt.Errorf("%s has %d bytes, want at most %d", d.Digest, d.Size, maxDocument)
	}
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.content.Read(ctx, &contentapi.ReadContentRequest{Digest: d.Digest.String(), Size: d.Size})
	if err != nil {
		return err
	}
	var data bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return meaning(err)
		}
		data.Write(part.GetData())
		if int64(data.Len()) > d.Size {
			return fmt.Errorf("%s has more than the %d bytes it should", d.Digest, d.Size)
		}
	}
	if got := d.Digest.Algorithm().FromBytes(data.Bytes()); got != d.Digest {
		return fmt.Errorf("digest is %s, want %s", got, d.Digest)
	}
	return json.Unmarshal(data.Bytes(), v)
}

// An image is one that containers can be made of.
type image struct {
	config ocispec.ImageConfig
	chain  string // name of the snapshot that is all its layers
}

// image returns the image with a name.
func (c *Client) image(ctx context.Context, name string) (*image, error) {
	r, err := c.images.Get(ctx, &imageapi.GetImageRequest{Name: name})
	if err != nil {
		return nil, err
	}
	m, err := c.manifest(ctx, r.GetImage().GetTarget())
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := c.document(ctx, m.Config, &config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	i := &image{config: config.Config}
	for _, layer := range config.RootFS.DiffIDs {
		i.chain = chained(i.chain, layer)
	}
	return i, nil
}

// Package imagecache collects container images into one OCI image layout, which
// goes onto a disk so that a node has them without a network.
//
// An image layout (OCI image specification, image-layout.md) is a directory:
//
//	oci-layout            the version of the format
//	index.json            names the images, by digest
//	blobs/sha256/DIGEST   manifests, configurations and layers
//
// Images come from layouts, as directories or tar archives that are not
// compressed, and from archives of "docker save" of any version. Only what is for
// one architecture is taken: of an index for several (a "multi-platform image")
// the index itself and the manifests that match, so that its digest still names
// it, as after a pull. Blobs stay where they are; one that several images share
// is there once.
package imagecache

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Errors that Open and Verify wrap.
var (
	ErrFormat  = errors.New("no container images as an OCI layout or from docker save")
	ErrDigest  = errors.New("content does not have its digest")
	ErrMissing = errors.New("a blob is missing")
	ErrArch    = errors.New("no image for the architecture")
	ErrName    = errors.New("no usable name for an image")
)

// Annotations of a descriptor in index.json: the whole name of the image, for
// containerd, and its name or only its tag, of the specification.
const (
	AnnotationName = "io.containerd.image.name"
	annotationRef  = "org.opencontainers.image.ref.name"
)

const (
	maxJSON   = 4 << 20 // bytes of an index, a manifest or a configuration, as registries have it
	maxImages = 4096
	maxLayers = 1024
	maxDepth  = 4 // of indexes in indexes
)

// Source is where images come from.
type Source struct {
	Name string // the image's name, if there is one image; "" for what it says itself
	Path string // of a layout or archive
}

// Image is one image of a cache.
type Image struct {
	Name   string // with registry and tag, as package imagename writes it
	Digest string // sha256:… of its manifest, or of its index
	Size   int64  // bytes of its blobs, those included that it shares with others
	From   string // the source
}

// Cache is a set of images.
type Cache struct {
	Images []Image // by name

	index []byte
	blobs map[v1.Hash]blob
}

// blob is one blob and where it was found.
type blob struct {
	extent.Source
	file string // for errors
}

// Open reads what is in the sources for arch, as Go names it. Layers are looked
// for, and their sizes are compared; Verify reads them. The same image may be
// there several times, but not two under one name.
func Open(ctx context.Context, arch string, sources []Source) (*Cache, error) {
	c := collector{arch: arch, blobs: map[v1.Hash]blob{}, named: map[string]entry{}}
	for _, s := range sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.source(ctx, s); err != nil {
			return nil, fmt.Errorf("image cache: %s: %w", s.Path, err)
		}
	}
	return c.finish()
}

// collector gathers images.
type collector struct {
	arch  string
	blobs map[v1.Hash]blob
	named map[string]entry
}

// entry is an image with a name.
type entry struct {
	descriptor v1.Descriptor
	size       int64
	from       string
}

func (c *collector) source(ctx context.Context, s Source) error {
	st, err := open(s.Path)
	if err != nil {
		return err
	}
	var found []v1.Descriptor
	if st.has(indexFile) {
		found, err = st.index()
	} else {
		found, err = st.saved(ctx)
	}
	if err != nil {
		return err
	}
	var taken []v1.Descriptor
	var others []string
	sizes := map[v1.Hash]int64{}
	for _, d := range found {
		w := walk{store: st, arch: c.arch, blobs: c.blobs, seen: map[v1.Hash]bool{}}
		ok, err := w.descriptor(d, 0)
		if err != nil {
			return err
		}
		others = append(others, w.others...)
		if !ok {
			continue
		}
		taken, sizes[d.Digest] = append(taken, d), w.size
	}
	if len(taken) == 0 {
		if len(others) == 0 {
			return fmt.Errorf("%w: it names no image", ErrFormat)
		}
		slices.Sort(others)
		return fmt.Errorf("%w: want linux/%s, it is for %s", ErrArch, c.arch, strings.Join(slices.Compact(others), ", "))
	}
	if s.Name != "" && len(taken) > 1 {
		return fmt.Errorf("%w: %s= is for one image, there are %d for linux/%s; leave the name out", ErrName, s.Name, len(taken), c.arch)
	}
	for _, d := range taken {
		if err := c.add(s, d, sizes[d.Digest]); err != nil {
			return err
		}
	}
	return nil
}

// add adds an image under its name.
func (c *collector) add(s Source, d v1.Descriptor, size int64) error {
	whole, err := nameOf(s, d)
	if err != nil {
		return err
	}
	if old, ok := c.named[whole]; ok && old.descriptor.Digest != d.Digest {
		return fmt.Errorf("%w: %s is %s, and %s in %s; give one of them another name, as NAME=PATH", ErrName, whole, d.Digest, old.descriptor.Digest, old.from)
	} else if ok {
		return nil
	}
	if len(c.named) == maxImages {
		return fmt.Errorf("%w: more than %d images", ErrFormat, maxImages)
	}
	d = v1.Descriptor{
		MediaType: d.MediaType, Digest: d.Digest, Size: d.Size,
		Annotations: map[string]string{AnnotationName: whole, annotationRef: whole},
	}
	if d.MediaType.IsImage() {
		d.Platform = &v1.Platform{OS: "linux", Architecture: c.arch}
	}
	c.named[whole] = entry{d, size, s.Path}
	return nil
}

// nameOf is the whole name of an image: what the user says, or else it itself.
func nameOf(s Source, d v1.Descriptor) (string, error) {
	said := cmp.Or(s.Name, d.Annotations[AnnotationName], d.Annotations[annotationRef])
	if said == "" {
		return "", fmt.Errorf("%w: %s says none; give it as NAME=%s", ErrName, d.Digest, s.Path)
	}
	if !strings.ContainsAny(said, ":/@") && s.Name == "" { // a tag by itself
		return "", fmt.Errorf("%w: %s has only the tag %q; give it as NAME:%s=%s", ErrName, d.Digest, said, said, s.Path)
	}
	whole, err := imagename.Whole(said)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrName, d.Digest, err)
	}
	return whole, nil
}

// finish makes the index of what was gathered.
func (c *collector) finish() (*Cache, error) {
	out := &Cache{blobs: c.blobs}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, whole := range slices.Sorted(maps.Keys(c.named)) {
		e := c.named[whole]
		index.Manifests = append(index.Manifests, e.descriptor)
		out.Images = append(out.Images, Image{Name: whole, Digest: e.descriptor.Digest.String(), Size: e.size, From: e.from})
	}
	var err error
	out.index, err = json.Marshal(index)
	return out, err
}

// Digest is that of everything in the cache: sha256:… of its index, which names
// all else by digest.
func (c *Cache) Digest() string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(c.index))
}

// Size is the number of bytes of the blobs.
func (c *Cache) Size() int64 {
	var n int64
	for _, b := range c.blobs {
		n += b.Size()
	}
	return n
}

// Files returns the files of the layout, by path.
func (c *Cache) Files() map[string]tree.Content {
	files := map[string]tree.Content{
		layoutFile: extent.Bytes([]byte(`{"imageLayoutVersion":"1.0.0"}`)),
		indexFile:  extent.Bytes(c.index),
	}
	for h, b := range c.blobs {
		files[blobName(h)] = b.Source
	}
	return files
}

// Verify reads every blob and compares it with its digest. The error names the
// file and wraps ErrDigest.
func (c *Cache) Verify(ctx context.Context) error {
	for _, h := range slices.SortedFunc(maps.Keys(c.blobs), func(a, b v1.Hash) int { return strings.Compare(a.Hex, b.Hex) }) {
		b := c.blobs[h]
		got, err := digest(ctx, b.Source)
		if err != nil {
			return fmt.Errorf("image cache: %s: %w", b.file, err)
		}
		if err := same(b.file, got, h); err != nil {
			return fmt.Errorf("image cache: %w", err)
		}
	}
	return nil
}

// same compares the digest of what is in a file.
func same(file string, got, want v1.Hash) error {
	if got != want {
		return fmt.Errorf("%w: %s: content is %s, want %s; it is damaged, make or copy it again", ErrDigest, file, got, want)
	}
	return nil
}

// digest reads all of src.
func digest(ctx context.Context, src extent.Source) (v1.Hash, error) {
	h := sha256.New()
	buf := make([]byte, max(1, min(src.Size(), 1<<20)))
	if _, err := io.CopyBuffer(h, watched{ctx, extent.Reader(src)}, buf); err != nil {
		return v1.Hash{}, err
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}, nil
}

func digestOf(data []byte) v1.Hash {
	h, _, _ := v1.SHA256(bytes.NewReader(data)) // which can be read
	return h
}

// watched fails when the context ends.
type watched struct {
	ctx context.Context
	r   io.Reader
}

func (w watched) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

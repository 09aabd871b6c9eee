package imagecache

import (
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// walk goes from a descriptor to all blobs that are needed of it.
type walk struct {
	store  *store
	arch   string
	blobs  map[v1.Hash]blob // what was found
	seen   map[v1.Hash]bool // by this walk
	size   int64            // bytes of it
	others []string         // platforms that were left out
}

// descriptor reports whether there is an image for the architecture.
func (w *walk) descriptor(d v1.Descriptor, depth int) (bool, error) {
	if p := d.Platform; p != nil && p.OS == "unknown" {
		return false, nil // builders put their attestations beside the images
	}
	switch {
	case d.MediaType.IsIndex():
		if depth == maxDepth {
			return false, fmt.Errorf("%w: indexes nested more than %d deep", ErrFormat, maxDepth)
		}
		return w.index(d, depth)
	case d.MediaType.IsImage():
		if p := d.Platform; p != nil && p.Architecture != "" && (p.Architecture != w.arch || p.OS != "linux") {
			w.others = append(w.others, p.OS+"/"+p.Architecture)
			return false, nil
		}
		return w.image(d)
	case d.MediaType == types.DockerManifestSchema1 || d.MediaType == types.DockerManifestSchema1Signed:
		return false, fmt.Errorf("%w: %s is of schema 1, which no program has made for years; make the image again", ErrFormat, d.Digest)
	}
	return false, nil // an artifact of another kind
}

func (w *walk) index(d v1.Descriptor, depth int) (bool, error) {
	data, b, err := w.store.readBlob(d)
	if err != nil {
		return false, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrFormat, b.file, err)
	}
	if len(index.Manifests) > maxImages {
		return false, fmt.Errorf("%w: %s: more than %d images", ErrFormat, b.file, maxImages)
	}
	found := false
	for _, child := range index.Manifests {
		ok, err := w.descriptor(child, depth+1)
		if err != nil {
			return false, err
		}
		found = found || ok
	}
	if found {
		w.add(d.Digest, b)
	}
	return found, nil
}

func (w *walk) image(d v1.Descriptor) (bool, error) {
	data, b, err := w.store.readBlob(d)
	if err != nil {
		return false, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrFormat, b.file, err)
	}
	if t := m.Config.MediaType; t != types.OCIConfigJSON && t != types.DockerConfigJSON {
		return false, nil // an artifact, such as a signature
	}
	if len(m.Layers) > maxLayers {
		return false, fmt.Errorf("%w: %s: %d layers, want at most %d", ErrFormat, b.file, len(m.Layers), maxLayers)
	}
	data, config, err := w.store.readBlob(m.Config)
	if err != nil {
		return false, err
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(data, &c); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrFormat, config.file, err)
	}
	if c.Architecture != w.arch || c.OS != "linux" {
		w.others = append(w.others, c.OS+"/"+c.Architecture)
		return false, nil
	}
	found := map[v1.Hash]blob{d.Digest: b, m.Config.Digest: config}
	for _, l := range m.Layers {
		if found[l.Digest], err = w.store.blob(l); err != nil {
			return false, fmt.Errorf("layer of %s: %w", d.Digest, err)
		}
	}
	for h, b := range found {
		w.add(h, b)
	}
	return true, nil
}

// add takes a blob, unless another image has brought it.
func (w *walk) add(h v1.Hash, b blob) {
	if !w.seen[h] {
		w.seen[h] = true
		w.size += b.Size()
	}
	if _, ok := w.blobs[h]; !ok {
		w.blobs[h] = b
	}
}

package extensions

import (
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// imageFor returns the image for arch of an OCI layout.
func imageFor(p layout.Path, arch string) (v1.Image, error) {
	index, err := p.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("%w: OCI layout: %w", ErrFormat, err)
	}
	return pick(index, arch, 0)
}

// pick finds the image for arch. A layout's index may name an index that names
// the images; deeper nesting is refused.
func pick(index v1.ImageIndex, arch string, depth int) (v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("%w: OCI layout: %w", ErrFormat, err)
	}
	var found []string
	for _, d := range manifest.Manifests {
		if d.MediaType.IsIndex() && depth == 0 && len(manifest.Manifests) == 1 {
			child, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			return pick(child, arch, depth+1)
		}
		if !d.MediaType.IsImage() {
			continue
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", d.Digest, err)
		}
		if config.Architecture == arch {
			return img, nil
		}
		found = append(found, config.OS+"/"+config.Architecture)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: the OCI layout holds no image", ErrFormat)
	}
	return nil, fmt.Errorf("%w: for %s, want linux/%s", ErrFormat, strings.Join(found, ", "), arch)
}

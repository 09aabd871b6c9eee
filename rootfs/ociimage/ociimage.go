// Package ociimage makes OCI images of file trees that are the same bytes for the
// same content.
//
// An image (OCI image specification) is a manifest that names, by digest, a
// configuration and layers. A layer is a tar archive, compressed or not.
//
// The digest and size of a layer are needed before its first byte is written, so
// a layer is made twice: once to learn them, and again each time it is read. It is
// never kept, neither in memory nor in a file.
package ociimage

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrInvalid is wrapped by errors about what cannot be in an image.
var ErrInvalid = errors.New("cannot be in an OCI image")

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

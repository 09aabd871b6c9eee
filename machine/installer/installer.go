//go:build linux

// Package installer unpacks installer images and runs the program in them.
//
// An installer image is an OCI image with kiln itself and what it needs to compose a
// system: a source directory, which package imager describes. A node needs no code
// of its own to write a new system; it runs the new one's:
//
//	Env         KILN_SOURCE=DIR, the source directory
//	Entrypoint  kiln
//
// The image comes as a tar archive of an OCI image layout (Image Layout
// Specification 1.1), as 'kiln build installer', 'docker save' of Docker 25 and
// 'skopeo copy oci-archive:' write it, or blob by blob from a registry. Layers are
// tar archives, with gzip or without; one that removes what is below it is none of
// an installer image. Every blob is compared with its digest, and nothing is used
// before all of them have been.
package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// ErrImage is wrapped by the errors of what is no installer image, or not one for
// this machine.
var ErrImage = errors.New("not an installer image for this node")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrImage, fmt.Errorf(format, args...))
}

// An Image is one that was unpacked.
type Image struct {
	Root   string // directory with the files
	Tool   string // the program, a path on this machine
	Source string // the source directory, a path on this machine
}

// sourceVariable is imager.SourceVariable, whose package is too large for PID 1.
const sourceVariable = "KILN_SOURCE"

// Limits of what is read into memory, and of an index in an index.
const (
	maxJSON   = 4 << 20
	maxNested = 3
	maxLayers = 128
)

// descriptor is one of the OCI image specification.
type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *platform `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func (p *platform) is(arch string) bool {
	return p == nil || p.OS == "linux" && p.Architecture == arch
}

// manifest is an image's manifest or, with Manifests, an index of them.
type manifest struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// config is what an image's configuration says of interest.
type config struct {
	platform
	Config struct {
		Env        []string
		Entrypoint []string
	} `json:"config"`
}

// find returns the manifest for arch that an index leads to. fetch returns blobs.
func find(index []byte, arch string, fetch func(descriptor) ([]byte, error)) (*manifest, error) {
	data := index
	for range maxNested {
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, refuse("manifest: %w", err)
		}
		if len(m.Manifests) == 0 {
			if m.Config.Digest == "" || len(m.Layers) == 0 || len(m.Layers) > maxLayers {
				return nil, refuse("a manifest with %d layers, want a configuration and 1 to %d layers", len(m.Layers), maxLayers)
			}
			return &m, nil
		}
		at := slices.IndexFunc(m.Manifests, func(d descriptor) bool { return d.Platform.is(arch) })
		if at < 0 {
			return nil, refuse("it is for %s, want linux/%s", platforms(m.Manifests), arch)
		}
		var err error
		if data, err = fetch(m.Manifests[at]); err != nil {
			return nil, err
		}
	}
	return nil, refuse("an index of indexes of indexes")
}

func platforms(list []descriptor) string {
	var names []string
	for _, d := range list {
		names = append(names, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return strings.Join(names, ", ")
}

// parseConfig returns the paths, in the image, of the program and its source.
func parseConfig(data []byte, arch string) (tool, source string, err error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return "", "", refuse("configuration: %w", err)
	}
	if !c.is(arch) {
		return "", "", refuse("it is for %s/%s, want linux/%s", c.OS, c.Architecture, arch)
	}
	for _, e := range c.Config.Env {
		if v, ok := strings.CutPrefix(e, sourceVariable+"="); ok {
			source = v
		}
	}
	if source == "" || len(c.Config.Entrypoint) == 0 {
		return "", "", refuse("its configuration has no %s, or no entry point; 'kiln build installer' makes one", sourceVariable)
	}
	return within(c.Config.Entrypoint[0]), within(source), nil
}

// within returns a path of an image relative to its root.
func within(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

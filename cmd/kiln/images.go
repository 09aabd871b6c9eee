package main

import (
	"context"
	"os"
	"strings"

	"github.com/kilnhq/kiln/imager/imagecache"
)

// openImages opens what --image-cache names; nil is none.
func openImages(ctx context.Context, refs []string, arch string) (*imagecache.Cache, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	var sources []imagecache.Source
	for _, ref := range refs {
		sources = append(sources, imageSource(ref))
	}
	return imagecache.Open(ctx, arch, sources)
}

// imageSource splits NAME=PATH. A file that has a '=' in its name is a path.
func imageSource(ref string) imagecache.Source {
	name, path, named := strings.Cut(ref, "=")
	if _, err := os.Lstat(ref); err == nil || !named {
		return imagecache.Source{Path: ref}
	}
	return imagecache.Source{Name: name, Path: path}
}

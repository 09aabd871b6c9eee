// Package imagename writes names of container images as containerd and Kubernetes
// have them, who know no others.
package imagename

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Default returns the registry of names that name none, as containerd writes it, and
// the host that answers for it, which has another name.
func Default() (registry, host string) {
	registry = strings.TrimPrefix(name.DefaultRegistry, "index.") // which the library puts before it
	return registry, "registry-1." + registry
}

// Whole returns the name of an image with registry, and tag or digest: nginx is
// REGISTRY/library/nginx:latest, with the one of Default.
func Whole(image string) (string, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return "", err
	}
	if rest, ok := strings.CutPrefix(ref.Name(), name.DefaultRegistry+"/"); ok {
		registry, _ := Default()
		return registry + "/" + rest, nil
	}
	return ref.Name(), nil
}

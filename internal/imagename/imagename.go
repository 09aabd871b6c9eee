// Package imagename writes names of container images as containerd and Kubernetes
// have them, who know no others.
package imagename

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Whole returns the name of an image with registry, and tag or digest: nginx is
// docker.io/library/nginx:latest.
func Whole(image string) (string, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return "", err
	}
	if ref.Context().RegistryStr() == name.DefaultRegistry { // which the library calls otherwise
		return strings.TrimPrefix(ref.Name(), "index."), nil
	}
	return ref.Name(), nil
}

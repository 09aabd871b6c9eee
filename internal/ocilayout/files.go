package ocilayout

import (
	"encoding/json"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
)

// Files returns the files of a layout with this manifest, for an architecture,
// and nothing else, by their paths in the layout. Blobs stay where they are.
func (m *Manifest) Files(arch string) (map[string]extent.Source, error) {
	manifest := v1.Descriptor{Digest: m.Digest}
	src, err := openFile(m.path(m.Digest))
	if err != nil {
		return nil, err
	}
	manifest.Size, manifest.MediaType = src.Size(), m.MediaType
	if manifest.MediaType == "" { // which it need not say itself
		manifest.MediaType = types.OCIManifestSchema1
	}
	manifest.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return nil, err
	}
	files := map[string]extent.Source{
		"oci-layout":       extent.Bytes([]byte(`{"imageLayoutVersion": "1.0.0"}`)),
		"index.json":       extent.Bytes(index),
		blobName(m.Digest): src,
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if files[blobName(d.Digest)], err = m.Blob(d); err != nil {
			return nil, err
		}
	}
	return files, nil
}

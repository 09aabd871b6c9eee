package extensions

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// An OCI image layout is a directory with oci-layout, which says so, index.json
// and the blobs it names. See the OCI image specification, "Image Layout". It is
// read out of a tree, so that it may be in a directory, a tar or a squashfs.
const (
	layoutName = "oci-layout"
	indexName  = "index.json"
	blobsDir   = "blobs/sha256/"
)

// layoutIndex is the index of an OCI image layout, or one below it.
type layoutIndex struct {
	files *tree.Tree
	raw   []byte
}

// openLayout returns the top index of the image layout in files.
func openLayout(files *tree.Tree) (*layoutIndex, error) {
	raw, err := readFile(files, indexName, maxJSON)
	if err != nil {
		return nil, fmt.Errorf("OCI layout: %w", err)
	}
	return &layoutIndex{files, raw}, nil
}

func (l *layoutIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }
func (l *layoutIndex) Digest() (v1.Hash, error)            { return partial.Digest(l) }
func (l *layoutIndex) Size() (int64, error)                { return int64(len(l.raw)), nil }
func (l *layoutIndex) RawManifest() ([]byte, error)        { return l.raw, nil }

func (l *layoutIndex) IndexManifest() (*v1.IndexManifest, error) {
	return decode[v1.IndexManifest](l.raw)
}

func (l *layoutIndex) ImageIndex(h v1.Hash) (v1.ImageIndex, error) {
	raw, err := readBlob(l.files, h)
	if err != nil {
		return nil, err
	}
	return &layoutIndex{l.files, raw}, nil
}

func (l *layoutIndex) Image(h v1.Hash) (v1.Image, error) {
	raw, err := readBlob(l.files, h)
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&layoutImage{l.files, raw})
}

// layoutImage is an image of an OCI image layout.
type layoutImage struct {
	files *tree.Tree
	raw   []byte
}

func (l *layoutImage) RawManifest() ([]byte, error) { return l.raw, nil }

func (l *layoutImage) MediaType() (types.MediaType, error) {
	m, err := decode[v1.Manifest](l.raw)
	if err != nil {
		return "", err
	}
	if m.MediaType == "" { // it may be left out
		return types.OCIManifestSchema1, nil
	}
	return m.MediaType, nil
}

func (l *layoutImage) RawConfigFile() ([]byte, error) {
	m, err := decode[v1.Manifest](l.raw)
	if err != nil {
		return nil, err
	}
	return readBlob(l.files, m.Config.Digest)
}

func (l *layoutImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	m, err := decode[v1.Manifest](l.raw)
	if err != nil {
		return nil, err
	}
	for _, d := range append(m.Layers, m.Config) {
		if d.Digest == h {
			content, err := blob(l.files, h)
			if err != nil {
				return nil, err
			}
			return &layoutLayer{d, content}, nil
		}
	}
	return nil, fmt.Errorf("%w: no layer %s", ErrFormat, h)
}

type layoutLayer struct {
	desc    v1.Descriptor
	content tree.Content
}

func (l *layoutLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layoutLayer) Size() (int64, error)                { return l.content.Size(), nil }
func (l *layoutLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *layoutLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(extent.Reader(l.content)), nil
}

// blob returns the content of a blob of a layout.
func blob(files *tree.Tree, h v1.Hash) (tree.Content, error) {
	if h.Algorithm != "sha256" || len(h.Hex) != 2*sha256.Size {
		return nil, fmt.Errorf("%w: digest %q, want sha256", ErrFormat, clip(h.String()))
	}
	ino := files.Lookup(blobsDir + h.Hex)
	if ino == nil || !ino.Mode.IsRegular() {
		return nil, fmt.Errorf("%w: no %s%s in the OCI layout", ErrFormat, blobsDir, h.Hex)
	}
	if ino.Content == nil {
		return extent.Bytes(nil), nil
	}
	return ino.Content, nil
}

// readBlob returns a blob that is JSON, if it is the one that was asked for.
func readBlob(files *tree.Tree, h v1.Hash) ([]byte, error) {
	if _, err := blob(files, h); err != nil {
		return nil, err
	}
	data, err := readFile(files, blobsDir+h.Hex, maxJSON)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != h.Hex {
		return nil, fmt.Errorf("%w: content is sha256:%x, want %s", ErrFormat, sum, h)
	}
	return data, nil
}

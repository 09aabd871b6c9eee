package imagecache

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
)

// savedImage is an image in the manifest.json of "docker save".
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// saved returns the images of an archive that "docker save" wrote before it wrote
// layouts. Their manifests are made from what the configurations say of the
// layers, which are read for that: the archive itself has no digests of them. All
// images are returned, whatever they are for.
func (s *store) saved(ctx context.Context) ([]v1.Descriptor, error) {
	var images []savedImage
	if err := s.json(savedFile, &images); err != nil {
		return nil, err
	}
	if len(images) > maxImages {
		return nil, fmt.Errorf("%w: %s: more than %d images", ErrFormat, savedFile, maxImages)
	}
	layers := map[string]v1.Descriptor{} // by name
	var found []v1.Descriptor
	for _, img := range images {
		d, err := s.manifest(ctx, img, layers)
		if err != nil {
			return nil, err
		}
		if len(img.RepoTags) == 0 {
			found = append(found, d)
		}
		for _, tag := range img.RepoTags {
			d.Annotations = map[string]string{AnnotationName: tag}
			found = append(found, d)
		}
	}
	return found, nil
}

// manifest makes the manifest of an image, and has its blobs found by digest.
func (s *store) manifest(ctx context.Context, img savedImage, layers map[string]v1.Descriptor) (d v1.Descriptor, err error) {
	b, err := s.file(path.Clean("/" + img.Config)[1:])
	if err != nil {
		return d, err
	}
	raw, err := b.read()
	if err != nil {
		return d, err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(raw, &config); err != nil {
		return d, fmt.Errorf("%w: %s: %w", ErrFormat, b.file, err)
	}
	if n, want := len(img.Layers), len(config.RootFS.DiffIDs); n != want || n > maxLayers {
		return d, fmt.Errorf("%w: %s: %d layers, the configuration names %d; want at most %d", ErrFormat, b.file, n, want, maxLayers)
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: digestOf(raw), Size: int64(len(raw))},
		Layers: []v1.Descriptor{},
	}
	s.files[blobName(m.Config.Digest)] = b
	for i, file := range img.Layers {
		l, ok := layers[file]
		if !ok {
			if l, err = s.layer(ctx, file, config.RootFS.DiffIDs[i]); err != nil {
				return d, err
			}
			layers[file] = l
		}
		m.Layers = append(m.Layers, l)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return d, err
	}
	d = v1.Descriptor{MediaType: m.MediaType, Digest: digestOf(data), Size: int64(len(data))}
	s.files[blobName(d.Digest)] = blob{extent.Bytes(data), s.path + ":" + savedFile}
	return d, nil
}

// layer reads a layer, and compares what is in it with the digest that the
// configuration names.
func (s *store) layer(ctx context.Context, name string, diffID v1.Hash) (d v1.Descriptor, err error) {
	b, err := s.file(path.Clean("/" + name)[1:])
	if err != nil {
		return d, err
	}
	stored := sha256.New()
	r := io.TeeReader(watched{ctx, extent.Reader(b)}, stored)
	buffered := bufio.NewReaderSize(r, 64<<10)
	d = v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: b.Size()}
	unpacked := io.Reader(buffered)
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		d.MediaType = types.OCILayer
		if unpacked, err = gzip.NewReader(buffered); err != nil {
			return d, fmt.Errorf("%s: %w", b.file, err)
		}
	}
	content := sha256.New()
	if _, err := io.Copy(content, unpacked); err != nil {
		return d, fmt.Errorf("%s: %w", b.file, err)
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return d, fmt.Errorf("%s: %w", b.file, err)
	}
	if err := same(b.file, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(content.Sum(nil))}, diffID); err != nil {
		return d, err
	}
	d.Digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(stored.Sum(nil))}
	s.files[blobName(d.Digest)] = b
	return d, nil
}

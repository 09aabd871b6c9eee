package base

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
)

// Write stores a base as an OCI image layout at path, replacing one that is
// there.
func Write(ctx context.Context, path string, config Config, parts map[string]extent.Source) error {
	img, err := image(ctx, config, parts)
	if err != nil {
		return err
	}
	return ocilayout.Write(path, img)
}

func image(ctx context.Context, config Config, parts map[string]extent.Source) (v1.Image, error) {
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, err
	}
	all := map[string]extent.Source{ConfigJSON: extent.Bytes(append(data, '\n'))}
	names := []string{ConfigJSON}
	for name, src := range parts {
		all[name] = src
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, name := range names {
		l, err := newLayer(ctx, all[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: l, MediaType: PartType, Annotations: map[string]string{titleKey: name},
			History: v1.History{CreatedBy: name, Created: v1.Time{Time: time.Unix(config.Epoch, 0).UTC()}},
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", config.Arch
	file.Created = v1.Time{Time: time.Unix(config.Epoch, 0).UTC()}
	return mutate.ConfigFile(img, file)
}

// layer is a part as a layer that is stored as it is: no tar, no compression.
type layer struct {
	src  extent.Source
	hash v1.Hash
}

func newLayer(ctx context.Context, src extent.Source) (*layer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, extent.Reader(src)); err != nil {
		return nil, err
	}
	return &layer{src, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}}, nil
}

func (l *layer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(extent.Reader(l.src)), nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l *layer) Size() (int64, error)                 { return l.src.Size(), nil }
func (l *layer) MediaType() (types.MediaType, error)  { return PartType, nil }

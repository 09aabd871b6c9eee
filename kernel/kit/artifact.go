package kit

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// write stores a kit as an OCI image layout.
func write(ctx context.Context, output string, config Config, t *tree.Tree, epoch int64) error {
	layer, err := archive(ctx, t)
	if err != nil {
		return fmt.Errorf("kernel kit: %w", err)
	}
	doc, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	doc = append(doc, '\n')
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: descriptor(doc, ConfigType),
		Layers: []v1.Descriptor{descriptor(layer, LayerType)},
		Annotations: map[string]string{
			"org.opencontainers.image.created": time.Unix(epoch, 0).UTC().Format(time.RFC3339),
			"org.opencontainers.image.title":   "kernel kit for " + config.Release,
		},
	})
	if err != nil {
		return err
	}
	img, err := partial.CompressedToImage(artifact{doc, manifest, layer})
	if err != nil {
		return err
	}
	return ocilayout.WriteArtifact(output, img, v1.Platform{OS: "linux", Architecture: config.Arch})
}

func descriptor(data []byte, t types.MediaType) v1.Descriptor {
	sum := sha256.Sum256(data)
	return v1.Descriptor{MediaType: t, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

// artifact is an OCI image whose config is a document of our own, which the
// library's own images cannot have.
type artifact struct{ config, manifest, layer []byte }

func (a artifact) RawConfigFile() ([]byte, error)      { return a.config, nil }
func (a artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (a artifact) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if d := descriptor(a.layer, LayerType); d.Digest != h {
		return nil, fmt.Errorf("no layer %s", h)
	}
	return static.NewLayer(a.layer, LayerType), nil
}

// archive writes t as a compressed tar archive: names in bytewise order, owner
// 0:0, no times.
func archive(ctx context.Context, t *tree.Tree) ([]byte, error) {
	var buf bytes.Buffer
	// One at a time: the result of several depends on how the input comes.
	z, err := zstd.NewWriter(&buf, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	tw := tar.NewWriter(z)
	for name, ino := range t.All() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if name == "." {
			continue
		}
		hdr := &tar.Header{Name: name, Mode: int64(ino.Mode.Perm()), ModTime: time.Unix(0, 0)}
		switch {
		case ino.Mode.IsDir():
			hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
		case ino.Mode&fs.ModeSymlink != 0:
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, ino.Target
		default:
			hdr.Typeflag, hdr.Size = tar.TypeReg, ino.Size()
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if hdr.Size > 0 {
			if _, err := io.Copy(tw, io.NewSectionReader(ino.Content, 0, hdr.Size)); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

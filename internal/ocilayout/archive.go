package ocilayout

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Annotations of an image in the index of a layout: its tag, see the OCI image
// specification, "Pre-Defined Annotation Keys", and its whole name, for containerd.
const (
	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

const defaultPrefix = "index."

// saved is an image in the manifest.json of "docker save".
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteArchive writes img to w, from start to end, as a tar archive that is two
// things: an OCI image layout, as "docker load" with containerd and "skopeo copy
// oci-archive:" want it, and what "docker save" writes, for all versions of Docker.
// tag is the name and tag it is to have, "kiln:1.2"; it may be empty. Times are
// those of the image.
func WriteArchive(ctx context.Context, w io.Writer, img v1.Image, tag string) error {
	a, err := newArchive(w, img)
	if err != nil {
		return err
	}
	entry, err := a.describe(img, tag)
	if err != nil {
		return err
	}
	for _, f := range entry {
		if err := a.blob(f.name, int64(len(f.content)), bytes.NewReader(f.content)); err != nil {
			return err
		}
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	done := map[v1.Hash]bool{}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		if done[digest] {
			continue
		}
		done[digest] = true
		size, err := l.Size()
		if err != nil {
			return err
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		err = a.blob(blobName(digest), size, &watchedReader{ctx, r})
		r.Close()
		if err != nil {
			return fmt.Errorf("layer %s: %w", digest, err)
		}
	}
	return a.tar.Close()
}

type archive struct {
	tar  *tar.Writer
	time time.Time
}

func newArchive(w io.Writer, img v1.Image) (*archive, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	return &archive{tar.NewWriter(w), config.Created.UTC()}, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (a *archive) blob(name string, size int64, r io.Reader) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: a.time, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(a.tar, r)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

type file struct {
	name    string
	content []byte
}

// describe returns all files of the archive but the layers.
func (a *archive) describe(img v1.Image, tag string) ([]file, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	platform, err := platformOf(img)
	if err != nil {
		return nil, err
	}
	descriptor := v1.Descriptor{Platform: &platform}
	entry := saved{Config: blobName(m.Config.Digest)}
	if tag != "" {
		t, err := name.NewTag(tag)
		if err != nil {
			return nil, fmt.Errorf("tag of an image: %w; want NAME:TAG", err)
		}
		// The library's name of the default registry is not the one others have.
		whole := strings.TrimPrefix(t.Name(), defaultPrefix)
		short := strings.TrimPrefix(whole, strings.TrimPrefix(name.DefaultRegistry, defaultPrefix)+"/")
		short = strings.TrimPrefix(short, "library/")
		entry.RepoTags = []string{short}
		descriptor.Annotations = map[string]string{annotationTag: t.TagStr(), annotationName: whole}
	}
	for _, l := range m.Layers {
		entry.Layers = append(entry.Layers, blobName(l.Digest))
	}
	index, err := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: descriptor}).RawManifest()
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal([]saved{entry})
	if err != nil {
		return nil, err
	}
	return []file{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", index},
		{"manifest.json", list},
		{blobName(digest), manifest},
		{blobName(m.Config.Digest), config},
	}, nil
}

// watchedReader fails when the context ends.
type watchedReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *watchedReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

package ocilayout

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// makeImage returns an image of two layers.
func makeImage(t testing.TB, c ociimage.Compression) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, content := range []string{"one", "two"} {
		f := tree.New()
		if err := f.Add(content, &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(content))}); err != nil {
			t.Fatal(err)
		}
		l, err := ociimage.Layer(t.Context(), f, c)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: "arm64", Created: time.Unix(1_700_000_000, 0)}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// stored wants the layout at path to hold img alone, each blob under its digest.
func stored(t *testing.T, path string, img v1.Image) v1.Descriptor {
	t.Helper()
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 || m.Manifests[0].Digest != want || m.Manifests[0].Platform.String() != "linux/arm64" {
		t.Fatalf("%s: index %+v, want %s for linux/arm64", path, m.Manifests, want)
	}
	blobs := 0
	if err := filepath.WalkDir(filepath.Join(path, "blobs/sha256"), func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		blobs++
		data, err := os.ReadFile(file)
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.Name() {
			t.Errorf("%s: content is %x", file, sum)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if blobs != 4 {
		t.Errorf("%s: %d blobs, want manifest, configuration and two layers", path, blobs)
	}
	return m.Manifests[0]
}

func TestStored(t *testing.T) {
	for _, c := range []ociimage.Compression{ociimage.None, ociimage.Gzip, ociimage.Zstd} {
		img := makeImage(t, c)
		dir := t.TempDir()
		if err := Write(filepath.Join(dir, "layout"), img); err != nil {
			t.Fatal(err)
		}
		stored(t, filepath.Join(dir, "layout"), img)
		path := filepath.Join(dir, "image.tar")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(WriteArchive(context.Background(), f, img, "example.com/kiln:1.2"), f.Close()); err != nil {
			t.Fatal(err)
		}
		// What "docker load" sees.
		tag, err := name.NewTag("example.com/kiln:1.2")
		if err != nil {
			t.Fatal(err)
		}
		docker, err := tarball.ImageFromPath(path, &tag)
		if err != nil {
			t.Fatal(err)
		}
		if c == ociimage.Gzip { // it compresses what is not, to validate it
			if err := validate.Image(docker); err != nil {
				t.Error(err)
			}
		}
		a, _ := docker.ConfigName()
		if b, _ := img.ConfigName(); a != b {
			t.Errorf("%q: the configuration is %s in the archive, want %s", c, a, b)
		}
		// The same archive is a layout.
		unpacked := filepath.Join(dir, "unpacked")
		if err := os.Mkdir(unpacked, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(oracle.Tool(t, "tar"), "-xf", path, "-C", unpacked).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if d := stored(t, unpacked, img); d.Annotations[annotationTag] != "1.2" {
			t.Errorf("%q: annotations %v", c, d.Annotations)
		}
		var again bytes.Buffer
		if err := WriteArchive(context.Background(), &again, makeImage(t, c), "example.com/kiln:1.2"); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, again.Bytes()) {
			t.Errorf("%q: written twice it is another archive (%v)", c, err)
		}
	}
}

func TestWriteArchiveStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	img := makeImage(t, ociimage.Gzip)
	cancel()
	if err := WriteArchive(ctx, io.Discard, img, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestTags(t *testing.T) {
	registry := strings.TrimPrefix(name.DefaultRegistry, "index.")
	for _, c := range []struct{ tag, repoTag, whole string }{
		{"kiln:1.2", "kiln:1.2", registry + "/library/kiln:1.2"},
		{"some/kiln", "some/kiln:latest", registry + "/some/kiln:latest"},
		{"example.com/kiln:v1", "example.com/kiln:v1", "example.com/kiln:v1"},
		{"", "", ""},
	} {
		var b bytes.Buffer
		if err := WriteArchive(context.Background(), &b, makeImage(t, ociimage.None), c.tag); err != nil {
			t.Fatal(err)
		}
		var list []saved
		var index v1.IndexManifest
		r := tar.NewReader(&b)
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch h.Name {
			case "manifest.json":
				err = json.NewDecoder(r).Decode(&list)
			case "index.json":
				err = json.NewDecoder(r).Decode(&index)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(list[0].RepoTags, " "); got != c.repoTag {
			t.Errorf("%q: RepoTags %q, want %q", c.tag, got, c.repoTag)
		}
		if got := index.Manifests[0].Annotations[annotationName]; got != c.whole {
			t.Errorf("%q: %q, want %q", c.tag, got, c.whole)
		}
	}
	if err := WriteArchive(context.Background(), io.Discard, makeImage(t, ociimage.None), "no tag:"); err == nil || !strings.HasSuffix(err.Error(), "want NAME:TAG") {
		t.Errorf("bad tag: %v", err)
	}
}

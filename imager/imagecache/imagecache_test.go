package imagecache

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// image has a layer with each of the contents.
func image(t testing.TB, arch string, contents ...string) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, content := range contents {
		f := tree.New()
		if err := f.Add("file", &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(content))}); err != nil {
			t.Fatal(err)
		}
		l, err := ociimage.Layer(t.Context(), f, ociimage.Gzip)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: arch, Created: time.Unix(1_700_000_000, 0), Cmd: []string{"/file"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func hash(t testing.TB, img interface{ Digest() (v1.Hash, error) }) v1.Hash {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// writeLayout makes a layout of images by their names; an empty name is none.
func writeLayout(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range images {
		var o []layout.Option
		if name != "" {
			o = append(o, layout.WithAnnotations(map[string]string{annotationRef: name}))
		}
		if err := p.AppendImage(img, o...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// multi makes a layout with an index for several architectures.
func multi(t testing.TB, name string, images ...v1.Image) (string, v1.ImageIndex) {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range images {
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: c.OS, Architecture: c.Architecture}}})
	}
	dir := filepath.Join(t.TempDir(), "multi")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{AnnotationName: name})); err != nil {
		t.Fatal(err)
	}
	return dir, index
}

// pack makes a tar archive of what is in dir.
func pack(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "images.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

// archive writes what "docker load" takes, or only what old versions of it do.
func archive(t testing.TB, img v1.Image, tag string, old bool) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "saved.tar")
	var whole, out bytes.Buffer
	if err := ocilayout.WriteArchive(t.Context(), &whole, img, tag); err != nil {
		t.Fatal(err)
	}
	r, w := tar.NewReader(&whole), tar.NewWriter(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if old && (h.Name == indexFile || h.Name == layoutFile) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), os.WriteFile(name, out.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return name
}

// write puts the layout of a cache into a directory.
func write(t testing.TB, c *Cache) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range c.Files() {
		file := filepath.Join(dir, filepath.FromSlash(name))
		data, err := io.ReadAll(io.NewSectionReader(content, 0, content.Size()))
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func mustOpen(t testing.TB, sources ...Source) *Cache {
	t.Helper()
	c, err := Open(t.Context(), "amd64", sources)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// The library that registries are used with reads the layout, and finds every blob
// to have its digest.
func TestLayoutIsValid(t *testing.T) {
	one, two := image(t, "amd64", "shared", "one"), image(t, "amd64", "shared", "two")
	dir := writeLayout(t, map[string]v1.Image{"example.com/one:1": one, "two:2": two})
	c := mustOpen(t, Source{Path: dir})
	got, err := layout.ImageIndexFromPath(write(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	m, err := got.IndexManifest()
	if err != nil || len(m.Manifests) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	for i, want := range []struct {
		name   string
		digest v1.Hash
	}{{hub() + "/library/two:2", hash(t, two)}, {"example.com/one:1", hash(t, one)}} {
		d := m.Manifests[i]
		if d.Annotations[AnnotationName] != want.name || d.Digest != want.digest || d.Platform.String() != "linux/amd64" || c.Images[i].Name != want.name {
			t.Errorf("image %d is %+v, want %s, %s", i, d, want.name, want.digest)
		}
	}
	// Two manifests and configurations, and three layers, of which one is shared.
	if n := len(c.Files()); n != 2+7 {
		t.Errorf("%d files, want 9", n)
	}
	if c.Images[0].Size+c.Images[1].Size <= c.Size() {
		t.Errorf("images of %d and %d bytes share nothing of %d", c.Images[0].Size, c.Images[1].Size, c.Size())
	}
}

// However images come, they are the same bytes, and stay where they are.
func TestForms(t *testing.T) {
	img := image(t, "amd64", "a", "b")
	dir := writeLayout(t, map[string]v1.Image{"example.com/x:1": img})
	want := mustOpen(t, Source{Path: dir})
	for name, s := range map[string]Source{
		"tar":         {Path: pack(t, dir)},
		"named":       {Name: "example.com/x:1", Path: writeLayout(t, map[string]v1.Image{"": img})},
		"docker save": {Path: archive(t, img, "example.com/x:1", false)},
	} {
		c := mustOpen(t, s)
		if c.Digest() != want.Digest() || c.Size() != want.Size() {
			t.Errorf("%s: %s with %+v, want %s with %+v", name, c.Digest(), c.Images, want.Digest(), want.Images)
		}
		for name, content := range c.Files() {
			if strings.HasPrefix(name, "blobs/") && content.(extent.Source) == nil {
				t.Errorf("%s is no source", name)
			}
		}
	}
}

// An archive of an older docker has no manifests. Those made of it are valid, and
// always the same.
func TestOldDocker(t *testing.T) {
	img := image(t, "amd64", "a", "b", "a")
	path := archive(t, img, "example.com/x:1", true)
	c := mustOpen(t, Source{Path: path})
	dir := write(t, c)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	h, err := v1.NewHash(c.Images[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	got, err := index.Image(h)
	if err != nil {
		t.Fatal(err)
	}
	a, err := got.ConfigName()
	if b, _ := img.ConfigName(); err != nil || a != b || c.Images[0].Name != "example.com/x:1" {
		t.Errorf("%+v has configuration %s (%v), want %s", c.Images, a, err, b)
	}
	if again := mustOpen(t, Source{Path: path}); again.Digest() != c.Digest() {
		t.Errorf("%s, and again %s", c.Digest(), again.Digest())
	}
}

// Of an image for several architectures one is taken, and the digest of them all
// still names it.
func TestArchitecture(t *testing.T) {
	ours, other := image(t, "amd64", "x"), image(t, "arm64", "y")
	dir, index := multi(t, "example.com/m:1", other, ours)
	c := mustOpen(t, Source{Path: dir})
	if c.Images[0].Digest != hash(t, index).String() {
		t.Errorf("%+v, want %s", c.Images, hash(t, index))
	}
	files := c.Files()
	if files[blobName(hash(t, ours))] == nil || files[blobName(hash(t, index))] == nil || files[blobName(hash(t, other))] != nil || len(files) != 2+4 {
		t.Errorf("%d files: want the index and the image for amd64 alone", len(files))
	}
	// A blob of the other architecture is not asked for.
	if err := os.Remove(filepath.Join(dir, blobName(hash(t, other)))); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Source{Path: dir})
	for _, dir := range []string{writeLayout(t, map[string]v1.Image{"x:1": other}), pack(t, writeLayout(t, map[string]v1.Image{"x:1": other}))} {
		_, err := Open(t.Context(), "amd64", []Source{{Path: dir}})
		if !errors.Is(err, ErrArch) || !strings.HasSuffix(err.Error(), dir+": no image for the architecture: want linux/amd64, it is for linux/arm64") {
			t.Errorf("%v, want %v", err, ErrArch)
		}
	}
}

func TestNames(t *testing.T) {
	one, two := image(t, "amd64", "one"), image(t, "amd64", "two")
	h := hash(t, one).String()
	for _, c := range []struct {
		sources []Source
		names   string
		err     string
	}{
		{[]Source{{Path: writeLayout(t, map[string]v1.Image{"nginx:1.29": one})}}, hub() + "/library/nginx:1.29", ""},
		{[]Source{{Name: "nginx", Path: writeLayout(t, map[string]v1.Image{"x:1": one})}}, hub() + "/library/nginx:latest", ""},
		{[]Source{{Name: "localhost:5000/a/b:c", Path: writeLayout(t, map[string]v1.Image{"": one})}}, "localhost:5000/a/b:c", ""},
		{[]Source{{Name: "x@" + h, Path: writeLayout(t, map[string]v1.Image{"": one})}}, hub() + "/library/x@" + h, ""},
		{[]Source{{Path: writeLayout(t, map[string]v1.Image{"x:1": one})}, {Path: writeLayout(t, map[string]v1.Image{"x:1": one, "x:2": one})}}, hub() + "/library/x:1 " + hub() + "/library/x:2", ""},
		{[]Source{{Path: writeLayout(t, map[string]v1.Image{"": one})}}, "", "no usable name for an image: " + h + " says none; give it as NAME="},
		{[]Source{{Path: writeLayout(t, map[string]v1.Image{"1.29": one})}}, "", ""},
		{[]Source{{Path: writeLayout(t, map[string]v1.Image{"latest": one})}}, "", "no usable name for an image: " + h + ` has only the tag "latest"; give it as NAME:latest=`},
		{[]Source{{Name: "A b", Path: writeLayout(t, map[string]v1.Image{"": one})}}, "", "no usable name for an image: " + h + ": could not parse reference: A b"},
		{[]Source{{Name: "x", Path: writeLayout(t, map[string]v1.Image{"x:1": one, "x:2": two})}}, "", "no usable name for an image: x= is for one image, there are 2 for linux/amd64; leave the name out"},
		{[]Source{{Name: "x", Path: writeLayout(t, map[string]v1.Image{"": one})}, {Name: "x:latest", Path: writeLayout(t, map[string]v1.Image{"": two})}}, "",
			"no usable name for an image: " + hub() + "/library/x:latest is " + hash(t, two).String() + ", and " + h + " in "},
	} {
		got, err := Open(t.Context(), "amd64", c.sources)
		if c.names == "" {
			if !errors.Is(err, ErrName) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v: %v, want %s", c.sources, err, c.err)
			}
			continue
		}
		var names []string
		if err == nil {
			for _, i := range got.Images {
				names = append(names, i.Name)
			}
		}
		if strings.Join(names, " ") != c.names {
			t.Errorf("%v: %q, %v; want %s", c.sources, names, err, c.names)
		}
	}
}

// Every blob is compared with its digest, whether it is small or large, in a
// directory or an archive.
func TestDamage(t *testing.T) {
	img := image(t, "amd64", "content")
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]v1.Hash{"manifest": hash(t, img), "configuration": m.Config.Digest, "layer": m.Layers[0].Digest} {
		for _, tarred := range []bool{false, true} {
			dir := writeLayout(t, map[string]v1.Image{"x:1": img})
			file := filepath.Join(dir, blobName(h))
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			path := dir
			if tarred {
				path = pack(t, dir)
				file = path + ":" + blobName(h)
			}
			c, err := Open(t.Context(), "amd64", []Source{{Path: path}})
			if err == nil {
				err = c.Verify(t.Context())
			}
			if want := "content does not have its digest: " + file + ": content is sha256:"; !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ", want "+h.String()) {
				t.Errorf("damaged %s: %v, want %s… and %s", what, err, want, h)
			}
			// One that is too short, or not there.
			if err := os.WriteFile(filepath.Join(dir, blobName(h)), data[:len(data)-1], 0o600); err != nil {
				t.Fatal(err)
			}
			if tarred {
				path = pack(t, dir)
			}
			if _, err = Open(t.Context(), "amd64", []Source{{Path: path}}); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), blobName(h)+" has ") {
				t.Errorf("short %s: %v, want %v", what, err, ErrDigest)
			}
			if err := os.Remove(filepath.Join(dir, blobName(h))); err != nil {
				t.Fatal(err)
			}
			if tarred {
				path = pack(t, dir)
			}
			if _, err = Open(t.Context(), "amd64", []Source{{Path: path}}); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), h.Hex) {
				t.Errorf("missing %s: %v, want %v", what, err, ErrMissing)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	data, err := os.ReadFile(pack(t, writeLayout(t, map[string]v1.Image{"x:1": image(t, "amd64", "x")})))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"x.tar.gz": zipped.Bytes(), "x.txt": []byte("hello"), "cut.tar": data[:len(data)/3]} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ path, want string }{
		{"x.tar.gz", "the archive is compressed with gzip; unpack it with gunzip, its layers are compressed themselves"},
		{"x.txt", "no container images as an OCI layout or from docker save: "},
		{"cut.tar", "no container images as an OCI layout or from docker save: "},
		{".", "it has neither index.json nor manifest.json"},
	} {
		if _, err := Open(t.Context(), "amd64", []Source{{Path: filepath.Join(dir, c.path)}}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.path, err, c.want)
		}
	}
	if _, err := Open(t.Context(), "amd64", []Source{{Path: filepath.Join(dir, "none")}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v", err, fs.ErrNotExist)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, "amd64", []Source{{Path: dir}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// The order of sources means nothing.
func TestDeterministic(t *testing.T) {
	a := Source{Path: writeLayout(t, map[string]v1.Image{"a:1": image(t, "amd64", "a"), "b:1": image(t, "amd64", "b")})}
	b := Source{Name: "c:1", Path: writeLayout(t, map[string]v1.Image{"": image(t, "amd64", "c")})}
	want := mustOpen(t, a, b)
	got := mustOpen(t, b, a)
	if got.Digest() != want.Digest() || !slices.EqualFunc(got.Images, want.Images, func(x, y Image) bool { return x.Name == y.Name && x.Digest == y.Digest }) {
		t.Errorf("%s %+v, want %s %+v", got.Digest(), got.Images, want.Digest(), want.Images)
	}
}

// FuzzTar has archives and layouts of any content read.
func FuzzTar(f *testing.F) {
	img := image(f, "amd64", "x")
	for _, path := range []string{pack(f, writeLayout(f, map[string]v1.Image{"x:1": img})), archive(f, img, "x:1", true), archive(f, img, "x:1", false)} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(t.Context(), "amd64", []Source{{Path: path}})
		if err != nil {
			return
		}
		if c.Verify(t.Context()) != nil {
			return
		}
		// What is good is a layout with all that it names.
		var index v1.IndexManifest
		if err := json.Unmarshal(c.index, &index); err != nil || len(index.Manifests) != len(c.Images) {
			t.Fatalf("%s: %v", c.index, err)
		}
		again, err := Open(t.Context(), "amd64", []Source{{Path: write(t, c)}})
		if err != nil || again.Digest() != c.Digest() {
			t.Fatalf("read again: %v", err)
		}
	})
}

// hub is the registry of names that name none.
func hub() string {
	registry, _ := imagename.Default()
	return registry
}

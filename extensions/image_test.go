package extensions

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/oracle"
)

// opened opens the extension that valid returns.
func opened(t testing.TB, more ...entry) *Extension {
	t.Helper()
	e, err := Open(t.Context(), write(t, archiveOf(t, valid(more...)...)), "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func imageOf(t testing.TB, e *Extension, arch string) v1.Image {
	t.Helper()
	img, err := e.Image(t.Context(), arch, 1_700_000_000)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// foreign is an image as other tools make them: two gzip-compressed layers, the
// upper of which removes a file of the lower.
func foreign(t testing.TB, arch string) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	for _, l := range [][]entry{
		valid(entry{name: "rootfs/usr/share/old", kind: tar.TypeReg, content: "old"}),
		{{name: "rootfs/usr/share/.wh.old", kind: tar.TypeReg}},
	} {
		data := archiveOf(t, l...)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func checkDemo(t *testing.T, what, ref string, limits Limits) {
	t.Helper()
	e, err := Open(t.Context(), ref, "amd64", limits)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if e.RootFS.Lookup("usr/share/old") != nil {
		t.Errorf("%s: a file that an upper layer removes is there", what)
	}
	ino := e.RootFS.Lookup("usr/share/demo")
	if ino == nil {
		t.Errorf("%s: no file", what)
		return
	}
	if data, err := readAll(ino); err != nil || string(data) != "hello" {
		t.Errorf("%s: %q, %v", what, data, err)
	}
	if want := opened(t).Digest; e.Digest != want {
		t.Errorf("%s: digest %s, want %s", what, e.Digest, want)
	}
}

func writeLayout(t testing.TB, index v1.ImageIndex) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "oci")
	if _, err := layout.Write(path, index); err != nil {
		t.Fatal(err)
	}
	return path
}

// tarOf archives a directory with a tar that nobody here wrote.
func tarOf(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.tar")
	if text, err := exec.Command(oracle.Tool(t, "tar"), "-C", dir, "-cf", name, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	return name
}

func TestOpenImages(t *testing.T) {
	multi := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: foreign(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: randomImage(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
	)
	layoutDir := writeLayout(t, multi)
	nested := writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: multi}))
	silent := writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: foreign(t, "arm64")}, mutate.IndexAddendum{Add: foreign(t, "amd64")}))

	saved := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("example.com/demo:1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(saved, tag, foreign(t, "amd64")); err != nil {
		t.Fatal(err)
	}
	var zstdLayout bytes.Buffer
	z, err := zstd.NewWriter(&zstdLayout)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(tarOf(t, layoutDir))
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain)
	z.Close()

	for what, ref := range map[string]string{
		"layout": layoutDir, "nested layout": nested, "layout without platforms": silent, "layout in a tar": tarOf(t, layoutDir),
		"layout in a tar.zst": write(t, zstdLayout.Bytes()), "docker save": saved,
	} {
		checkDemo(t, what, ref, Limits{})
	}
	if _, err := Open(t.Context(), saved, "arm64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/amd64, want linux/arm64") {
		t.Errorf("docker save of another architecture: %v", err)
	}
	if _, err := Open(t.Context(), layoutDir, "riscv64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/arm64, linux/amd64, want linux/riscv64") {
		t.Errorf("index without the architecture: %v", err)
	}
	two := writeLayout(t, mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign(t, "amd64")}, mutate.IndexAddendum{Add: imageOf(t, opened(t), "amd64")}))
	if _, err := Open(t.Context(), two, "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "2 images for linux/amd64") {
		t.Errorf("two images: %v", err)
	}
}

func randomImage(t testing.TB) v1.Image {
	t.Helper()
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestWrongArchitectureInManifest(t *testing.T) {
	text := strings.Replace(manifest, "kernel:\n", "kernel:\n  arch: arm64\n", 1)
	ref := write(t, archiveOf(t, entry{name: "manifest.yaml", kind: tar.TypeReg, content: text}, entry{name: "rootfs", kind: tar.TypeDir, mode: 0o755}))
	if _, err := Open(t.Context(), ref, "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "for linux/arm64, want linux/amd64") {
		t.Error(err)
	}
}

// TestDamagedLayouts changes one byte of every blob in turn, then takes it away.
func TestDamagedLayouts(t *testing.T) {
	for _, img := range []v1.Image{foreign(t, "amd64"), imageOf(t, opened(t), "amd64")} {
		dir := writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
		blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
		if err != nil || len(blobs) < 3 {
			t.Fatalf("%v, %v", blobs, err)
		}
		for _, b := range blobs {
			whole, err := os.ReadFile(b)
			if err != nil {
				t.Fatal(err)
			}
			damaged := bytes.Clone(whole)
			damaged[len(damaged)/3] ^= 1
			for what, data := range map[string][]byte{"changed": damaged, "cut": whole[:len(whole)/2], "empty": nil} {
				if err := os.WriteFile(b, data, 0o644); err != nil {
					t.Fatal(err)
				}
				if _, err := Open(t.Context(), dir, "amd64", Limits{}); err == nil {
					t.Errorf("%s %s: no error", b, what)
				}
			}
			if err := os.Remove(b); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), dir, "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "no blobs/sha256/"+filepath.Base(b)) {
				t.Errorf("%s removed: %v", b, err)
			}
			if err := os.WriteFile(b, whole, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		checkDemo(t, "mended", dir, Limits{})
	}
}

func TestStrangeImages(t *testing.T) {
	data := archiveOf(t, valid()...)
	artifact := mutate.ConfigMediaType(imageOf(t, opened(t), "amd64"), "application/vnd.example.config+json")
	noLayers := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	index := func(img v1.Image) string {
		return writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	}
	deep := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: noLayers})
	for range 5 {
		deep = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: deep})
	}
	many := v1.ImageIndex(empty.Index)
	for range maxImages + 1 {
		many = mutate.AppendManifests(many, mutate.IndexAddendum{Add: noLayers})
	}
	lying, err := mutate.AppendLayers(noLayers, uncompressed{static.NewLayer(data, types.OCIUncompressedLayer)})
	if err != nil {
		t.Fatal(err)
	}
	config, err := lying.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if lying, err = mutate.ConfigFile(lying, config); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct{ ref, want string }{
		"artifact":        {index(artifact), `an OCI artifact with a configuration of type "application/vnd.example.config+json", want an image`},
		"no image":        {writeLayout(t, empty.Index), "the OCI index names no image"},
		"no platform":     {index(noLayers), "for /, want linux/amd64"},
		"deep":            {writeLayout(t, deep), "nested more than 2 deep"},
		"many":            {writeLayout(t, many), "more than 256 images"},
		"wrong diff ID":   {index(lying), "content is sha256:"},
		"garbage index":   {write(t, archiveOf(t, entry{name: "oci-layout", kind: tar.TypeReg, content: "{}"}, entry{name: "index.json", kind: tar.TypeReg, content: "["})), "OCI index"},
		"no index":        {write(t, archiveOf(t, entry{name: "oci-layout", kind: tar.TypeReg, content: "{}"})), "no file index.json"},
		"garbage saved":   {write(t, archiveOf(t, entry{name: "manifest.json", kind: tar.TypeReg, content: "{"})), "manifest.json: "},
		"nothing saved":   {write(t, archiveOf(t, entry{name: "manifest.json", kind: tar.TypeReg, content: "[]"})), "manifest.json names no image"},
		"no saved layer":  {write(t, archiveOf(t, entry{name: "manifest.json", kind: tar.TypeReg, content: `[{"Config":"c","Layers":["../../l"]}]`}, entry{name: "c", kind: tar.TypeReg, content: `{"os":"linux","architecture":"amd64"}`})), `no layer "../../l"`},
		"no saved config": {write(t, archiveOf(t, entry{name: "manifest.json", kind: tar.TypeReg, content: `[{"Config":"/etc/passwd"}]`})), "no file /etc/passwd"},
		"in a directory":  {write(t, archiveOf(t, entry{name: "x/manifest.yaml", kind: tar.TypeReg, content: manifest})), "manifest.yaml is in x/, want it at the top"},
		"another tar":     {write(t, archiveOf(t, entry{name: "a", kind: tar.TypeReg}, entry{name: "b", kind: tar.TypeReg})), "no manifest.yaml at the top, nor is it an OCI image layout"},
	} {
		if _, err := Open(t.Context(), tt.ref, "amd64", Limits{}); err == nil || !strings.Contains(err.Error(), tt.want) || !(errors.Is(err, ErrFormat) || errors.Is(err, ErrHostile)) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
}

// uncompressed is a layer that lies about what it holds.
type uncompressed struct{ v1.Layer }

func (uncompressed) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}, nil
}

func TestForeignFiles(t *testing.T) {
	at := func(off int, magic string) string {
		data := make([]byte, 16<<10)
		copy(data[off:], magic)
		return write(t, data)
	}
	for what, tt := range map[string]struct{ ref, want string }{
		"DDI":    {at(512, "EFI PART"), "a disk image with a partition table (a DDI); want the squashfs image"},
		"4K DDI": {at(4096, "EFI PART"), "a disk image with a partition table (a DDI)"},
		"EROFS":  {at(1024, "\xe2\xe1\xf5\xe0"), "an EROFS image; want a squashfs image"},
		"ext4":   {at(1080, "\x53\xef"), "an ext4 image; want a squashfs image"},
		"xz":     {at(0, "\xfd7zXZ\x00"), "compressed with xz; want gzip, zstd"},
		"bzip2":  {at(0, "BZh9"), "compressed with bzip2; want gzip, zstd"},
		"zip":    {at(0, "PK\x03\x04"), "a zip archive; want a tar"},
		"ELF":    {at(0, "\x7fELF"), "an ELF file; kernel modules are made an extension with 'kiln extension build'"},
	} {
		if _, err := Open(t.Context(), tt.ref, "amd64", Limits{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", what, err, tt.want)
		}
	}
	// Magic numbers in the contents of a tar mean nothing.
	data := archiveOf(t, valid()...)
	if i := bytes.Index(data, []byte("kernel:")); i < 512 || i+8 > 1024 {
		t.Fatalf("manifest at %d", i)
	}
	trap := archiveOf(t, entry{name: "rootfs/usr/share/x", kind: tar.TypeReg, content: "EFI PART" + strings.Repeat("x", 504) + "\xe2\xe1\xf5\xe0"}, valid()[0])
	if _, err := Open(t.Context(), write(t, trap), "amd64", Limits{}); err != nil {
		t.Error(err)
	}
}

// checkImage compares the layers with what the configuration says of them.
func checkImage(t *testing.T, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
		t.Fatalf("%d layers, %d IDs, %v", len(layers), len(config.RootFS.DiffIDs), err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if h, _, err := v1.SHA256(rc); err != nil || h != config.RootFS.DiffIDs[0] {
		t.Errorf("layer %s, %v; want %s", h, err, config.RootFS.DiffIDs[0])
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Created.Unix() != 1_700_000_000 {
		t.Errorf("configuration %+v", config)
	}
}

// TestSave stores one extension in all forms, and reads them with another
// implementation.
func TestSave(t *testing.T) {
	e := opened(t, entry{name: "rootfs/usr/bin/hard", kind: tar.TypeLink, content: "rootfs/usr/share/demo"})
	e.Manifest.Metadata.Version, e.Manifest.Metadata.License, e.Manifest.Metadata.Description = "1.0.0+x", "MIT", "a demo"
	img := imageOf(t, e, "amd64")
	checkImage(t, img)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	layoutDir, tarFile := filepath.Join(dir, "layout"), filepath.Join(dir, "x.tar")
	if err := errors.Join(ocilayout.Write(layoutDir, img), SaveTar(t.Context(), tarFile, img)); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(dir, "again.tar")
	if err := SaveTar(t.Context(), again, imageOf(t, e, "amd64")); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(tarFile)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(again); err != nil || !bytes.Equal(a, b) {
		t.Errorf("written twice it is another tar (%v)", err)
	}
	unpacked := filepath.Join(dir, "unpacked")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command(oracle.Tool(t, "tar"), "-C", unpacked, "-xf", tarFile).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	for _, path := range []string{layoutDir, unpacked} {
		index, err := layout.ImageIndexFromPath(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := index.IndexManifest()
		if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != digest || m.Manifests[0].Platform.Architecture != "amd64" {
			t.Errorf("%s: index %+v, %v; want image %s", path, m, err, digest)
			continue
		}
		stored, err := index.Image(digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, stored)
	}
	docker, err := tarball.ImageFromPath(tarFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, docker)
	wantID, _ := img.ConfigName()
	if id, err := docker.ConfigName(); err != nil || id != wantID {
		t.Errorf("docker would call it %s, %v; want %s", id, err, wantID)
	}
	if l, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(tarFile) }); err != nil || len(l) != 1 || l[0].RepoTags[0] != "demo:1.0.0-x" {
		t.Errorf("docker manifest %+v, %v", l, err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{annotationTitle: "demo", annotationVersion: "1.0.0+x", annotationLicenses: "MIT", annotationDescription: "a demo"} {
		if m.Annotations[key] != want {
			t.Errorf("%s = %q, want %q", key, m.Annotations[key], want)
		}
	}
	if len(m.Annotations) != 4 {
		t.Errorf("annotations %v", m.Annotations)
	}
	for _, path := range []string{layoutDir, tarFile} {
		got, err := Open(t.Context(), path, "amd64", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got.ImageDigest != digest.String() || got.Digest != e.Digest {
			t.Errorf("%s: image %s, extension %s; want %s, %s", path, got.ImageDigest, got.Digest, digest, e.Digest)
		}
		if h, err := imageOf(t, got, "amd64").Digest(); err != nil || h != digest {
			t.Errorf("%s: stored again it is %s, %v", path, h, err)
		}
	}
	// Contents stay in an uncompressed layer, also in a layout in a tar.
	got, err := Open(t.Context(), tarFile, "amd64", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := got.RootFS.Lookup("usr/share/demo").Content.(*io.SectionReader); !ok {
		t.Errorf("content is a %T", got.RootFS.Lookup("usr/share/demo").Content)
	}
	if text, err := io.ReadAll(extent.Reader(got.RootFS.Lookup("usr/bin/hard").Content)); err != nil || string(text) != "hello" {
		t.Errorf("%q, %v", text, err)
	}
}

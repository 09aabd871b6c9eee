package ocidisk

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const mib = 1 << 20

func config() Config {
	return Config{
		Architecture: "arm64", Created: time.Unix(1_700_000_000, 5), CreatedBy: "a test",
		Entrypoint: []string{"/kiln"}, Cmd: []string{"install"}, Env: []string{"PATH=/"}, WorkingDir: "/",
		Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"org.opencontainers.image.title": "kiln"},
	}
}

func files(t testing.TB) *tree.Tree {
	t.Helper()
	f := tree.New()
	shared := &tree.Inode{Mode: 0o755 | fs.ModeSetuid, UID: 3, GID: 4, ModTime: 1_600_000_000, Content: extent.Bytes(bytes.Repeat([]byte("kiln "), 300_000)),
		Xattrs: map[string][]byte{"user.b": {0, 1}, "user.a": []byte("x")}}
	for _, e := range []struct {
		name string
		ino  *tree.Inode
	}{
		{"bin", &tree.Inode{Mode: fs.ModeDir | 0o755}},
		{"bin/kiln", shared},
		{"bin/kiln2", shared},
		{"bin/sh", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "kiln"}},
		{"dev", &tree.Inode{Mode: fs.ModeDir | fs.ModeSticky | 0o777}},
		{"dev/null", &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3}},
		{"dev/loop0", &tree.Inode{Mode: fs.ModeDevice | 0o660, Major: 7}},
		{"dev/pipe", &tree.Inode{Mode: fs.ModeNamedPipe | 0o600}},
		{"empty", &tree.Inode{Mode: 0o600, ModTime: 7}},
		{strings.Repeat("long", 50), &tree.Inode{Mode: 0o644, UID: 3_000_000, Content: extent.Bytes([]byte("ä"))}},
	} {
		if err := f.Add(e.name, e.ino); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func makeLayer(t testing.TB, f *tree.Tree, c Compression) v1.Layer {
	t.Helper()
	l, err := Layer(context.Background(), f, c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func makeImage(t testing.TB, c Compression) v1.Image {
	t.Helper()
	two := tree.New()
	if err := two.Add("version", &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte("2"))}); err != nil {
		t.Fatal(err)
	}
	img, err := Image(config(), makeLayer(t, files(t), c), makeLayer(t, two, c))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// valid computes the digests and sizes of an image again. The library does so for
// layers that are gzip-compressed only.
func valid(t *testing.T, img v1.Image, c Compression) {
	t.Helper()
	if c == Gzip {
		if err := validate.Image(img); err != nil {
			t.Errorf("%q: %v", c, err)
		}
		return
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Errorf("%q: %v", c, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		digest, size, _ := v1.SHA256(bytes.NewReader(b))
		wantDigest, err := l.Digest()
		wantSize, sizeErr := l.Size()
		if errors.Join(err, sizeErr) != nil || digest != wantDigest || size != wantSize {
			t.Errorf("%q: a layer of %d bytes, %s, want %d, %s", c, size, digest, wantSize, wantDigest)
		}
		if c == Zstd {
			cmd := exec.Command(oracle.Tool(t, "zstd"), "-dc")
			cmd.Stdin = bytes.NewReader(b)
			if b, err = cmd.Output(); err != nil {
				t.Fatal(err)
			}
		}
		diffID, _, _ := v1.SHA256(bytes.NewReader(b))
		if want, err := l.DiffID(); err != nil || diffID != want {
			t.Errorf("%q: unpacked it is %s, want %s", c, diffID, want)
		}
	}
}

// validIndex is valid for the only image of an index.
func validIndex(t *testing.T, index v1.ImageIndex, c Compression) {
	t.Helper()
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Errorf("%q: %v", c, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	valid(t, img, c)
}

// The library computes all digests and sizes again, from what is stored.
func TestStoredImagesAreValid(t *testing.T) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		img := makeImage(t, c)
		valid(t, img, c)
		want, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := SaveLayout(filepath.Join(dir, "layout"), img); err != nil {
			t.Fatal(err)
		}
		index, err := layout.ImageIndexFromPath(filepath.Join(dir, "layout"))
		if err != nil {
			t.Fatal(err)
		}
		validIndex(t, index, c)
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
		if c == Gzip { // it compresses what is not, to validate it
			valid(t, docker, c)
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
		if index, err = layout.ImageIndexFromPath(unpacked); err != nil {
			t.Fatal(err)
		}
		validIndex(t, index, c)
		m, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		d := m.Manifests[0]
		if len(m.Manifests) != 1 || d.Digest != want || d.Platform.Architecture != "arm64" || d.Annotations[annotationTag] != "1.2" {
			t.Errorf("%q: index %+v, want %s", c, m.Manifests, want)
		}
	}
}

// GNU tar unpacks layers, and lists them with all that there is.
func TestGNUTarListsLayer(t *testing.T) {
	for _, c := range []struct {
		compression Compression
		flag        string
	}{{None, "-tvf"}, {Gzip, "-tzvf"}, {Zstd, "-tv --zstd -f"}} {
		r, err := makeLayer(t, files(t), c.compression).Compressed()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(oracle.Tool(t, "tar"), append(strings.Fields(c.flag), "-", "--numeric-owner", "--xattrs", "--full-time")...)
		cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=" + os.Getenv("PATH")}
		cmd.Stdin = r
		out, err := cmd.CombinedOutput()
		r.Close()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want := strings.Join([]string{
			"drwxr-xr-x 0/0               0 1970-01-01 00:00:00 bin/",
			"-rwsr-xr-x* 3/4         1500000 2020-09-13 12:26:40 bin/kiln",
			"hrwsr-xr-x 3/4               0 2020-09-13 12:26:40 bin/kiln2 link to bin/kiln",
			"lrwxrwxrwx 0/0               0 1970-01-01 00:00:00 bin/sh -> kiln",
			"drwxrwxrwt 0/0               0 1970-01-01 00:00:00 dev/",
			"brw-rw---- 0/0             7,0 1970-01-01 00:00:00 dev/loop0",
			"crw-rw-rw- 0/0             1,3 1970-01-01 00:00:00 dev/null",
			"prw------- 0/0               0 1970-01-01 00:00:00 dev/pipe",
			"-rw------- 0/0               0 1970-01-01 00:00:07 empty",
			"-rw-r--r-- 3000000/0         2 1970-01-01 00:00:00 " + strings.Repeat("long", 50),
		}, "\n") + "\n"
		if got := strings.Join(strings.Fields(string(out)), " "); got != strings.Join(strings.Fields(want), " ") {
			t.Errorf("%s lists\n%s\nwant\n%s", c.flag, out, want)
		}
	}
}

func TestXattrs(t *testing.T) {
	r, err := makeLayer(t, files(t), None).Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	x := tar.NewReader(r)
	for {
		h, err := x.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "bin/kiln" {
			if h.PAXRecords["SCHILY.xattr.user.a"] != "x" || h.PAXRecords["SCHILY.xattr.user.b"] != "\x00\x01" {
				t.Errorf("%q", h.PAXRecords)
			}
			return
		}
	}
}

// Two images with the same tree share its layer, whatever else is in them.
func TestLayersAreShared(t *testing.T) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		want, err := makeLayer(t, files(t), c).Digest()
		if err != nil {
			t.Fatal(err)
		}
		old := runtime.GOMAXPROCS(1)
		got, err := makeLayer(t, files(t), c).Digest()
		runtime.GOMAXPROCS(old)
		if err != nil || got != want {
			t.Errorf("%q: %s (%v), want %s", c, got, err, want)
		}
	}
}

func TestSameBytes(t *testing.T) {
	archive := func(c Config) []byte {
		img, err := Image(c, makeLayer(t, files(t), Gzip))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := WriteArchive(context.Background(), &b, img, "kiln:1"); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	c := config()
	want := archive(c)
	c.Created = c.Created.In(time.FixedZone("far", -11*3600))
	if !bytes.Equal(archive(c), want) {
		t.Error("other bytes in another time zone")
	}
}

func TestConfig(t *testing.T) {
	img := makeImage(t, None)
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.OS != "linux" || c.Architecture != "arm64" || c.Created.Unix() != 1_700_000_000 || c.Config.Entrypoint[0] != "/kiln" ||
		c.Config.Cmd[0] != "install" || c.Config.Labels["a"] != "1" || len(c.RootFS.DiffIDs) != 2 || len(c.History) != 2 {
		t.Errorf("%+v", c)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != "application/vnd.oci.image.manifest.v1+json" || m.Annotations["org.opencontainers.image.title"] != "kiln" {
		t.Errorf("%+v", m)
	}
	if _, err := Image(Config{}); !errors.Is(err, ErrInvalid) || err.Error() != "cannot be in an OCI image: an image without an architecture" {
		t.Errorf("no architecture: %v", err)
	}
}

func TestTags(t *testing.T) {
	for _, c := range []struct{ tag, repoTag, whole string }{
		{"kiln:1.2", "kiln:1.2", "docker.io/library/kiln:1.2"},
		{"some/kiln", "some/kiln:latest", "docker.io/some/kiln:latest"},
		{"example.com/kiln:v1", "example.com/kiln:v1", "example.com/kiln:v1"},
		{"", "", ""},
	} {
		var b bytes.Buffer
		if err := WriteArchive(context.Background(), &b, makeImage(t, None), c.tag); err != nil {
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
	if err := WriteArchive(context.Background(), io.Discard, makeImage(t, None), "no tag:"); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad tag: %v", err)
	}
}

func TestContainerDisk(t *testing.T) {
	disk := extent.New(10*mib + 512)
	if err := disk.PutBytes(3*mib+17, bytes.Repeat([]byte("disk"), 100)); err != nil {
		t.Fatal(err)
	}
	for _, compression := range []Compression{None, Gzip} {
		img, err := ContainerDisk(context.Background(), "disk.img", disk, config(), compression)
		if err != nil {
			t.Fatal(err)
		}
		valid(t, img, compression)
		r := mutate.Extract(img)
		cmd := exec.Command(oracle.Tool(t, "tar"), "-tv", "--numeric-owner", "-f", "-")
		cmd.Env = []string{"LC_ALL=C", "TZ=UTC"}
		cmd.Stdin = r
		out, err := cmd.CombinedOutput()
		r.Close()
		want := "drwxr-xr-x 107/107 0 2023-11-14 22:13 disk -r--r--r-- 107/107 10486272 2023-11-14 22:13 disk/disk.img"
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
		r = mutate.Extract(img)
		x := tar.NewReader(r)
		for {
			h, err := x.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				break
			}
		}
		got, err := io.ReadAll(x)
		r.Close()
		var content bytes.Buffer
		if _, werr := disk.WriteTo(&content); errors.Join(err, werr) != nil || !bytes.Equal(got, content.Bytes()) {
			t.Errorf("%v, %v, or other bytes", err, werr)
		}
		size, err := img.Layers()
		if n, _ := size[0].Size(); err != nil || compression == Gzip && n > 20_000 {
			t.Errorf("the layer has %d bytes", n)
		}
	}
	for _, name := range []string{"", ".", "../x", "a/b"} {
		if _, err := ContainerDisk(context.Background(), name, disk, config(), None); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want %v", name, err, ErrInvalid)
		}
	}
}

type failing struct{ extent.Source }

var errFailing = errors.New("disk on fire")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }
func (failing) Size() int64                       { return 10 * mib }

func TestErrors(t *testing.T) {
	for _, c := range []Compression{None, Gzip} {
		if _, err := ContainerDisk(context.Background(), "disk.img", failing{}, config(), c); !errors.Is(err, errFailing) {
			t.Errorf("%v, want %v", err, errFailing)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Layer(ctx, files(t), c); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want %v", err, context.Canceled)
		}
		if err := WriteArchive(ctx, io.Discard, makeImage(t, c), ""); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want %v", err, context.Canceled)
		}
	}
	f := tree.New()
	if err := f.Add("sock", &tree.Inode{Mode: fs.ModeSocket | 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := Layer(context.Background(), f, None); !errors.Is(err, ErrInvalid) || err.Error() != "cannot be in an OCI image: sock is a S---------" {
		t.Errorf("socket: %v", err)
	}
	if _, err := Layer(context.Background(), files(t), "lzma"); !errors.Is(err, ErrInvalid) {
		t.Errorf("lzma: %v", err)
	}
	// A reader that is not read to its end leaves nothing running.
	r, err := makeLayer(t, files(t), Gzip).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

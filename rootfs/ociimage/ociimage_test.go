package ociimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
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

// The library computes all digests and sizes again.
func TestImagesAreValid(t *testing.T) {
	for _, c := range []Compression{None, Gzip, Zstd} {
		valid(t, makeImage(t, c), c)
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
	digest := func(c Config) v1.Hash {
		img, err := Image(c, makeLayer(t, files(t), Gzip))
		if err != nil {
			t.Fatal(err)
		}
		h, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	c := config()
	want := digest(c)
	c.Created = c.Created.In(time.FixedZone("far", -11*3600))
	if got := digest(c); got != want {
		t.Errorf("in another time zone: %s, want %s", got, want)
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

type failing struct{ extent.Source }

var errFailing = errors.New("disk on fire")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }
func (failing) Size() int64                       { return 10 * mib }

func TestErrors(t *testing.T) {
	for _, c := range []Compression{None, Gzip} {
		broken := tree.New()
		if err := broken.Add("disk.img", &tree.Inode{Content: failing{}}); err != nil {
			t.Fatal(err)
		}
		if _, err := Layer(context.Background(), broken, c); !errors.Is(err, errFailing) {
			t.Errorf("%v, want %v", err, errFailing)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Layer(ctx, files(t), c); !errors.Is(err, context.Canceled) {
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

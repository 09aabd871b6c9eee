//go:build linux

package installer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// An entry is a file of an archive.
type entry struct {
	name    string
	kind    byte
	content string // of a link, where it leads
	mode    int64
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode}
		switch e.kind {
		case 0:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		case tar.TypeLink, tar.TypeSymlink:
			h.Linkname = e.content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func blobOf(data []byte) entry {
	return entry{name: "blobs/sha256/" + digest(data)[7:], content: string(data)}
}

const tool = "#!tool"

// image is a layout whose last entry is the first layer.
func image(t testing.TB, arch string, layers ...[]byte) []entry {
	t.Helper()
	if layers == nil {
		layers = [][]byte{
			archive(t, entry{name: "kiln", kind: tar.TypeDir}, entry{name: "kiln/a", content: "old"}, entry{name: "kiln/b", content: "B"}, entry{name: "kiln/c/link", kind: tar.TypeLink, content: "kiln/b"}),
			pack(t, archive(t, entry{name: "/usr/bin/kiln", content: tool, mode: 0o755}, entry{name: "kiln/a", content: "A"})),
		}
	}
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Env":["PATH=/usr/bin","KILN_SOURCE=/kiln"],"Entrypoint":["/usr/bin/kiln"]}}`, arch)
	m := manifest{Config: descriptor{Digest: digest([]byte(config))}}
	var out []entry
	for _, l := range layers {
		m.Layers = append(m.Layers, descriptor{Digest: digest(l)})
		out = append([]entry{blobOf(l)}, out...)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf(`{"manifests":[{"digest":%q,"platform":{"os":"linux","architecture":%q}}]}`, digest(data), arch)
	return append([]entry{{name: "index.json", content: index}, blobOf(data), blobOf([]byte(config))}, out...)
}

func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unpack(t testing.TB, data []byte) (*Image, error) {
	t.Helper()
	return New(t.TempDir(), "amd64").Archive(t.Context(), bytes.NewReader(data))
}

// Later layers replace files of earlier ones; only programs are executable.
func TestArchive(t *testing.T) {
	img, err := unpack(t, archive(t, image(t, "amd64")...))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{img.Tool: tool, img.Source + "/a": "A", img.Source + "/b": "B", img.Source + "/c/link": "B"} {
		data, err := os.ReadFile(name)
		if err != nil || string(data) != want {
			t.Errorf("%s: %q, %v; want %q", name, data, err, want)
		}
		fi, err := os.Stat(name)
		if executable := name == img.Tool; err != nil || fi.Mode() != 0o600|map[bool]fs.FileMode{true: 0o100}[executable] {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

// What kiln itself writes.
func TestArchiveOfKiln(t *testing.T) {
	files := tree.New()
	for name, content := range map[string]string{"usr/bin/kiln": tool, "kiln/source.json": "{}"} {
		if err := files.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := files.Add(name, &tree.Inode{Mode: 0o755, Content: strings.NewReader(content)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []ociimage.Compression{ociimage.None, ociimage.Gzip} {
		l, err := ociimage.Layer(t.Context(), files, c)
		if err != nil {
			t.Fatal(err)
		}
		img, err := ociimage.Image(ociimage.Config{Architecture: "amd64", Entrypoint: []string{"/usr/bin/kiln"}, Env: []string{"KILN_SOURCE=/kiln"}}, l)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := ocilayout.WriteArchive(t.Context(), &out, img, "kiln:1"); err != nil {
			t.Fatal(err)
		}
		got, err := unpack(t, out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(got.Source, "source.json")); err != nil || string(data) != "{}" {
			t.Errorf("%q, %v", data, err)
		}
	}
}

func TestArchiveErrors(t *testing.T) {
	files := func(e ...entry) []byte { return archive(t, image(t, "amd64", archive(t, e...))...) }
	whole := image(t, "amd64")
	damaged := image(t, "amd64")
	damaged[3].content = strings.Replace(damaged[3].content, "a", "b", 1)
	var digests []string
	for _, e := range whole {
		digests = append(digests, "sha256:"+filepath.Base(e.name))
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"another architecture": {archive(t, image(t, "arm64")...), "it is for linux/arm64, want linux/amd64"},
		"no archive":           {bytes.Repeat([]byte("kiln"), 1000), "it is no tar archive: archive/tar: invalid tar header"},
		"empty archive":        {archive(t), "it has no index.json; want what 'kiln build installer' or, since version 25, 'docker save' writes"},
		"no layer":             {archive(t, whole[:4]...), "layer " + digests[4] + " is missing"},
		"no manifest":          {archive(t, whole[0]), "blob " + digests[1] + " is missing"},
		"a way out":            {files(entry{name: "a", kind: tar.TypeSymlink, content: "/etc"}), "entry of type '2', want files and directories"},
		"a device":             {files(entry{name: "a", kind: tar.TypeChar}), "entry of type '3', want files and directories"},
		"a whiteout":           {files(entry{name: "kiln/.wh.a"}), "a layer that removes files of others"},
		"no program":           {files(entry{name: "kiln/a"}), "it has no program usr/bin/kiln"},
		"no source":            {files(entry{name: "usr/bin/kiln"}), "it has no directory kiln"},
		"another image": {archive(t, append([]entry{blobOf([]byte(`{"architecture":"amd64","os":"linux"}`))},
			entry{name: "index.json", content: `{"config":{"digest":"` + digest([]byte(`{"architecture":"amd64","os":"linux"}`)) + `"},"layers":[{}]}`})...),
			"its configuration has no KILN_SOURCE, or no entry point; 'kiln build installer' makes one"},
		"zstd": {archive(t, entry{name: "blobs/sha256/" + strings.Repeat("0", 64), content: "\x28\xb5\x2f\xfd" + strings.Repeat("x", 600)}), "a layer is compressed with zstd, want gzip or nothing"},
	} {
		img, err := unpack(t, c.data)
		if !errors.Is(err, ErrImage) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %+v, %v; want %s", name, img, err, c.want)
		}
	}
	if _, err := unpack(t, archive(t, damaged...)); !errors.Is(err, ErrImage) {
		t.Errorf("damaged: %v", err)
	}
	data := archive(t, whole...)
	for _, n := range []int{600, len(data) / 2, len(data) - 3000} {
		if img, err := unpack(t, data[:n]); err == nil {
			t.Errorf("%d of %d bytes: %+v", n, len(data), img)
		}
	}
}

// A damaged layer is found by its digest, whatever is damaged.
func TestDigest(t *testing.T) {
	data := archive(t, entry{name: "kiln/a", content: "A"})
	u := New(t.TempDir(), "amd64")
	wrong := digest([]byte("another"))
	err := u.Blob(t.Context(), wrong, bytes.NewReader(data))
	if want := "blob " + wrong + " has the digest " + digest(data) + ": it is damaged"; !errors.Is(err, ErrImage) || !strings.HasSuffix(fmt.Sprint(err), want) {
		t.Errorf("%v, want %s", err, want)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if err := u.Blob(ctx, digest(data), bytes.NewReader(data)); !errors.Is(err, gone) {
		t.Errorf("%v, want %v", err, gone)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(archive(f, image(f, "amd64")...))
	f.Add(archive(f, image(f, "amd64", archive(f, entry{name: "../../a", content: "x"}, entry{name: "b", kind: tar.TypeLink, content: "../../../etc/passwd"}))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		dir := t.TempDir()
		inner := filepath.Join(dir, "inner")
		if err := os.Mkdir(inner, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = New(inner, "amd64").Archive(t.Context(), bytes.NewReader(data))
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("files beside the directory: %v, %v", entries, err)
		}
	})
}

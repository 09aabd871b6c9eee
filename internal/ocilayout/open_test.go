package ocilayout

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/ociimage"
)

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	img := makeImage(t, ociimage.None)
	if err := Write(dir, img); err != nil {
		t.Fatal(err)
	}
	m, err := Open(dir, "arm64")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := img.Digest(); err != nil || m.Digest != h || len(m.Layers) != 2 {
		t.Errorf("%s with %d layers, want %s with 2", m.Digest, len(m.Layers), h)
	}
	config, err := m.ReadBlob(m.Config, 1<<20)
	if want, _ := img.RawConfigFile(); err != nil || string(config) != string(want) {
		t.Errorf("configuration %s, %v; want %s", config, err, want)
	}
	if _, err := m.ReadBlob(m.Config, m.Config.Size-1); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "want at most") {
		t.Errorf("over the limit: %v", err)
	}
	for _, l := range m.Layers {
		src, err := m.Blob(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(t.Context(), src, l.Digest); err != nil {
			t.Error(err)
		}
		if err := Verify(t.Context(), src, m.Digest); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "content is "+l.Digest.String()+", want "+m.Digest.String()) {
			t.Errorf("another digest: %v", err)
		}
	}
	if err := Verify(t.Context(), extent.Bytes(nil), v1.Hash{Algorithm: "sha256", Hex: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	const (
		mark   = `{"imageLayoutVersion":"1.0.0"}`
		digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" // of {}
		entry  = `{"manifests":[{"digest":"` + digest + `","size":2`
	)
	for _, c := range []struct{ mark, index, manifest, want string }{
		{"", "", "", "oci-layout: no such file"},
		{"x", "", "", "oci-layout: invalid character"},
		{`{"imageLayoutVersion":"2.0"}`, "", "", `version "2.0", want 1.0.0`},
		{mark, "", "", "index.json: no such file"},
		{mark, "[]", "", "index.json: json: cannot unmarshal"},
		{mark, "{}", "", "index.json is empty"},
		{mark, entry + `,"platform":{"architecture":"riscv64"}}]}`, "{}", `nothing in it for arm64: it is for ["riscv64"]`},
		{mark, entry + `}]}`, "", "no such file"},
		{mark, entry + `}]}`, "{ }", digest + " has 3 bytes, the manifest says 2; it is damaged, make or copy it again"},
		{mark, entry + `}]}`, "[]", "manifest: invalid OCI layout: content is sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945, want " + digest},
		{mark, strings.Replace(entry, "sha256:", "sha512:", 1) + `}]}`, "", "index.json: wrong number of hex digits"},
		{mark, `{"manifests":[{"size":2}]}`, "", `digest ":", want sha256:…`},
		{mark, `{"manifests":[{"digest":"sha256:../x"}]}`, "", "index.json: found non-hex character"},
		{mark, strings.Repeat(" ", maxManifest) + "{}", "", "want at most 4194304"},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{
			"oci-layout": c.mark, "index.json": c.index, "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:"): c.manifest,
		} {
			if content == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(dir, "arm64"); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(file, "arm64"); !errors.Is(err, ErrFormat) {
			t.Errorf("a file: %v", err)
		}
	}
}

// Whatever index and manifest say, nothing but blobs of the layout is opened.
func FuzzOpen(f *testing.F) {
	const blob = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	dir := f.TempDir()
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		f.Fatal(err)
	}
	for name, content := range map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "blobs/sha256/" + blob: "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte(`{"manifests":[{"digest":"sha256:`+blob+`","size":2}]}`), []byte(`{"layers":[{"digest":"sha256:`+blob+`","size":2}]}`))
	f.Add([]byte(`{"manifests":[{"platform":{"architecture":"arm64"}},{"size":-1}]}`), []byte(`{"config":{"digest":"sha256:../../oci-layout","size":30}}`))
	f.Add([]byte(`[]`), []byte("{"))
	f.Fuzz(func(t *testing.T, index, manifest []byte) {
		if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := Open(dir, "amd64"); err == nil && m.Digest.Hex != blob {
			t.Errorf("opened %s", m.Digest)
		}
		m := &Manifest{dir: dir}
		if err := json.Unmarshal(manifest, &m.Manifest); err != nil {
			return
		}
		for _, d := range append(m.Layers, m.Config) {
			if src, err := m.Blob(d); err == nil && src.Path() != filepath.Join(blobs, blob) {
				t.Errorf("%s: opened %s", d.Digest, src.Path())
			}
		}
	})
}

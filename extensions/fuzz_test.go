package extensions

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(manifest))
	f.Add([]byte(fullManifest))
	f.Add([]byte("version: v1alpha1\nmetadata:\n  name: x\n  version: 1.10\n  compatibility:\n    talos:\n      version: \">= v1.5.0\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := ParseManifest("m", data); err == nil && m.Validate() != nil {
			t.Error("ParseManifest returned an invalid manifest")
		}
	})
}

func FuzzUntar(f *testing.F) {
	f.Add(archiveOf(f, valid()...), false)
	f.Add(archiveOf(f, valid(entry{name: "rootfs/l", kind: tar.TypeSymlink, content: "../x"}, entry{name: "rootfs/.wh.usr", kind: tar.TypeReg})...), true)
	f.Add(with(f, tar.Header{Name: "rootfs/usr/" + strings.Repeat("x", 200), Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrRecord + "user.x": "y"}}), false)
	f.Fuzz(func(t *testing.T, data []byte, layer bool) {
		limits := Limits{Entries: 1000, Bytes: 1 << 20}
		data = sum(data)
		tr := tree.New()
		if err := untar(bytes.NewReader(data), bytes.NewReader(data), tr, layer, limits); err != nil {
			return
		}
		if tr.Len() > limits.Entries {
			t.Errorf("%d entries", tr.Len())
		}
		for name, ino := range tr.All() {
			if !tree.Valid(name) || ino.Size() > limits.Bytes {
				t.Errorf("path %q of %d bytes", name, ino.Size())
			}
		}
		e, err := fromTree(tr, "amd64", limits.withDefaults())
		if err != nil {
			return
		}
		for name, ino := range e.RootFS.All() {
			if !e.allowed(name) || ino.Mode.Perm()&0o002 != 0 && ino.Mode.IsRegular() {
				t.Errorf("%s %v is in an extension", name, ino.Mode)
			}
		}
		if _, err := e.Image(t.Context(), "amd64", 0); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

// sum makes the checksums of headers right, without which nothing that fuzzing
// changes would be looked at.
func sum(data []byte) []byte {
	data = bytes.Clone(data)
	for b := data; len(b) >= 512; b = b[512:] {
		if string(b[257:262]) != "ustar" {
			continue
		}
		copy(b[148:156], "        ")
		n := 0
		for _, c := range b[:512] {
			n += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", n))
	}
	return data
}

func (e *Extension) allowed(name string) bool {
	return name == "." || Limits{}.withDefaults().allowed(name, e.RootFS.Lookup(name).Mode.IsDir())
}

func FuzzParseRelease(f *testing.F) {
	f.Add(release)
	f.Add("A='it'\\''s'\nB=\"\\\"\"\n")
	f.Fuzz(func(t *testing.T, data string) {
		fields, err := parseRelease(data)
		if err != nil {
			return
		}
		for key, value := range fields {
			if key == "" || len(key)+len(value) > len(data) {
				t.Errorf("%q = %q", key, value)
			}
		}
	})
}

func hash(data []byte) []byte {
	h := sha256.Sum256(data)
	return h[:]
}

// FuzzLayout reads an OCI image layout of which index, manifest, configuration
// and layer are whatever, and the same as an image from docker save. HASH in a
// text is the digest of the next, LAYER and DIFF are those of the layer.
func FuzzLayout(f *testing.F) {
	layer := archiveOf(f, valid()...)
	f.Add(
		[]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:HASH","platform":{"os":"linux","architecture":"amd64"}}]}`),
		[]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":1,"digest":"sha256:HASH"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":"sha256:LAYER"}]}`),
		[]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:DIFF"]}}`),
		layer)
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":-1,"digest":"sha256:HASH"}]}`),
		[]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","size":1,"digest":"sha256:"}]}`), []byte("{}"), []byte{0x1f, 0x8b})
	f.Add([]byte(`[{"Config":"config","Layers":["layer"]}]`), []byte(""), []byte(`{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:00"]}}`), []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, index, manifest, config, layer []byte) {
		limits := Limits{Entries: 1000, Bytes: 1 << 20}
		files := tree.New()
		add := func(name string, data []byte) string {
			if err := files.MkdirAll(strings.TrimSuffix(blobsDir, "/"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := files.Set(name, &tree.Inode{Content: extent.Bytes(data)}); err != nil {
				t.Fatal(err)
			}
			h := fmt.Sprintf("%x", sha256.Sum256(data))
			if err := files.Set(blobsDir+h, &tree.Inode{Content: extent.Bytes(data)}); err != nil {
				t.Fatal(err)
			}
			return h
		}
		layer = sum(layer)
		config = bytes.ReplaceAll(config, []byte("DIFF"), []byte(hex.EncodeToString(hash(layer))))
		manifest = bytes.ReplaceAll(manifest, []byte("LAYER"), []byte(add("layer", layer)))
		manifest = bytes.ReplaceAll(manifest, []byte("HASH"), []byte(add("config", config)))
		index = bytes.ReplaceAll(index, []byte("HASH"), []byte(add("manifest", manifest)))
		add("manifest.json", index)
		if root, err := unpackSaved(t.Context(), files, "amd64", limits); err == nil && root.Len() > limits.Entries {
			t.Errorf("%d entries", root.Len())
		}
		add("index.json", index)
		add(layoutName, nil)
		e, err := fromFiles(t.Context(), files, "amd64", limits.withDefaults())
		if err == nil && e.ImageDigest == "" {
			t.Error("no image digest")
		}
	})
}

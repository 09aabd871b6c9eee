package imager

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/imagecache"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// imageCache has one image of about size bytes; its source is a layout in dir.
func imageCache(t *testing.T, size int) (c *imagecache.Cache, dir string) {
	t.Helper()
	f := tree.New()
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * i >> 8)
	}
	if err := f.Add("file", &tree.Inode{Mode: 0o644, Content: extent.Bytes(content)}); err != nil {
		t.Fatal(err)
	}
	l, err := ociimage.Layer(t.Context(), f, ociimage.None)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: "amd64", Created: time.Unix(1_700_000_000, 0)}, l)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "layout")
	if err := ocilayout.Write(dir, img); err != nil {
		t.Fatal(err)
	}
	if c, err = imagecache.Open(t.Context(), "amd64", []imagecache.Source{{Name: "example.com/x:1", Path: dir}}); err != nil {
		t.Fatal(err)
	}
	return c, dir
}

// validLayout has a library that registries are used with read the layout in dir
// and compare every blob with its digest.
func validLayout(t *testing.T, dir, digest string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest.String() != digest {
		t.Errorf("%+v, %v; want %s", m, err, digest)
	}
	layers := 0
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		all, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			r, err := l.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := v1.SHA256(r)
			if want, _ := l.Digest(); err != nil || got != want {
				t.Errorf("layer %s is %s (%v)", want, got, err)
			}
			layers++
		}
	}
	if layers == 0 {
		t.Error("no layers")
	}
}

// cacheRequest is a request with an image cache, of a profile that is changed.
func cacheRequest(t *testing.T, size int, change func(*profiles.Profile)) (Request, string) {
	t.Helper()
	r := installerRequest(t)
	p, err := profiles.Load("metal")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(p)
	}
	r.Profile, r.Extensions = p, nil
	var dir string
	r.ImageCache, dir = imageCache(t, size)
	return r, dir
}

// The partition is a file system that e2fsck finds no fault with, as small as it
// can be, and has the images, which debugfs reads.
func TestImageCachePartition(t *testing.T) {
	for _, size := range []int{10, 3 * mib} {
		r, _ := cacheRequest(t, size, nil)
		i, err := Compose(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var labels []string
		var part extent.Source
		for _, p := range i.Table.Partitions {
			labels = append(labels, p.Name)
			if p.Name != "IMAGECACHE" {
				continue
			}
			if part, err = extent.Section(i.Disk, p.Start, p.Size); err != nil {
				t.Fatal(err)
			}
			if payload := r.ImageCache.Size(); p.Size < payload || p.Size > payload+2*mib || p.Size%mib != 0 {
				t.Errorf("the partition has %d bytes for %d", p.Size, payload)
			}
		}
		if got := strings.Join(labels, " "); got != "EFI BIOS BOOT META STATE IMAGECACHE EPHEMERAL" {
			t.Fatalf("partitions %s", got)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "part")
		if err := os.WriteFile(file, bytesOf(t, part), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(oracle.Tool(t, "e2fsck"), "-fn", file).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
		if out, err := exec.Command(oracle.Tool(t, "dumpe2fs"), "-h", file).CombinedOutput(); err != nil || strings.Contains(string(out), "has_journal") {
			t.Errorf("dumpe2fs: %v\n%s", err, out)
		}
		for _, name := range []string{"oci-layout", "index.json", "blobs"} {
			if out, err := exec.Command(oracle.Tool(t, "debugfs"), "-R", "rdump /"+name+" "+dir, file).CombinedOutput(); err != nil {
				t.Fatalf("debugfs: %v\n%s", err, out)
			}
		}
		validLayout(t, dir, r.ImageCache.Images[0].Digest)
	}
}

// What is in the cache is part of the identity of an image, where it comes from is
// not; nothing is copied on the way.
func TestImageCacheIdentity(t *testing.T) {
	r, _ := cacheRequest(t, mib, nil)
	uuids := func(r Request) string {
		i, err := Compose(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return i.Table.DiskID.String()
	}
	want := uuids(r)
	again := r
	again.ImageCache, _ = imageCache(t, mib)
	p := *r.Profile
	p.ImageCache = []string{"/somewhere/else"}
	again.Profile = &p
	if got := uuids(again); got != want {
		t.Errorf("from elsewhere: disk %s, want %s", got, want)
	}
	again.ImageCache, _ = imageCache(t, 2*mib)
	if got := uuids(again); got == want {
		t.Errorf("another cache: disk %s, too", got)
	}
	again.ImageCache = nil
	if got := uuids(again); got == want {
		t.Errorf("no cache: disk %s, too", got)
	}
}

func TestImageCacheSize(t *testing.T) {
	r, _ := cacheRequest(t, mib, func(p *profiles.Profile) { p.Disk.Partitions.ImageCache = 64 * profiles.MiB })
	size := func(r Request) int64 {
		i, err := Compose(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range i.Table.Partitions {
			if p.Name == "IMAGECACHE" {
				return p.Size
			}
		}
		return 0
	}
	if n := size(r); n != 64*mib {
		t.Errorf("%d bytes, want 64 MiB", n)
	}
	empty := r
	empty.ImageCache = nil
	if n := size(empty); n != 64*mib {
		t.Errorf("without images: %d bytes, want 64 MiB", n)
	}
	r.Profile.Disk.Partitions.ImageCache = profiles.MiB
	_, err := Compose(t.Context(), r)
	if want := "refused: disk.partitions.imageCache: 1MiB is too small: the images need 2 MiB; enlarge it or leave it out"; !errors.Is(err, ErrRefused) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	r.Profile.Disk.Partitions.ImageCache, empty = 0, r
	empty.ImageCache = nil
	if n := size(empty); n != 0 {
		t.Errorf("with neither images nor size: %d bytes", n)
	}
}

// A layer that is damaged since it was looked for is never in a finished image.
func TestImageCacheVerify(t *testing.T) {
	r, dir := cacheRequest(t, 3*mib, nil)
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range blobs {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) < mib {
			continue
		}
		data[2*mib] ^= 1
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "x.raw")
		_, err = i.WriteFile(t.Context(), path, "raw", false, nil)
		if want := "image cache: content does not have its digest: " + name + ": "; !errors.Is(err, imagecache.ErrDigest) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s…", err, want)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the image is there: %v", err)
		}
		return
	}
	t.Fatal("no layer")
}

// An ISO image has the cache once, for the node that it starts and to install
// from; it has it also if it does not install.
func TestImageCacheISO(t *testing.T) {
	r, _ := cacheRequest(t, 3*mib, nil)
	for _, machine := range []elf.Machine{elf.EM_X86_64, elf.EM_AARCH64} {
		r.Tool = program(t, machine, "")
		m, files := isoOf(t, r)
		dir := t.TempDir()
		for name, ino := range files.All() {
			rest, ok := strings.CutPrefix(name, medium.ImageCache+"/")
			if !ok || ino.Mode.IsDir() {
				continue
			}
			file := filepath.Join(dir, rest)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, bytesOf(t, ino.Content), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		validLayout(t, dir, r.ImageCache.Images[0].Digest)
		if line := string(bytesOf(t, files.Lookup("boot/grub/grub.cfg").Content)); !strings.Contains(line, "kiln.imagecache=medium") {
			t.Errorf("the node is not told:\n%s", line)
		}
		without := r
		without.ImageCache = nil
		other, none := isoOf(t, without)
		if n := m.Size() - other.Size(); n < 3*mib || n > 4*mib {
			t.Errorf("the cache takes %d bytes of an ISO image, it has %d", n, r.ImageCache.Size())
		}
		if line := string(bytesOf(t, none.Lookup("boot/grub/grub.cfg").Content)); strings.Contains(line, "kiln.imagecache") {
			t.Errorf("there is no cache, but the node is told of one:\n%s", line)
		}
	}
}

// What an installer image installs has the cache.
func TestImageCacheInstaller(t *testing.T) {
	r, _ := cacheRequest(t, mib, nil)
	_, layers := installerOf(t, r)
	root := t.TempDir()
	for _, l := range layers {
		untar(t, l, root, map[string]fs.FileMode{})
	}
	s, err := OpenSource(filepath.Join(root, medium.Source))
	if err != nil {
		t.Fatal(err)
	}
	c, err := imagecache.Open(t.Context(), "amd64", []imagecache.Source{{Path: s.ImageCache}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Digest() != r.ImageCache.Digest() {
		t.Errorf("%s with %+v, want %s", c.Digest(), c.Images, r.ImageCache.Digest())
	}
}

// The description says what is in the cache, of what has one.
func TestImageCacheDescribed(t *testing.T) {
	r, _ := cacheRequest(t, mib, nil)
	var log bytes.Buffer
	r.Log = slog.New(slog.NewTextHandler(&log, nil))
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		format string
		has    bool
	}{{"raw", true}, {"ova", true}, {"iso", true}, {"installer", true}, {"uki", false}, {"pxe", false}} {
		data, err := i.Describe(&Artifact{Path: "x", Format: tt.format})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(data), `"name": "example.com/x:1"`); got != tt.has {
			t.Errorf("%s: the image is in the description: %v, want %v", tt.format, got, tt.has)
		}
	}
	if err := i.WriteTo(t.Context(), io.Discard, "cmdline", nil); err != nil || !strings.Contains(log.String(), "the image cache is not in format cmdline: ") {
		t.Errorf("%v, logged %s", err, log.String())
	}
}

//go:build linux

package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	imageapi "github.com/containerd/containerd/api/services/images/v1"
	leaseapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotapi "github.com/containerd/containerd/api/services/snapshots/v1"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/imagecache"
	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/internal/oracle"
	report "github.com/kilnhq/kiln/machine/imagecache"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// program returns the base's containerd, and a directory for it with a short name, as
// sockets have.
func program(t *testing.T) (path, dir string) {
	t.Helper()
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE_CONTAINERS"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	part, err := b.Part(base.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	root, err := squashfs.Open(part.Content, part.Content.Size())
	if err != nil {
		t.Fatal(err)
	}
	ino := root.Lookup("usr/bin/containerd")
	if ino == nil {
		t.Fatal("the base has no containerd")
	}
	if dir, err = os.MkdirTemp("", "cd"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := io.ReadAll(io.NewSectionReader(ino.Content, 0, ino.Size()))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "containerd")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// daemon runs the base's containerd, and returns its socket.
func daemon(t *testing.T) string {
	t.Helper()
	oracle.Root(t)
	path, dir := program(t)
	config := fmt.Sprintf(`version = 3
root = '%[1]s/root'
state = '%[1]s/state'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt', 'io.containerd.nri.v1.nri']
[grpc]
  address = '%[1]s/socket'
[ttrpc]
  address = '%[1]s/ttrpc'
`, dir)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config", filepath.Join(dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // it was told to end
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("containerd says:\n%s", text)
		}
	})
	return filepath.Join(dir, "socket")
}

func client(t *testing.T, socket, namespace string) *Client {
	t.Helper()
	c, err := Connect(socket, namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// cacheImage has a layer for each of the contents.
func cacheImage(t *testing.T, arch string, contents ...string) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for i, content := range contents {
		f := tree.New()
		if err := f.Add(fmt.Sprintf("file%d", i), &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(content))}); err != nil {
			t.Fatal(err)
		}
		l, err := ociimage.Layer(t.Context(), f, ociimage.Gzip)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: arch, Created: time.Unix(1_700_000_000, 0)}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// cacheOf makes the layout that a node has, of what can be appended to one.
func cacheOf(t *testing.T, images map[string]any) string {
	t.Helper()
	var sources []imagecache.Source
	for name, img := range images {
		dir := filepath.Join(t.TempDir(), "layout")
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		switch img := img.(type) {
		case v1.Image:
			err = p.AppendImage(img)
		case v1.ImageIndex:
			err = p.AppendIndex(img)
		}
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, imagecache.Source{Name: name, Path: dir})
	}
	c, err := imagecache.Open(t.Context(), "amd64", sources)
	if err != nil {
		t.Fatal(err)
	}
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

// states imports a cache and returns what became of the images, by name.
func states(t *testing.T, socket, dir string) map[string]report.Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := ImportCache(ctx, socket, dir)
	if err != nil || r.Error != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	all := map[string]report.Image{}
	for _, i := range r.Images {
		all[i.Name] = i
	}
	return all
}

// collect has containerd remove what nothing refers to.
func collect(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.leases.Create(t.Context(), &leaseapi.CreateRequest{ID: "garbage"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.leases.Delete(t.Context(), &leaseapi.DeleteRequest{ID: "garbage", Sync: true}); err != nil {
		t.Fatal(err)
	}
}

// The images of the cache are those that a containerd has, for Kubernetes pinned
// and by digest as well, and they stay; the second start finds them.
func TestImportCache(t *testing.T) {
	socket := daemon(t)
	one := cacheImage(t, "amd64", "shared", strings.Repeat("large", 1_000_000))
	many := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"arm64", "amd64"} {
		many = mutate.AppendManifests(many, mutate.IndexAddendum{Add: cacheImage(t, arch, "shared", arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	dir := cacheOf(t, map[string]any{"example.com:5000/one:1": one, "many:2": many})
	for _, want := range []string{report.Imported, report.Present} {
		for name, i := range states(t, socket, dir) {
			if i.State != want || i.Error != "" {
				t.Errorf("%s is %+v, want %s", name, i, want)
			}
		}
	}
	digest, err := many.Digest()
	if err != nil {
		t.Fatal(err)
	}
	h, err := one.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for namespace, want := range map[string][]string{
		System:     {hub() + "/library/many:2", "example.com:5000/one:1"},
		Kubernetes: {hub() + "/library/many:2", hub() + "/library/many@" + digest.String(), "example.com:5000/one:1", "example.com:5000/one@" + h.String()},
	} {
		c := client(t, socket, namespace)
		collect(t, c)
		images, err := c.Images(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range images {
			if names = append(names, i.Name); i.Size == 0 {
				t.Errorf("%s: %s is not complete", namespace, i.Name)
			}
			r, err := c.images.Get(t.Context(), &imageapi.GetImageRequest{Name: i.Name})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.GetImage().GetLabels()[pinnedLabel]; (got == "pinned") != (namespace == Kubernetes) {
				t.Errorf("%s: %s is pinned: %q", namespace, i.Name, got)
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s has %q, want %q", namespace, names, want)
		}
	}
	// What is unpacked when it is needed stays, too.
	c := client(t, socket, System)
	lock := filepath.Join(t.TempDir(), "lock")
	for _, name := range []string{hub() + "/library/many:2", "example.com:5000/one:1"} {
		for range 2 {
			if err := c.Unpack(t.Context(), name, lock); err != nil {
				t.Fatal(err)
			}
			collect(t, c)
		}
		img, err := c.image(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.snapshots.Stat(t.Context(), &snapshotapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: img.chain})
		if err != nil || s.GetInfo().GetKind() != snapshotapi.Kind_COMMITTED || s.GetInfo().GetParent() == "" {
			t.Errorf("%s: snapshot %+v, %v", name, s, err)
		}
	}
}

// An image that is broken is told of, by file and reason, and the others are there;
// made whole, it is as well.
func TestImportBrokenCache(t *testing.T) {
	socket := daemon(t)
	img := cacheImage(t, "amd64", "a", "b")
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := cacheOf(t, map[string]any{"broken:1": img, "good:1": cacheImage(t, "amd64", "c")})
	file := func(h v1.Hash) string { return filepath.Join(dir, "blobs/sha256", h.Hex) }
	for _, c := range []struct {
		h      v1.Hash
		change func([]byte) []byte
		want   string
	}{
		{m.Layers[1].Digest, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, "blobs/sha256/" + m.Layers[1].Digest.Hex + ": containerd: unexpected commit digest "},
		{m.Layers[0].Digest, func(b []byte) []byte { return b[:len(b)-1] }, "blobs/sha256/" + m.Layers[0].Digest.Hex + " has "},
		{m.Config.Digest, func(b []byte) []byte { return nil }, "blobs/sha256/" + m.Config.Digest.Hex + ": no such file or directory"},
		{h, func(b []byte) []byte { b[0] = 'x'; return b }, "blobs/sha256/" + h.Hex + ": invalid character"},
	} {
		good, err := os.ReadFile(file(c.h))
		if err != nil {
			t.Fatal(err)
		}
		if bad := c.change(slices.Clone(good)); bad == nil {
			err = os.Remove(file(c.h))
		} else {
			err = os.WriteFile(file(c.h), bad, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		all := states(t, socket, dir)
		if i := all[hub()+"/library/broken:1"]; i.State != report.Failed || !strings.Contains(i.Error, c.want) {
			t.Errorf("%+v, want %s…", i, c.want)
		}
		if i := all[hub()+"/library/good:1"]; i.State == report.Failed || i.State == "" {
			t.Errorf("%+v", i)
		}
		if err := os.WriteFile(file(c.h), good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if i := states(t, socket, dir)[hub()+"/library/broken:1"]; i.State != report.Imported {
		t.Errorf("made whole it is %+v", i)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := ImportCache(t.Context(), socket, dir)
	if err != nil || !strings.HasPrefix(r.Error, "index of the images: index.json: ") {
		t.Errorf("%+v, %v", r, err)
	}
}

// An image of an earlier cache is replaced, one that the node got by itself is not.
func TestImportNewerCache(t *testing.T) {
	socket := daemon(t)
	states(t, socket, cacheOf(t, map[string]any{"x:1": cacheImage(t, "amd64", "old"), "y:1": cacheImage(t, "amd64", "other")}))
	var own string
	for _, namespace := range []string{System, Kubernetes} {
		c := client(t, socket, namespace)
		y, err := c.images.Get(t.Context(), &imageapi.GetImageRequest{Name: hub() + "/library/y:1"})
		if err != nil {
			t.Fatal(err)
		}
		own = y.GetImage().GetTarget().GetDigest()
		if _, err := c.images.Delete(t.Context(), &imageapi.DeleteImageRequest{Name: y.GetImage().GetName()}); err != nil {
			t.Fatal(err)
		}
		y.GetImage().Labels = nil // as after a pull
		if _, err := c.images.Create(t.Context(), &imageapi.CreateImageRequest{Image: y.GetImage()}); err != nil {
			t.Fatal(err)
		}
	}
	newer := cacheImage(t, "amd64", "new")
	all := states(t, socket, cacheOf(t, map[string]any{"x:1": newer, "y:1": newer}))
	h, err := newer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if x, y := all[hub()+"/library/x:1"], all[hub()+"/library/y:1"]; x.State != report.Imported || y.State != report.Kept {
		t.Errorf("%+v, %+v", x, y)
	}
	images, err := client(t, socket, Kubernetes).Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if want := map[string]string{hub() + "/library/x:1": h.String(), hub() + "/library/y:1": own}[i.Name]; want != "" && i.Digest != want {
			t.Errorf("%s is %s, want %s", i.Name, i.Digest, want)
		}
	}
}

// A cache without a containerd is not one that is broken.
func TestImportWithoutContainerd(t *testing.T) {
	dir := cacheOf(t, map[string]any{"x:1": cacheImage(t, "amd64", "x")})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := ImportCache(ctx, filepath.Join(t.TempDir(), "none"), dir); err == nil {
		t.Error("no error")
	}
}

// hub is the registry of names that name none.
func hub() string {
	registry, _ := imagename.Default()
	return registry
}

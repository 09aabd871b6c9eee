//go:build linux

package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// cached is what runs from the image cache: it says what it finds in its image.
const cached = `package main

import (
	"fmt"
	"os"
)

func main() {
	text, err := os.ReadFile("/text")
	fmt.Println("from the cache:", string(text), err)
}
`

// What the machines of the tests of the image cache are to do.
const cachedService = `---
apiVersion: v1alpha1
kind: Service
name: greet
image: greet:1
restart: never
---
apiVersion: v1alpha1
kind: Registry
name: registry.example.com
mirrors: [{url: https://mirror.example.com}]
auth: {username: node, password: not for everybody}
`

// cachedImage writes an archive of an image with the program and a text.
func cachedImage(t *testing.T, dir, name, text string, program []byte) string {
	t.Helper()
	root := tree.New()
	for path, data := range map[string][]byte{"greet": program, "text": []byte(text)} {
		if err := root.Add(path, &tree.Inode{Mode: 0o755, Content: extent.Bytes(data)}); err != nil {
			t.Fatal(err)
		}
	}
	layer, err := ociimage.Layer(t.Context(), root, ociimage.None)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ociimage.Image(ociimage.Config{Architecture: "amd64", Entrypoint: []string{"/greet"}}, layer)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := ocilayout.WriteArchive(t.Context(), &archive, img, name); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, strings.ReplaceAll(name, ":", "-")+".tar")
	if err := os.WriteFile(file, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// cacheFixture builds the program and a machine configuration, in a directory.
func cacheFixture(t *testing.T) (dir string, program []byte) {
	t.Helper()
	dir = t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"go.mod": "module cached\n\ngo 1.24\n", "main.go": cached} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program, err := rootfs.BuildProgram(t.Context(), rootfs.Sources{Arch: "amd64", GoDir: src}, rootfs.Program{Package: "."})
	if err != nil {
		t.Fatal(err)
	}
	run(t, oracle.Artifact(t, "KILN_BIN"), "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", filepath.Join(dir, "config"))
	machine := filepath.Join(dir, "config/machine.yaml")
	config, err := os.ReadFile(machine)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(machine, append(config, cachedService...), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, program
}

// importedImages waits until the service of the image cache is done in the start of
// that number, and returns what the console says of it.
func importedImages(t *testing.T, admin remote, m *vm.Machine, start int) map[string]string {
	t.Helper()
	admin.await(t, "greet", "done") // which comes after it
	var all []milestone
	for _, l := range milestones(t, m.Console()) {
		if l.fields["stage"] == "imagecache" {
			all = append(all, l)
		}
	}
	if len(all) != start {
		t.Fatalf("the console says %d times that the images are there, want %d", len(all), start)
	}
	fields := all[start-1].fields
	t.Logf("start %d: the images are there %s s after the kernel's start, which took %s", start, fields["t"], fields["took"])
	if log := admin.run(t, "logs", "greet"); !strings.Contains(log, "from the cache: hello <nil>") {
		t.Errorf("log:\n%s", log)
	}
	return fields
}

// A node without a network runs a container of an image that its disk came with, and
// the next start finds the image where it is.
func TestImageCache(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	kiln := oracle.Artifact(t, "KILN_BIN")
	dir, program := cacheFixture(t)
	disk := filepath.Join(dir, "disk.raw")
	run(t, kiln, "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE_CONTAINERS"), "--image-cache", cachedImage(t, dir, "greet:1", "hello", program),
		"--config", filepath.Join(dir, "config/machine.yaml"), "--size", "2GiB", "--no-sidecars", "--output", disk)
	if out := run(t, kiln, "inspect", disk); !regexp.MustCompile(`6 +IMAGECACHE .* ext4`).MatchString(out) || !strings.Contains(out, hub()+"/library/greet:1  sha256:") {
		t.Errorf("inspect:\n%s", out)
	}

	api := freePort(t)
	ctx, m := startWithin(t, 3*patience, vm.Config{Image: disk, Firmware: vm.BIOS, Memory: 1536, Forward: map[int]int{api: 50000}, Restart: true})
	admin := remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", api), contexts: filepath.Join(dir, "config/client.yaml")}
	ready(t, ctx, m)
	if f := importedImages(t, admin, m, 1); f["images"] != "1" || f["imported"] != "1" || f["failed"] != "0" {
		t.Errorf("%v, want one image imported", f)
	}
	for namespace, want := range map[string][]string{"system": {hub() + "/library/greet:1"}, "k8s.io": {hub() + "/library/greet:1", hub() + "/library/greet@sha256:"}} {
		out := admin.run(t, "images", "--namespace", namespace)
		for _, name := range want {
			if !strings.Contains(out, name) {
				t.Errorf("images of %s without %s:\n%s", namespace, name, out)
			}
		}
	}
	// What the configuration says of registries is where containerd looks.
	if out := admin.run(t, "read", "/etc/containerd/certs.d/registry.example.com/hosts.toml"); !strings.Contains(out, `[host."https://mirror.example.com"]`) {
		t.Errorf("hosts.toml:\n%s", out)
	}
	admin.run(t, "reboot")
	ready(t, ctx, m)
	if f := importedImages(t, admin, m, 2); f["images"] != "1" || f["imported"] != "0" || f["failed"] != "0" {
		t.Errorf("%v, want the image to be there already", f)
	}
	shutdown(t, ctx, m)
}

// A node that runs from an ISO image has the images of that. One that is damaged is
// told of; everything else goes on.
func TestImageCacheISO(t *testing.T) {
	full(t)
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	kiln := oracle.Artifact(t, "KILN_BIN")
	dir, program := cacheFixture(t)
	iso := filepath.Join(dir, "node.iso")
	const text = "what is damaged"
	run(t, kiln, "build", "metal", "--format", "iso", "--base", oracle.Artifact(t, "KILN_BASE_CONTAINERS"),
		"--image-cache", cachedImage(t, dir, "greet:1", "hello", program), "--image-cache", cachedImage(t, dir, "broken:1", text, nil),
		"--config", filepath.Join(dir, "config/machine.yaml"), "--no-sidecars", "--output", iso)
	data, err := os.ReadFile(iso)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte(text))
	if at < 0 {
		t.Fatal("the layer is not in the ISO image")
	}
	data[at] ^= 1
	if err := os.WriteFile(iso, data, 0o600); err != nil {
		t.Fatal(err)
	}

	api := freePort(t)
	ctx, m := startWithin(t, 3*patience, vm.Config{Image: iso, Bus: vm.CDROM, Firmware: vm.BIOS, Memory: 2048, Forward: map[int]int{api: 50000}})
	admin := remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", api), contexts: filepath.Join(dir, "config/client.yaml")}
	ready(t, ctx, m)
	if f := importedImages(t, admin, m, 1); f["images"] != "2" || f["imported"] != "1" || f["failed"] != "1" {
		t.Errorf("%v, want one of two imported", f)
	}
	want := regexp.MustCompile(`kiln: note text="imagecache: docker\.io/library/broken:1: blobs/sha256/[0-9a-f]{64}: containerd: unexpected commit digest`)
	if !want.MatchString(m.Console()) {
		t.Error("the console does not say what is damaged")
	}
	shutdown(t, ctx, m)
}

// hub is the registry of names that name none.
func hub() string {
	registry, _ := imagename.Default()
	return registry
}

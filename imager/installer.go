package imager

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/ocidisk"
	"github.com/kilnhq/kiln/imager/qcow2"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	sourceDir = medium.Source // in the image
	toolPath  = "usr/bin/kiln"

	sourceCache = "cache" // in sourceDir
)

// imageConfig is what the OCI images of i say about themselves.
func (i *Image) imageConfig() ociimage.Config {
	r := i.request
	return ociimage.Config{
		Architecture: r.Profile.Arch, Created: time.Unix(r.Epoch, 0).UTC(), CreatedBy: strings.TrimSpace("kiln " + r.Version),
		Labels: map[string]string{"org.opencontainers.image.title": "kiln " + r.Profile.Name, "org.opencontainers.image.version": r.Version},
	}
}

// tag is the name and the tag of an OCI image, in the letters that are allowed.
func (i *Image) tag(name string) string {
	version := strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r) {
			return r
		}
		return '-'
	}, i.request.Version)
	if version = strings.TrimLeft(version, ".-"); version == "" {
		version = "latest"
	}
	return name + ":" + version[:min(len(version), 128)]
}

// writeArchive writes an OCI image so that docker loads it.
func writeArchive(ctx context.Context, w io.Writer, img v1.Image, tag string, progress func(int64)) error {
	return ocilayout.WriteArchive(ctx, &observer{ctx, w, progress}, img, tag)
}

// writeContainerDisk writes the image from which KubeVirt starts machines.
func writeContainerDisk(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
	disk, err := qcow2.Map(i.Disk, 0)
	if err != nil {
		return err
	}
	img, err := ocidisk.ContainerDisk(ctx, "disk.qcow2", disk, i.imageConfig(), ociimage.None)
	if err != nil {
		return err
	}
	return writeArchive(ctx, w, img, i.tag("kiln-"+i.request.Profile.Name), progress)
}

// containerDiskSize is about the size of the archive.
func containerDiskSize(i *Image) int64 {
	m, err := qcow2.Map(i.Disk, 0)
	if err != nil {
		return 0
	}
	return m.Size()
}

// writeInstaller writes the image that installs onto disks.
func writeInstaller(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
	img, err := i.installer(ctx)
	if err != nil {
		return err
	}
	return writeArchive(ctx, w, img, i.tag("kiln"), progress)
}

// installerSize is about the size of the archive.
func installerSize(i *Image) int64 {
	n := int64(0)
	if i.request.Tool != nil {
		n += i.request.Tool.Size()
	}
	files, err := i.request.Base.Layout()
	if err != nil {
		return n
	}
	for _, f := range files {
		n += f.Size()
	}
	if c := i.request.ImageCache; c != nil {
		n += c.Size()
	}
	return n
}

// installer is an OCI image with kiln itself and what it needs to compose the
// disk again, on the machine that it is for. What changes least is lowest: the
// base is a layer of its own, which versions share, and so is each extension.
func (i *Image) installer(ctx context.Context) (v1.Image, error) {
	r := i.request
	if err := checkTool(r.Tool, r.Profile.Arch); err != nil {
		return nil, err
	}
	trees, err := i.source(ctx)
	if err != nil {
		return nil, err
	}
	tool, err := fileTree(map[string]tree.Content{toolPath: r.Tool}, r.Epoch)
	if err != nil {
		return nil, err
	}
	tool.Lookup(toolPath).Mode = 0o755
	last := len(trees) - 1
	// What is installed from is written nowhere; /tmp is for what is spooled.
	if err := trees[last].Add("tmp", &tree.Inode{Mode: fs.ModeDir | fs.ModeSticky | 0o777, ModTime: r.Epoch}); err != nil {
		return nil, err
	}
	var layers []v1.Layer
	for _, t := range slices.Insert(trees, last, tool) {
		l, err := ociimage.Layer(ctx, t, ociimage.None)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	config := i.imageConfig()
	config.Entrypoint = []string{"/" + toolPath}
	config.Env = []string{"PATH=/usr/bin", SourceVariable + "=/" + sourceDir}
	return ociimage.Image(config, layers...)
}

// source is a source directory in pieces: the base, each extension, and what is
// small and changes often.
func (i *Image) source(ctx context.Context) ([]*tree.Tree, error) {
	r := i.request
	source := Source{
		Version: 1, Kiln: r.Version, Profile: "profile.yaml", Base: "base", Extensions: []string{}, KernelArgs: r.KernelArgs,
		Cache: sourceCache, Strict: r.Strict, Epoch: r.Epoch,
	}
	base, err := r.Base.Layout()
	if err != nil {
		return nil, err
	}
	contents := map[string]tree.Content{}
	for name, src := range base {
		contents[path.Join(sourceDir, source.Base, name)] = src
	}
	trees := make([]*tree.Tree, 1, len(r.Extensions)+4)
	if trees[0], err = fileTree(contents, r.Base.Config.Epoch); err != nil {
		return nil, err
	}
	for n, e := range r.Extensions {
		name := fmt.Sprintf("extensions/%02d-%s", n, e.Manifest.Metadata.Name)
		source.Extensions = append(source.Extensions, name)
		t, err := i.extensionTree(ctx, e, name, source.Cache)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", e, err)
		}
		trees = append(trees, t)
	}
	if r.ImageCache != nil {
		source.ImageCache = path.Base(medium.ImageCache)
		t, err := imageCacheTree(r, medium.ImageCache)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	settings, err := i.settings(source)
	return append(trees, settings), err
}

// extensionTree is an extension as a directory, and its compressed layer in a
// cache, which is the same file.
func (i *Image) extensionTree(ctx context.Context, e *extensions.Extension, name, cache string) (*tree.Tree, error) {
	whole, err := e.Tree(i.request.Epoch)
	if err != nil {
		return nil, err
	}
	entry, _, err := extensions.Layer(ctx, i.request.Cache, e.RootFS)
	if err != nil {
		return nil, err
	}
	record, content := cacheFiles(cache, entry.Key)
	files := map[string]tree.Content{
		path.Join(sourceDir, name, "manifest.yaml"): whole.Lookup("manifest.yaml").Content,
		path.Join(sourceDir, name, "rootfs.sqsh"):   entry.Content,
		record: extent.Bytes(entry.Record()),
	}
	t, err := fileTree(files, i.request.Epoch)
	if err != nil {
		return nil, err
	}
	return t, t.Add(content, t.Lookup(path.Join(sourceDir, name, "rootfs.sqsh")))
}

// cacheFiles are the names of an entry's two files in the cache of a source.
func cacheFiles(cache, key string) (record, content string) {
	return path.Join(sourceDir, cache, key+".json"), path.Join(sourceDir, cache, key+".bin")
}

// settings are the small files of the source.
func (i *Image) settings(source Source) (*tree.Tree, error) {
	r := i.request
	profile := *r.Profile
	profile.Extends, profile.Extensions, profile.ImageCache = "", nil, nil
	profile.Output.Format = "raw"
	files := map[string]tree.Content{}
	if r.Splash != nil {
		profile.UKI.Splash = "splash.bmp"
		files[path.Join(sourceDir, profile.UKI.Splash)] = bytes.NewReader(r.Splash)
	}
	data, err := yaml.Marshal(&profile)
	if err != nil {
		return nil, err
	}
	files[path.Join(sourceDir, source.Profile)] = bytes.NewReader(data)
	for n, c := range r.Certificates {
		name := fmt.Sprintf("certificates/%02d.pem", n)
		source.Certificates = append(source.Certificates, name)
		files[path.Join(sourceDir, name)] = bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	if data, err = json.MarshalIndent(source, "", "  "); err != nil {
		return nil, err
	}
	files[path.Join(sourceDir, SourceFile)] = bytes.NewReader(append(data, '\n'))
	t, err := fileTree(files, r.Epoch)
	if err != nil {
		return nil, err
	}
	if r.Profile.MachineConfig != "" {
		t.Lookup(path.Join(sourceDir, source.Profile)).Mode = 0o600
	}
	return t, nil
}

// checkTool refuses a program that does not run in the image.
func checkTool(tool extent.Source, arch string) error {
	if tool == nil {
		return errors.New("no program to put into the installer image")
	}
	f, err := elf.NewFile(tool)
	if err != nil {
		return refuse("the program for the installer image is no ELF file (%v); give kiln for %s with --installer-program", err, arch)
	}
	defer f.Close()
	got := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}[f.Machine]
	if got != arch {
		return refuse("the program for the installer image is for %s, the image for %s; give kiln for %s with --installer-program", f.Machine, arch, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return refuse("the program for the installer image is linked dynamically; build kiln with CGO_ENABLED=0, or give another one with --installer-program")
		}
	}
	return nil
}

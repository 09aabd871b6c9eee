package extensions

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/ociimage"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Annotations of an extension's image, see the OCI image specification,
// "Pre-Defined Annotation Keys".
const (
	annotationTitle       = "org.opencontainers.image.title"
	annotationVersion     = "org.opencontainers.image.version"
	annotationDescription = "org.opencontainers.image.description"
	annotationLicenses    = "org.opencontainers.image.licenses"
	annotationAuthors     = "org.opencontainers.image.authors"
)

// Tree returns the extension as a tree with manifest.yaml, of the given time in
// seconds since 1970, and rootfs/.
func (e *Extension) Tree(epoch int64) (*tree.Tree, error) {
	t := tree.New()
	if err := t.Add(manifestName, &tree.Inode{Mode: 0o644, ModTime: epoch, Content: extent.Bytes(e.manifest)}); err != nil {
		return nil, err
	}
	for name, ino := range e.RootFS.All() {
		p := rootName
		if name != "." {
			p += "/" + name
		}
		if err := t.Add(p, ino); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Image returns the extension as an OCI image for arch: the one it was read
// from or else one that is made now, with one uncompressed layer, since what
// extensions hold, modules and firmware, is compressed already. epoch is the
// time of the image in seconds since 1970.
func (e *Extension) Image(ctx context.Context, arch string, epoch int64) (v1.Image, error) {
	if e.image != nil {
		return e.image, nil
	}
	t, err := e.Tree(epoch)
	if err != nil {
		return nil, err
	}
	l, err := ociimage.Layer(ctx, t, ociimage.None)
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", e.Manifest.Metadata.Name, err)
	}
	m := e.Manifest.Metadata
	annotations := map[string]string{
		annotationTitle: m.Name, annotationVersion: m.Version, annotationDescription: m.Description,
		annotationLicenses: m.License, annotationAuthors: m.Author,
	}
	maps.DeleteFunc(annotations, func(_, v string) bool { return v == "" })
	return ociimage.Image(ociimage.Config{
		Architecture: arch, Created: time.Unix(epoch, 0), CreatedBy: "kiln extension build", Annotations: annotations,
	}, l)
}

// SaveTar stores img as a tar at path that is two things: an OCI image layout,
// and what "docker save" writes, so that "docker load" takes it.
func SaveTar(ctx context.Context, path string, img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ocilayout.WriteArchive(ctx, f, img, tagOf(m.Annotations)); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Commit()
}

// repositoryRE is the grammar of an image's name that Docker has, a part of that
// of extensions' names. See the reference package of the distribution project.
var repositoryRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// tagOf returns the name and tag of an extension's image, or nothing if Docker
// would not have its name. A character that no tag has becomes '-'.
func tagOf(annotations map[string]string) string {
	name := annotations[annotationTitle]
	version := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
			return r
		}
		return '-'
	}, annotations[annotationVersion])
	version = strings.TrimLeft(version, ".-")
	if len(name) > 64 || !repositoryRE.MatchString(name) || version == "" || len(version) > 128 {
		return ""
	}
	return name + ":" + version
}

// SaveSysext stores the root file system as a squashfs image that
// systemd-sysext takes. What only the manifest says is lost, but for the modules
// to load and their parameters.
func (e *Extension) SaveSysext(ctx context.Context, path, arch string, epoch int64) error {
	t := tree.New() // a copy to add to
	for name, ino := range e.RootFS.All() {
		if err := t.Add(name, ino); err != nil {
			return err
		}
	}
	name := e.Manifest.Metadata.Name
	add := func(p, text string) error {
		if text == "" {
			return nil
		}
		if err := t.MkdirAll(p[:strings.LastIndexByte(p, '/')], 0o755); err != nil {
			return err
		}
		return t.Add(p, &tree.Inode{Mode: 0o644, ModTime: epoch, Content: extent.Bytes([]byte(text))})
	}
	if t.Lookup(releaseDir) == nil {
		var load, options strings.Builder
		for _, m := range e.Manifest.Kernel.Modules {
			fmt.Fprintln(&load, m.Name)
		}
		for _, m := range slices.Concat(e.Manifest.Kernel.Modules, e.Manifest.Kernel.Options) {
			if m.Parameters != "" {
				fmt.Fprintln(&options, "options", m.Name, m.Parameters)
			}
		}
		for _, m := range e.Manifest.Kernel.Blacklist {
			fmt.Fprintln(&options, "blacklist", m)
		}
		for p, text := range map[string]string{
			releaseDir + "/" + releasePrefix + name:    e.release(arch),
			"usr/lib/modules-load.d/" + name + ".conf": load.String(),
			"usr/lib/modprobe.d/" + name + ".conf":     options.String(),
		} {
			if err := add(p, text); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := squashfs.Write(ctx, f, t, squashfs.Options{ModTime: uint32(epoch)}); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Commit()
}

// release returns the extension-release file.
func (e *Extension) release(arch string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "\n", " ").Replace
	machine := map[string]string{"amd64": "x86-64", "arm64": "arm64"}[arch]
	m := e.Manifest.Metadata
	s := fmt.Sprintf("ID=_any\nARCHITECTURE=%s\nSYSEXT_VERSION_ID=\"%s\"\n", machine, quote(m.Version))
	if m.Description != "" {
		s += fmt.Sprintf("SYSEXT_PRETTY_NAME=\"%s\"\n", quote(m.Description))
	}
	return s
}

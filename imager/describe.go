package imager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/sbom"
)

// Artifact is a file, or a directory of files, that was written.
type Artifact struct {
	Path   string
	Format string
	Files  []ArtifactFile // one, unless the format is a directory
}

// ArtifactFile is a file of an artifact.
type ArtifactFile struct {
	Name   string `json:"name"` // base name, below the directory's if there is one
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// description is the content of the .json file next to an artifact.
type description struct {
	Version    int               `json:"version"` // of this format: 1
	Kiln       string            `json:"kiln"`    // version of the tool
	Format     string            `json:"format"`
	Files      []ArtifactFile    `json:"files"`
	Profile    *profiles.Profile `json:"profile"` // after defaults
	Base       baseFacts         `json:"base"`
	Extensions []extensionFacts  `json:"extensions"`
	ImageCache []imageFacts      `json:"imageCache,omitempty"`
	Cmdline    string            `json:"cmdline"`
	Layers     []layers.Layer    `json:"layers"` // lowest first
	Disk       diskFacts         `json:"disk"`
}

type baseFacts struct {
	Digest  string `json:"digest"`
	Arch    string `json:"arch"`
	Release string `json:"release"` // of the kernel
}

type extensionFacts struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

type imageFacts struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

type diskFacts struct {
	Size       int64            `json:"size"`       // bytes
	SectorSize int64            `json:"sectorSize"` // bytes
	GUID       string           `json:"guid"`
	Partitions []partitionFacts `json:"partitions"`
}

type partitionFacts struct {
	Number int    `json:"number"` // from 1
	Label  string `json:"label"`
	Type   string `json:"type"`
	GUID   string `json:"guid"`
	Start  int64  `json:"start"` // bytes
	Size   int64  `json:"size"`  // bytes
}

// Describe returns what there is to know of an artifact, as JSON.
func (i *Image) Describe(a *Artifact) ([]byte, error) {
	r, assets := i.request, i.inRAM
	if forms(r.Profile.Output)[a.Format].disk || a.Format == "installer" {
		assets = i.assets
	}
	d := description{
		Version: 1, Kiln: r.Version, Format: a.Format, Files: a.Files, Profile: r.Profile,
		Base:       baseFacts{r.Base.Digest, r.Base.Config.Arch, r.Base.Config.Release},
		Extensions: []extensionFacts{},
		Cmdline:    assets.cmdline,
		Layers:     assets.layers,
		Disk:       diskFacts{Size: i.Disk.Size(), SectorSize: i.Table.SectorSize, GUID: i.Table.DiskID.String()},
	}
	if a.Format == "iso" {
		var err error
		if d.Cmdline, err = cmdline(r, r.Profile.Kernel, i.isoArgs()); err != nil {
			return nil, err
		}
	}
	if r.ImageCache != nil && i.hasImageCache(a.Format) {
		for _, c := range r.ImageCache.Images {
			d.ImageCache = append(d.ImageCache, imageFacts{c.Name, c.Digest})
		}
	}
	for _, e := range r.Extensions {
		m := e.Manifest.Metadata
		d.Extensions = append(d.Extensions, extensionFacts{m.Name, m.Version, e.Digest})
	}
	for n, p := range i.Table.Partitions {
		if p.Size == 0 {
			continue
		}
		d.Disk.Partitions = append(d.Disk.Partitions, partitionFacts{n + 1, p.Name, gpt.TypeName(p.Type), p.ID.String(), p.Start, p.Size})
	}
	data, err := json.MarshalIndent(d, "", "  ")
	return append(data, '\n'), err
}

// SBOM lists what the image is made of, as an SPDX document: what the base's does,
// and the extensions with what their programs were built from.
func (i *Image) SBOM(ctx context.Context) ([]byte, error) {
	r := i.request
	doc := &sbom.Document{}
	part, err := r.Base.Part(base.SBOM)
	if err == nil {
		var data []byte
		if data, err = part.Bytes(maxKernelFile); err == nil {
			doc, err = sbom.Parse(data)
		}
	}
	if err != nil && !errors.Is(err, base.ErrPart) {
		return nil, err
	}
	for _, e := range r.Extensions {
		m := e.Manifest.Metadata
		doc.Packages = append(doc.Packages, sbom.Package{
			Name: m.Name, Version: m.Version, License: m.License, SHA256: strings.TrimPrefix(e.Digest, "sha256:"), Comment: "system extension",
		})
		packages, err := sbom.Scan(ctx, e.RootFS)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", e, err)
		}
		doc.Packages = append(doc.Packages, packages...)
	}
	doc.Name = fmt.Sprintf("kiln %s, Linux %s", r.Profile.Name, r.Base.Config.Release)
	doc.ID, doc.Created, doc.Tool = "image:"+hex.EncodeToString(i.id[:]), r.Epoch, "kiln-"+r.Version
	return doc.Encode()
}

// WriteSidecars writes, next to an artifact, its digests for sha256sum(1), its
// description and its SBOM: NAME.sha256, NAME.json and NAME.spdx.json; and the
// domain that boots it, if the profile has one: NAME.xl.cfg or NAME.libvirt.xml.
func (i *Image) WriteSidecars(ctx context.Context, a *Artifact) error {
	var sums strings.Builder
	for _, f := range a.Files {
		fmt.Fprintf(&sums, "%s  %s\n", f.SHA256, f.Name)
	}
	data, err := i.Describe(a)
	if err != nil {
		return err
	}
	list, err := i.SBOM(ctx)
	if err != nil {
		return err
	}
	path := filepath.Clean(a.Path)
	sidecars := map[string][]byte{".sha256": []byte(sums.String()), ".json": data, ".spdx.json": list}
	suffix, content, err := i.domain(a)
	if err != nil {
		return err
	}
	if content != nil {
		sidecars[suffix] = content
	}
	for suffix, content := range sidecars {
		if err := atomicfile.WriteFile(path+suffix, content, 0o644); err != nil {
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
	}
	return nil
}

func sum(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

// sumTree digests files that go into a directory.
func sumTree(dir string, files map[string]extent.Source) ([]ArtifactFile, error) {
	var out []ArtifactFile
	for _, name := range slices.Sorted(maps.Keys(files)) {
		digest, err := sum(extent.Reader(files[name]))
		if err != nil {
			return nil, err
		}
		out = append(out, ArtifactFile{filepath.Base(dir) + "/" + name, files[name].Size(), digest})
	}
	return out, nil
}

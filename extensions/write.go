package extensions

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/internal/ocilayout"
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
	src, err := archive(ctx, t)
	if err != nil {
		return nil, err
	}
	l, err := newLayer(src)
	if err != nil {
		return nil, err
	}
	when := v1.Time{Time: time.Unix(epoch, 0).UTC()}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "kiln extension build", Created: when}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, when
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	m := e.Manifest.Metadata
	annotations := map[string]string{
		annotationTitle: m.Name, annotationVersion: m.Version, annotationDescription: m.Description,
		annotationLicenses: m.License, annotationAuthors: m.Author,
	}
	maps.DeleteFunc(annotations, func(_, v string) bool { return v == "" })
	return mutate.Annotations(img, annotations).(v1.Image), nil
}

// SaveLayout stores img as an OCI image layout at path, replacing one that is
// there.
func SaveLayout(path string, img v1.Image) error {
	platform, err := platformOf(img)
	if err != nil {
		return err
	}
	return ocilayout.Write(path, img, platform)
}

func platformOf(img v1.Image) (v1.Platform, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return v1.Platform{}, err
	}
	return v1.Platform{OS: config.OS, Architecture: config.Architecture}, nil
}

// SaveTar stores img as a tar at path that is two things: an OCI image layout,
// and what "docker save" writes, so that "docker load" takes it.
func SaveTar(ctx context.Context, path string, img v1.Image) error {
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeTar(ctx, f, img); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Commit()
}

func writeTar(ctx context.Context, w io.Writer, img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	platform, err := platformOf(img)
	if err != nil {
		return err
	}
	index, err := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}}).RawManifest()
	if err != nil {
		return err
	}
	entry := saved{Config: blobsDir + m.Config.Digest.Hex}
	if name, version := m.Annotations[annotationTitle], m.Annotations[annotationVersion]; nameRE.MatchString(name) && version != "" {
		entry.RepoTags = []string{name + ":" + strings.ReplaceAll(version, "+", "-")} // no tag has a '+'
	}
	small := map[string][]byte{
		layoutName: []byte(`{"imageLayoutVersion":"1.0.0"}`), indexName: index,
		blobsDir + digest.Hex: manifest, blobsDir + m.Config.Digest.Hex: config,
	}
	layers := map[string]v1.Layer{}
	all, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range all {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		entry.Layers = append(entry.Layers, blobsDir+h.Hex)
		layers[blobsDir+h.Hex] = l
	}
	if small[savedManifest], err = json.Marshal([]saved{entry}); err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	header := func(name string, size int64) error {
		return tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0).UTC(), Format: tar.FormatUSTAR})
	}
	for _, name := range slices.Sorted(maps.Keys(small)) {
		if err := header(name, int64(len(small[name]))); err != nil {
			return err
		}
		if _, err := tw.Write(small[name]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(layers)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		size, err := layers[name].Size()
		if err != nil {
			return err
		}
		if err := header(name, size); err != nil {
			return err
		}
		rc, err := layers[name].Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, rc)
		rc.Close()
		if err != nil {
			return err
		}
	}
	return tw.Close()
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

// layer is an uncompressed layer whose bytes are elsewhere.
type layer struct {
	src  extent.Source
	hash v1.Hash
}

func newLayer(src extent.Source) (*layer, error) {
	h := sha256.New()
	if _, err := io.Copy(h, extent.Reader(src)); err != nil {
		return nil, err
	}
	return &layer{src, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}}, nil
}

func (l *layer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(extent.Reader(l.src)), nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }
func (l *layer) Size() (int64, error)                 { return l.src.Size(), nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// archive returns t as a tar with fixed order and metadata. File contents stay
// where they are.
func archive(ctx context.Context, t *tree.Tree) (extent.Source, error) {
	var parts []extent.Source
	first := map[*tree.Inode]string{}
	for name, ino := range t.All() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if name == "." {
			continue
		}
		hdr := &tar.Header{
			Name: name, Mode: int64(ino.Mode.Perm()), Uid: int(ino.UID), Gid: int(ino.GID),
			ModTime: time.Unix(ino.ModTime, 0).UTC(), Format: tar.FormatPAX,
		}
		for _, b := range modeBits {
			if ino.Mode&b.mode != 0 {
				hdr.Mode |= b.tar
			}
		}
		for k, v := range ino.Xattrs {
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords[xattrRecord+k] = string(v)
		}
		target, again := first[ino]
		switch {
		case ino.Mode.IsDir():
			hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
		case again:
			hdr.Typeflag, hdr.Linkname, hdr.PAXRecords = tar.TypeLink, target, nil
		case ino.Mode.IsRegular():
			hdr.Typeflag, hdr.Size = tar.TypeReg, ino.Size()
		case ino.Mode&fs.ModeSymlink != 0:
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, ino.Target
		default:
			return nil, fmt.Errorf("%s: cannot put %s into an extension", name, ino.Mode.Type())
		}
		first[ino] = name
		var buf bytes.Buffer
		if err := tar.NewWriter(&buf).WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		parts = append(parts, extent.Bytes(buf.Bytes()))
		if hdr.Typeflag == tar.TypeReg && ino.Content != nil {
			parts = append(parts, ino.Content)
		}
	}
	const block = 512
	end := extent.Bytes(make([]byte, 2*block))
	return extent.Concat(block, append(parts, end)...)
}

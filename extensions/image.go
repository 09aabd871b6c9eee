package extensions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxImages bounds how many images an index names.
const maxImages = 256

// pick returns the image for arch that an index, or an index in it, names.
func pick(index v1.ImageIndex, arch string) (v1.Image, error) {
	p := picker{arch: arch, found: map[v1.Hash]v1.Image{}}
	if err := p.look(index, 0); err != nil {
		return nil, err
	}
	switch {
	case len(p.digests) == 1:
		return p.found[p.digests[0]], nil
	case len(p.digests) > 1:
		return nil, fmt.Errorf("%w: %d images for linux/%s: %v; want one", ErrFormat, len(p.digests), arch, p.digests)
	case len(p.others) == 0:
		return nil, fmt.Errorf("%w: the OCI index names no image", ErrFormat)
	}
	return nil, wrongArch(strings.Join(p.others, ", "), arch)
}

type picker struct {
	arch    string
	images  int
	found   map[v1.Hash]v1.Image
	digests []v1.Hash // of those found, in order
	others  []string  // platforms of the other images
}

func (p *picker) look(index v1.ImageIndex, depth int) error {
	const maxDepth = 2
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("%w: OCI index: %w", ErrFormat, err)
	}
	for _, d := range manifest.Manifests {
		if p.images++; p.images > maxImages {
			return fmt.Errorf("%w: OCI index: more than %d images", ErrHostile, maxImages)
		}
		switch {
		case d.MediaType.IsIndex() && depth == maxDepth:
			return fmt.Errorf("%w: OCI index: nested more than %d deep", ErrFormat, maxDepth)
		case d.MediaType.IsIndex():
			child, err := index.ImageIndex(d.Digest)
			if err == nil {
				err = p.look(child, depth+1)
			}
			if err != nil {
				return fmt.Errorf("index %s: %w", d.Digest, err)
			}
		case !d.MediaType.IsImage(), d.Platform != nil && d.Platform.OS == "unknown":
			// Builders put their attestations beside the images.
		case p.found[d.Digest] != nil:
		default:
			if err := p.image(index, d); err != nil {
				return fmt.Errorf("image %s: %w", d.Digest, err)
			}
		}
	}
	return nil
}

func (p *picker) image(index v1.ImageIndex, d v1.Descriptor) error {
	if q := d.Platform; q != nil && q.Architecture != "" && q.Architecture != p.arch {
		p.others = append(p.others, q.OS+"/"+q.Architecture)
		return nil
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		return err
	}
	config, err := configOf(img)
	if err != nil {
		return err
	}
	if config.Architecture != p.arch || config.OS != "linux" {
		p.others = append(p.others, config.OS+"/"+config.Architecture)
		return nil
	}
	p.found[d.Digest], p.digests = img, append(p.digests, d.Digest)
	return nil
}

func wrongArch(found, arch string) error {
	return fmt.Errorf("%w: for %s, want linux/%s", ErrFormat, found, arch)
}

// configOf returns the configuration of an image, if it is of bounded size.
func configOf(img v1.Image) (*v1.ConfigFile, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrFormat, err)
	}
	if m.Config.Size > maxJSON || m.Config.Size < 0 {
		return nil, fmt.Errorf("%w: configuration of %d bytes, want at most %d", ErrHostile, m.Config.Size, maxJSON)
	}
	if t := m.Config.MediaType; t != types.OCIConfigJSON && t != types.DockerConfigJSON {
		return nil, fmt.Errorf("%w: an OCI artifact with a configuration of type %q, want an image", ErrFormat, t)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, want at most %d", ErrHostile, len(m.Layers), maxLayers)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("%w: configuration: %w", ErrFormat, err)
	}
	return config, nil
}

// stored is a layer as it is stored, compressed or not.
type stored struct {
	name    string                        // for errors
	digest  v1.Hash                       // zero if nobody says
	content tree.Content                  // nil if there is only a stream
	open    func() (io.ReadCloser, error) // the stream, if there is no content
}

// rootOf applies the layers of an image for arch, lowest first.
func rootOf(ctx context.Context, config *v1.ConfigFile, all []stored, arch string, limits Limits) (*tree.Tree, error) {
	if config.Architecture != arch || config.OS != "linux" {
		return nil, wrongArch(config.OS+"/"+config.Architecture, arch)
	}
	if len(config.RootFS.DiffIDs) != len(all) {
		return nil, fmt.Errorf("%w: %d layers, the image's configuration names %d", ErrFormat, len(all), len(config.RootFS.DiffIDs))
	}
	u := newUntarrer(tree.New(), true, limits)
	for i, l := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := u.apply(l, config.RootFS.DiffIDs[i]); err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", i, l.name, err)
		}
	}
	return u.t, nil
}

// apply unpacks one layer and checks that it is the one that the image's
// configuration, diffID, and its manifest name.
func (u *untarrer) apply(l stored, diffID v1.Hash) error {
	var rc io.ReadCloser
	var err error
	if l.content != nil {
		rc = io.NopCloser(extent.Reader(l.content))
	} else if rc, err = l.open(); err != nil {
		return err
	}
	defer rc.Close()
	packed, unpacked := sha256.New(), sha256.New()
	tee := io.TeeReader(rc, packed)
	z, plain, err := decompress(tee)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defer z.Close()
	var at io.ReaderAt
	if plain && l.content != nil {
		at = l.content
	}
	if err := u.archive(io.TeeReader(z, unpacked), at); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if got := hex.EncodeToString(unpacked.Sum(nil)); got != diffID.Hex || diffID.Algorithm != "sha256" {
		return fmt.Errorf("%w: content is sha256:%s, want %s", ErrFormat, got, diffID)
	}
	if got := hex.EncodeToString(packed.Sum(nil)); l.digest.Hex != "" && got != l.digest.Hex {
		return fmt.Errorf("%w: the layer is sha256:%s, want %s", ErrFormat, got, l.digest)
	}
	return nil
}

// unpackImage applies the layers of an image. files, if not nil, has its blobs.
func unpackImage(ctx context.Context, img v1.Image, files *tree.Tree, arch string, limits Limits) (*tree.Tree, error) {
	config, err := configOf(img)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	all := make([]stored, len(layers))
	for i, l := range layers {
		s := stored{open: l.Compressed}
		if s.digest, err = l.Digest(); err != nil {
			return nil, err
		}
		s.name = s.digest.String()
		if files != nil {
			if s.content, err = blob(files, s.digest); err != nil {
				return nil, err
			}
		}
		all[i] = s
	}
	return rootOf(ctx, config, all, arch, limits)
}

// savedManifest is the file that says what a tar from "docker save" holds.
const savedManifest = "manifest.json"

// saved is an image in it.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// unpackSaved applies the layers of the image for arch in what "docker save"
// writes.
func unpackSaved(ctx context.Context, files *tree.Tree, arch string, limits Limits) (*tree.Tree, error) {
	raw, err := readFile(files, savedManifest, maxJSON)
	if err != nil {
		return nil, err
	}
	images, err := decode[[]saved](raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", savedManifest, err)
	}
	if len(*images) > maxImages {
		return nil, fmt.Errorf("%w: %s: more than %d images", ErrHostile, savedManifest, maxImages)
	}
	var others []string
	var match *saved
	var config *v1.ConfigFile
	for i, s := range *images {
		raw, err := readFile(files, path.Clean(s.Config), maxJSON)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", savedManifest, err)
		}
		c, err := decode[v1.ConfigFile](raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Config, err)
		}
		switch {
		case c.Architecture != arch || c.OS != "linux":
			others = append(others, c.OS+"/"+c.Architecture)
		case match != nil:
			return nil, fmt.Errorf("%w: %s: %q and %q are both for linux/%s; want one image", ErrFormat, savedManifest, match.RepoTags, s.RepoTags, arch)
		default:
			match, config = &(*images)[i], c
		}
	}
	switch {
	case match == nil && len(others) == 0:
		return nil, fmt.Errorf("%w: %s names no image", ErrFormat, savedManifest)
	case match == nil:
		return nil, wrongArch(strings.Join(others, ", "), arch)
	case len(match.Layers) > maxLayers:
		return nil, fmt.Errorf("%w: %d layers, want at most %d", ErrHostile, len(match.Layers), maxLayers)
	}
	var all []stored
	for _, name := range match.Layers {
		file := path.Clean(name)
		ino := files.Lookup(file)
		if ino != nil && ino.Mode&fs.ModeSymlink != 0 { // an old docker's, for a layer that comes twice
			ino = files.Lookup(path.Join(path.Dir(file), ino.Target))
		}
		if ino == nil || !ino.Mode.IsRegular() || ino.Content == nil {
			return nil, fmt.Errorf("%w: %s: no layer %q", ErrFormat, savedManifest, clip(name))
		}
		all = append(all, stored{name: clip(name), content: ino.Content})
	}
	return rootOf(ctx, config, all, arch, limits)
}

// readFile returns a file of a tree, of at most limit bytes.
func readFile(t *tree.Tree, name string, limit int64) ([]byte, error) {
	ino := t.Lookup(name)
	if ino == nil || !ino.Mode.IsRegular() {
		return nil, fmt.Errorf("%w: no file %s", ErrFormat, clip(name))
	}
	if ino.Size() > limit {
		return nil, fmt.Errorf("%w: %s: %d bytes, want at most %d", ErrFormat, name, ino.Size(), limit)
	}
	data, err := readAll(ino)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

func decode[T any](raw []byte) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return v, nil
}

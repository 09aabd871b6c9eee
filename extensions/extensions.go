// Package extensions reads system extensions: what adds files, above all kernel
// modules, to an image without touching its base.
//
// An extension is manifest.yaml and a directory rootfs/, in one of three forms:
//
//   - a directory that holds them,
//   - a tar of such a directory, plain or gzip- or zstd-compressed,
//   - an OCI image layout (a directory) whose image holds them.
//
// On the node rootfs/ becomes one read-only squashfs layer above the base's
// root file system.
package extensions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	manifestName = "manifest.yaml"
	rootName     = "rootfs"
	maxManifest  = 1 << 20 // bytes
)

// Extension is a system extension that has been read and validated.
type Extension struct {
	Manifest Manifest
	RootFS   *tree.Tree
	Ref      string // how the user named it
	Digest   string // "sha256:…" over manifest and root file system
}

// String names the extension in messages: name@sha256:….
func (e *Extension) String() string {
	return e.Manifest.Metadata.Name + "@" + e.Digest[:len("sha256:")+12]
}

// ErrFormat is wrapped by errors for something that is not an extension.
var ErrFormat = errors.New("not a system extension")

// Open reads the extension at ref for a machine of the given architecture.
func Open(ctx context.Context, ref, arch string, limits Limits) (*Extension, error) {
	e, err := open(ctx, ref, arch, limits)
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", ref, err)
	}
	return e, nil
}

func open(ctx context.Context, ref, arch string, limits Limits) (*Extension, error) {
	fi, err := os.Stat(ref)
	if err != nil {
		return nil, err
	}
	var t *tree.Tree
	switch {
	case !fi.IsDir():
		t, err = openTar(ref, limits)
	case exists(filepath.Join(ref, "oci-layout")):
		t, err = openLayout(ctx, ref, arch, limits)
	default:
		t, err = openDir(ctx, ref, limits)
	}
	if err != nil {
		return nil, err
	}
	return FromTree(ref, t)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// openDir reads a directory. Its owners and times are those of whoever made
// it, and mean nothing.
func openDir(ctx context.Context, name string, limits Limits) (*tree.Tree, error) {
	if !exists(filepath.Join(name, manifestName)) {
		return nil, fmt.Errorf("%w: no %s in the directory, nor is it an OCI image layout", ErrFormat, manifestName)
	}
	t, err := dir.Read(ctx, name, dir.Options{})
	if err != nil {
		return nil, err
	}
	limits = limits.withDefaults()
	if t.Len() > limits.Entries {
		return nil, fmt.Errorf("%w: more than %d entries", ErrHostile, limits.Entries)
	}
	return t, nil
}

// openTar reads a tar file; the contents of an uncompressed one stay in it.
func openTar(name string, limits Limits) (*tree.Tree, error) {
	src, err := extent.File(name)
	if err != nil {
		return nil, err
	}
	r, plain, err := decompress(io.NewSectionReader(src, 0, src.Size()))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var at io.ReaderAt
	if plain {
		at = src
	}
	t := tree.New()
	if err := untar(r, at, t, false, limits); err != nil {
		if errors.Is(err, ErrHostile) || t.Len() > 1 {
			return nil, err
		}
		return nil, fmt.Errorf("%w: neither a directory nor a tar file: %w", ErrFormat, err)
	}
	return t, nil
}

// decompress unpacks gzip and zstd, told by their magic numbers.
func decompress(r io.ReadSeeker) (_ io.ReadCloser, plain bool, err error) {
	var magic [4]byte
	n, err := io.ReadFull(r, magic[:])
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, false, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, false, err
	}
	switch {
	case n >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(r)
		return z, false, err
	case n == 4 && magic == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, false, err
		}
		return z.IOReadCloser(), false, nil
	}
	return io.NopCloser(r), true, nil
}

// openLayout reads the image in an OCI image layout, applying its layers.
func openLayout(ctx context.Context, name, arch string, limits Limits) (*tree.Tree, error) {
	img, err := imageFor(layout.Path(name), arch)
	if err != nil {
		return nil, err
	}
	all, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(all) {
		return nil, fmt.Errorf("%w: %d layers, the image's configuration names %d", ErrFormat, len(all), len(config.RootFS.DiffIDs))
	}
	t := tree.New()
	for i, layer := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := applyLayer(layer, config.RootFS.DiffIDs[i], t, limits); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return t, nil
}

// applyLayer unpacks one layer over t and checks that it is the one the image's
// configuration names.
func applyLayer(layer v1.Layer, want v1.Hash, t *tree.Tree, limits Limits) error {
	rc, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	r := io.TeeReader(rc, h)
	if err := untar(r, nil, t, true, limits); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows the end of the archive
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: content is sha256:%s, want %s", ErrFormat, got, want)
	}
	return nil
}

// FromTree returns the extension in a tree with manifest.yaml and rootfs/, after
// checking what all forms of it have in common. ref stands for it in messages.
func FromTree(ref string, t *tree.Tree) (*Extension, error) {
	for _, name := range t.Children(".") {
		if name != manifestName && name != rootName {
			return nil, fmt.Errorf("%w: unexpected %s at the top, want only %s and %s/", ErrFormat, name, manifestName, rootName)
		}
	}
	ino := t.Lookup(manifestName)
	if ino == nil || !ino.Mode.IsRegular() {
		return nil, fmt.Errorf("%w: no %s at the top", ErrFormat, manifestName)
	}
	if ino.Size() > maxManifest {
		return nil, fmt.Errorf("%w: %s: %d bytes, want at most %d", ErrFormat, manifestName, ino.Size(), maxManifest)
	}
	data := make([]byte, ino.Size())
	if ino.Content != nil {
		if _, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), data); err != nil {
			return nil, fmt.Errorf("%s: %w", manifestName, err)
		}
	}
	manifest, err := ParseManifest(manifestName, data)
	if err != nil {
		return nil, err
	}
	if root := t.Lookup(rootName); root == nil || !root.Mode.IsDir() {
		return nil, fmt.Errorf("%w: no directory %s/", ErrFormat, rootName)
	}
	rootfs, err := sub(t, rootName)
	if err != nil {
		return nil, err
	}
	for name, ino := range rootfs.All() {
		if ino.Mode&fs.ModeSymlink != 0 && escapes(name, ino.Target) {
			return nil, fmt.Errorf("%w: %s/%s: symbolic link to %s leads out of the root", ErrHostile, rootName, name, ino.Target)
		}
	}
	// The digest is over what matters, so that all forms of one extension
	// share it.
	whole := tree.New()
	if err := whole.Add(manifestName, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(data)}); err != nil {
		return nil, err
	}
	root, err := rootfs.Digest()
	if err != nil {
		return nil, err
	}
	if err := whole.Add(rootName, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(root[:])}); err != nil {
		return nil, err
	}
	sum, err := whole.Digest()
	if err != nil {
		return nil, err
	}
	return &Extension{Manifest: manifest, RootFS: rootfs, Ref: ref, Digest: "sha256:" + hex.EncodeToString(sum[:])}, nil
}

// sub returns the part of t below directory name as a tree of its own.
func sub(t *tree.Tree, name string) (*tree.Tree, error) {
	out := tree.New()
	for p, ino := range t.All() {
		if p == name {
			p = name + "/."
		}
		rest, ok := strings.CutPrefix(p, name+"/")
		if !ok {
			continue
		}
		if err := out.Add(path.Clean(rest), ino); err != nil {
			return nil, err
		}
	}
	return out, nil
}

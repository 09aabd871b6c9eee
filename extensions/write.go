package extensions

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/internal/ocilayout"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// WriteLayout stores an extension, a tree with manifest.yaml and rootfs/, as an
// OCI image layout with one uncompressed layer: what extensions hold, modules
// and firmware, is compressed already.
func WriteLayout(ctx context.Context, path string, t *tree.Tree, arch string, epoch int64) error {
	if _, err := FromTree(path, t); err != nil {
		return err
	}
	data, err := archive(ctx, t)
	if err != nil {
		return err
	}
	when := v1.Time{Time: time.Unix(epoch, 0).UTC()}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   uncompressed{static.NewLayer(data, types.OCIUncompressedLayer), sha256.Sum256(data)},
		History: v1.History{CreatedBy: "kiln extension build", Created: when},
	})
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, when
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	return ocilayout.Write(path, img, v1.Platform{OS: "linux", Architecture: arch})
}

// uncompressed is a static layer that knows its diff ID.
type uncompressed struct {
	v1.Layer
	sum [sha256.Size]byte
}

func (u uncompressed) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(u.sum[:])}, nil
}

// archive writes t as a tar with fixed order and metadata.
func archive(ctx context.Context, t *tree.Tree) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
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
		for bit, mode := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if ino.Mode&mode != 0 {
				hdr.Mode |= bit
			}
		}
		for k, v := range ino.Xattrs {
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords["SCHILY.xattr."+k] = string(v)
		}
		target, again := first[ino]
		switch {
		case ino.Mode.IsDir():
			hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
		case again:
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, target
		case ino.Mode.IsRegular():
			hdr.Typeflag, hdr.Size = tar.TypeReg, ino.Size()
		case ino.Mode&fs.ModeSymlink != 0:
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, ino.Target
		default:
			return nil, fmt.Errorf("%s: cannot put %s into an extension", name, ino.Mode.Type())
		}
		first[ino] = name
		if err := tw.WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if hdr.Typeflag == tar.TypeReg && ino.Content != nil {
			if _, err := io.Copy(tw, io.NewSectionReader(ino.Content, 0, ino.Size())); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return buf.Bytes(), tw.Close()
}

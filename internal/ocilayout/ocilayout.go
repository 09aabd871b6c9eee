// Package ocilayout writes and reads OCI image layouts: directories, or archives of
// them, with oci-layout, which says so, index.json, which names manifests, and blobs/,
// where manifests, configurations and layers are by digest. See the OCI image
// specification, "Image Layout".
package ocilayout

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// Write stores img as the only image of a layout at path, replacing a layout
// that is there. It is written beside path first and then put in its place, so
// path is old or new.
func Write(path string, img v1.Image) error {
	platform, err := platformOf(img)
	if err != nil {
		return err
	}
	return WriteArtifact(path, img, platform)
}

func platformOf(img v1.Image) (v1.Platform, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return v1.Platform{}, err
	}
	return v1.Platform{OS: config.OS, Architecture: config.Architecture}, nil
}

// WriteArtifact is Write for what is stored as an image but is none, so that its
// configuration does not tell the platform.
func WriteArtifact(path string, img v1.Image, platform v1.Platform) error {
	if err := replaceable(path); err != nil {
		return err
	}
	parent, name := filepath.Split(filepath.Clean(path))
	if parent == "" {
		parent = "."
	}
	tmp, err := os.MkdirTemp(parent, "."+name+".tmp-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	p, err := layout.Write(tmp, empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img, layout.WithPlatform(platform)); err != nil {
		return err
	}
	if err := publish(tmp); err != nil {
		return err
	}
	return replace(tmp, path)
}

// publish gives files and directories the permissions of things to share,
// whatever the umask and the library chose.
func publish(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}

// replaceable refuses to replace a directory that is not an OCI layout.
func replaceable(path string) error {
	fi, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		if _, err := os.Stat(filepath.Join(path, "oci-layout")); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: exists and is not an OCI image layout; remove it or choose another output", path)
}

// replace gives the directory tmp the name path. If there is one already the two
// are exchanged, and the caller removes the old one under the name tmp.
func replace(tmp, path string) error {
	if _, err := os.Lstat(path); os.IsNotExist(err) {
		return os.Rename(tmp, path)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: tmp, New: path, Err: err}
	}
	return nil
}

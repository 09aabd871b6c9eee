package imager

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
)

// pxe are the files to boot from the network: a script for iPXE, and what it
// loads from where it came from itself.
func pxe(i *Image) (map[string]extent.Source, error) {
	a, err := i.diskless()
	if err != nil {
		return nil, err
	}
	// UEFI's stub finds the initramfs by name; without a disk there is no slot.
	script := fmt.Sprintf("#!ipxe\nkernel vmlinuz initrd=initramfs %s\ninitrd initramfs\nboot\n", a.cmdline)
	return map[string]extent.Source{
		"vmlinuz":   a.kernel,
		"initramfs": a.initramfs,
		"cmdline":   extent.Bytes([]byte(a.cmdline + "\n")),
		"boot.ipxe": extent.Bytes([]byte(script)),
	}, nil
}

// writeTree writes files to a new directory at path, in place of one that is
// there: whole or not at all.
func writeTree(ctx context.Context, path string, files map[string]extent.Source, progress func(int64)) error {
	path = filepath.Clean(path)
	tmp, err := os.MkdirTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeSource(ctx, filepath.Join(tmp, name), files[name], progress); err != nil {
			return err
		}
	}
	old := tmp + ".old"
	switch err := os.Rename(path, old); {
	case err == nil:
		defer os.RemoveAll(old)
	case !os.IsNotExist(err):
		return err
	}
	return os.Rename(tmp, path)
}

func writeSource(ctx context.Context, path string, src extent.Source, progress func(int64)) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o644); err != nil { // whatever the umask is
		return err
	}
	m, err := extent.Concat(1, src)
	if err == nil {
		err = extent.WriteSparse(ctx, f, m, progress)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// tarTree writes files as a tar archive.
func tarTree(w io.Writer, files map[string]extent.Source, epoch int64) error {
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		hdr := &tar.Header{Name: name, Mode: 0o644, Size: files[name].Size(), ModTime: time.Unix(epoch, 0).UTC(), Format: tar.FormatPAX}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := io.Copy(tw, extent.Reader(files[name])); err != nil {
			return err
		}
	}
	return tw.Close()
}

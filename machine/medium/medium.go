// Package medium finds the medium that a node was started from, a CD or a USB
// stick with an ISO image, and says where on it is what 'kiln install' installs.
//
// An ISO image has a GUID partition table in the area that ISO 9660 leaves free,
// whether it is on a CD or on a disk; the GUID of the disk in it is the identity
// of the image. The kernel command line has it.
package medium

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/imager/gpt"
)

// What there is to install from, by the path in the file system.
const (
	// Source is the directory with the inputs of composing: a source directory
	// as installer images have it.
	Source = "kiln"
	// Program is a squashfs image with the program that installs, whose name is
	// Tool.
	Program = Source + "/program.sqsh"
	Tool    = "kiln"
	// ImageCache is an OCI image layout with container images for the node, if
	// there is one.
	ImageCache = Source + "/imagecache"
)

// ErrNotFound is wrapped by Find's error when the medium is not there, or not
// yet.
var ErrNotFound = errors.New("installation medium not found")

// Find returns the kernel's name of the device with the ISO image whose GUID is
// id, among those that have no other device as their whole. sys and dev are where
// sysfs and the device nodes are: /sys and /dev. Where there are copies of one
// image, the first by name is as good as the others.
func Find(sys, dev, id string) (string, error) {
	class := filepath.Join(sys, "class/block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	var others []string
	for _, e := range entries {
		dir := filepath.Join(class, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
			continue
		}
		found, err := identify(dir, filepath.Join(dev, e.Name()))
		if err != nil {
			continue // a drive without a disc, or a disk that is none of ours
		}
		if strings.EqualFold(found, id) {
			return e.Name(), nil
		}
		others = append(others, e.Name()+" ("+found+")")
	}
	if len(others) == 0 {
		return "", fmt.Errorf("%w: %s; no CD or disk with an ISO image is there: is the driver of the drive in the image? The cloud kernel has none for USB", ErrNotFound, id)
	}
	slices.Sort(others)
	return "", fmt.Errorf("%w: %s; there are others: %s", ErrNotFound, id, strings.Join(others, ", "))
}

// identify returns the GUID of the ISO image on a device.
func identify(dir, node string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return "", err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // always of 512 bytes
	if err != nil {
		return "", err
	}
	f, err := os.Open(node)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// The first volume descriptor, in the sector behind the free area.
	const descriptor = 16 * 2048
	magic := make([]byte, 6)
	if _, err := f.ReadAt(magic, descriptor); err != nil {
		return "", err
	}
	if !bytes.Equal(magic, []byte("\x01CD001")) {
		return "", errors.New("no ISO 9660 image")
	}
	t, err := gpt.Read(f, sectors*512)
	if err != nil {
		return "", err
	}
	return t.DiskID.String(), nil
}

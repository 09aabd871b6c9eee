//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/imagecache"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/service"
)

// ImageCacheName is the service that brings the image cache into containerd. It is
// done soon, and what needs images comes after it.
const ImageCacheName = "imagecache"

// Kernel arguments of ISO images.
const (
	argImageCache = "kiln.imagecache" // "medium": there is one
	argMedium     = "kiln.medium"     // GUID of the ISO image
)

// mediumWait is how long a CD drive may take to be there.
const mediumWait = 30 * time.Second

// imageCacheService returns the service that brings in the image cache, if the disk
// or the medium has one. A cache that cannot be used is a remark: the node then
// does without.
func (n *Node) imageCacheService(ctx context.Context) []service.Spec {
	if !n.hasContainerd() {
		return nil
	}
	dir, err := n.findImageCache(ctx)
	if err != nil {
		n.remark(ImageCacheName, "%v", err)
	}
	if dir == "" || err != nil {
		return nil
	}
	report := filepath.Join(n.options.RunDir, "imagecache.json")
	go n.reportImageCache(n.services.Events(ctx), report)
	return []service.Spec{{
		Name: ImageCacheName, Path: clientProgram, Args: []string{"cache", dir, report}, Env: []string{"PATH=/usr/bin", "GOMEMLIMIT=32MiB"},
		After: []string{ContainerdName}, Restart: service.OnFailure,
	}}
}

// imageServices returns the services after which the images are there that the node
// came with.
func (n *Node) imageServices() []string {
	if _, err := n.services.Log(ImageCacheName); err != nil {
		return []string{ContainerdName}
	}
	return []string{ContainerdName, ImageCacheName}
}

// findImageCache mounts what has the image cache and returns its directory, or ""
// if there is none.
func (n *Node) findImageCache(ctx context.Context) (dir string, err error) {
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	target := filepath.Join(n.options.RunDir, "imagecache")
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", err
	}
	if n.options.Disk != "" {
		device, err := imageCachePartition(filepath.Base(n.options.Disk))
		if device == "" || err != nil {
			return "", err
		}
		return target, mount.Mount(mount.FileSystem{Source: device, Target: target, Type: "ext4", Flags: flags})
	}
	id := mediumWithImages(n.options.Args)
	if id == "" {
		return "", nil
	}
	go func() { // the service waits for it
		name, err := waitForMedium(ctx, id)
		if err == nil {
			err = mount.Mount(mount.FileSystem{Source: "/dev/" + name, Target: target, Type: "iso9660", Flags: flags})
		}
		if err != nil {
			n.remark(ImageCacheName, "%v", err)
		}
	}()
	return path.Join(target, medium.ImageCache), nil
}

// imageCachePartition returns the device with the cache on a disk of that name, or
// "".
func imageCachePartition(name string) (string, error) {
	disks, err := disk.List("/sys", "/dev")
	if err != nil {
		return "", err
	}
	for i := range disks {
		if disks[i].Name != name {
			continue
		}
		p, _ := disks[i].Partition(disk.ImageCache)
		return p.Device, nil
	}
	return "", fmt.Errorf("disk %s is gone", name)
}

// mediumWithImages returns the GUID of the ISO image that the node was started
// from, if that has a cache.
func mediumWithImages(args cmdline.Args) string {
	if v, _ := args.Get(argImageCache); v != "medium" {
		return ""
	}
	id, _ := args.Get(argMedium)
	return id
}

// waitForMedium returns the kernel's name of the device with an ISO image.
func waitForMedium(ctx context.Context, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, mediumWait)
	defer cancel()
	for {
		name, err := medium.Find("/sys", "/dev", id)
		if !errors.Is(err, medium.ErrNotFound) {
			return name, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return "", err
		}
	}
}

// reportImageCache tells what became of the images whenever they have been brought
// in.
func (n *Node) reportImageCache(events <-chan service.Event, file string) {
	began := time.Now()
	for e := range events {
		switch {
		case e.Name == ImageCacheName && e.State == service.Starting:
			began = e.Time
		case e.Name == ImageCacheName && e.State == service.Done:
			r, err := imagecache.Read(file)
			if err != nil {
				n.remark(ImageCacheName, "%v", err)
				continue
			}
			n.tellImageCache(r, e.Time.Sub(began))
		}
	}
}

func (n *Node) tellImageCache(r *imagecache.Report, took time.Duration) {
	faults := r.Faults()
	n.options.Console.Stage(ImageCacheName, console.F("images", len(r.Images)), console.F("imported", r.Count(imagecache.Imported)),
		console.F("kept", r.Count(imagecache.Kept)), console.F("failed", len(faults)), console.F("took", strconv.FormatFloat(took.Seconds(), 'f', 1, 64)+"s"))
	for _, i := range r.Images {
		n.event(ImageCacheName, i.Name, i.State, map[string]string{"digest": i.Digest})
	}
	for _, fault := range faults {
		n.remark(ImageCacheName, "%s", fault)
	}
}

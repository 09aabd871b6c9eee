//go:build linux

package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/devicemapper"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/watchdog"
)

// bootLabel is that of the partition with the layers.
const bootLabel = "BOOT"

// verityModules are what proves layers on a disk, in the order to load them. The
// first are quicker implementations of the hash than the kernel's own, which any
// kernel can do without.
var verityModules = []string{"crypto-sha256", "dm_mod", "dm_verity"}

// diskLayers is the file with the layers of a slot.
type diskLayers struct {
	partition disk.Partition
	slot      string
	extents   []ext4.Extent // of the partition
}

// findLayers loads drivers until there is a disk with the file that the list
// describes, in the slot that the boot loader names or, if it names none, in any.
// BOOT is read, and not mounted.
func findLayers(args cmdline.Args, list *layers.List, loader *modules.Loader, dog *watchdog.Keeper) (*diskLayers, error) {
	for i, name := range verityModules {
		if err := loader.Load(name, ""); err != nil && i > 0 {
			return nil, err
		}
	}
	d, err := newDevices(loader, nil, dog)
	if err != nil {
		return nil, err
	}
	defer d.listener.Close()
	if err := d.walk(); err != nil {
		return nil, err
	}
	guid, _ := args.Get(argDisk)
	slots := []string{"A", "B"}
	if s, _ := args.Get(argSlot); slices.Contains(slots, s) {
		slots = append([]string{s}, slots...)
	}
	for deadline := time.Now().Add(patienceNamed); ; {
		if err := d.settle(); err != nil {
			return nil, err
		}
		disks, err := disk.List("/sys", "/dev")
		if err != nil {
			return nil, err
		}
		found, err := search(disks, guid, slots, list)
		if found != nil {
			return found, nil
		}
		left := time.Until(deadline)
		if left <= 0 || errors.Is(err, errDecided) {
			return nil, err
		}
		if _, err := d.next(left); err != nil {
			return nil, err
		}
	}
}

// errDecided is wrapped by the errors of search that waiting does not change.
var errDecided = errors.New("no slot of the disk has the layers of this system")

// search looks for the file with the layers on the disk that is named, or on all.
func search(disks []disk.Disk, guid string, slots []string, list *layers.List) (*diskLayers, error) {
	var tried, names []string
	decided := false
	for _, d := range disks {
		names = append(names, d.Name)
		p, ok := d.Partition(bootLabel)
		if guid != "" && !strings.EqualFold(d.GUID, guid) {
			continue
		}
		decided = decided || guid != "" && d.Complete
		if !ok {
			if guid != "" {
				tried = append(tried, d.Name+" has no partition "+bootLabel)
			}
			continue
		}
		for _, slot := range slots {
			extents, err := match(p.Device, slot, list)
			if err == nil {
				return &diskLayers{p, slot, extents}, nil
			}
			if why := fmt.Sprintf("%s slot %s: %v", p.Name, slot, err); !slices.Contains(tried, why) {
				tried = append(tried, why)
			}
		}
	}
	switch {
	case decided:
		return nil, fmt.Errorf("%w: %s; roll back, or install anew", errDecided, strings.Join(tried, "; "))
	case len(tried) > 0:
		return nil, fmt.Errorf("no disk has the layers of this system: %s; roll back, or install anew", strings.Join(tried, "; "))
	case len(names) > 0:
		return nil, fmt.Errorf("the layers are on the partition %s of a disk that is not there (%s=%s); disks: %s", bootLabel, argDisk, guid, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("the layers are on the partition %s, and no partitioned disk is there: is its driver in the image?", bootLabel)
}

// match returns where the file with the layers is, if it is that of the list.
func match(device, slot string, list *layers.List) ([]ext4.Extent, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	fsys, err := ext4.Open(f, size)
	if err != nil {
		return nil, err
	}
	name := slot + "/" + layers.File
	ino := fsys.Tree.Lookup(name)
	if ino == nil || ino.Size() == 0 {
		return nil, errors.New("no layers")
	}
	if err := list.Match(ino.Content, ino.Size()); err != nil {
		return nil, err
	}
	return fsys.Extents(name)
}

// mount mounts a layer on a directory. The kernel checks every block that it
// reads, and restarts the machine if one is damaged: boot loaders count that as a
// try of a slot that is on trial.
func (l *diskLayers) mount(y layers.Layer, dir string) error {
	control, err := devicemapper.Open()
	if err != nil {
		return err
	}
	defer control.Close()
	name := "kiln-" + strings.TrimSuffix(path.Base(y.Path), path.Ext(y.Path))
	below, err := control.Linear(name+"-file", true, l.segments(y))
	if err != nil {
		return err
	}
	v := devicemapper.Verity{Data: below, Hash: below, Blocks: y.Blocks(), Start: y.Blocks(), OnCorruption: devicemapper.Restart}
	v.Salt, v.Root = y.Keys()
	device, err := control.Verity(name, v)
	if err != nil {
		return err
	}
	return mount.Mount(mount.FileSystem{Source: device, Target: dir, Type: "squashfs", Flags: unix.MS_RDONLY | unix.MS_NODEV})
}

// segments are the parts of the partition with the layer and its hash tree.
func (l *diskLayers) segments(y layers.Layer) []devicemapper.Segment {
	var out []devicemapper.Segment
	start, end := y.Span()
	at := int64(0) // in the file
	for _, e := range l.extents {
		from, to := max(start, at), min(end, at+e.Length)
		if from < to {
			out = append(out, devicemapper.Segment{Device: l.partition.Device, Offset: e.Offset + from - at, Length: to - from})
		}
		at += e.Length
	}
	return out
}

//go:build linux

package stage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/verity"
	"github.com/kilnhq/kiln/machine/devicemapper"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/layers"
)

// A layer is where the extents of the file say, also if it begins or ends in the
// middle of one.
func TestSegments(t *testing.T) {
	const b = verity.BlockSize
	l := diskLayers{partition: disk.Partition{Device: "/dev/vda3"}, extents: []ext4.Extent{{Offset: 100 * b, Length: 3 * b}, {Offset: 50 * b, Length: b}, {Offset: 200 * b, Length: 10 * b}}}
	at := func(block, size int64) layers.Layer {
		return layers.Layer{Size: size, Verity: &layers.Verity{Offset: block * b}}
	}
	for _, c := range []struct {
		layer layers.Layer
		want  []devicemapper.Segment // in blocks
	}{
		{at(0, b), []devicemapper.Segment{{Offset: 100, Length: 1}}},
		{at(0, 2*b), []devicemapper.Segment{{Offset: 100, Length: 3}}},
		{at(2, b+1), []devicemapper.Segment{{Offset: 102, Length: 1}, {Offset: 50, Length: 1}, {Offset: 200, Length: 1}}},
		{at(5, 8*b), []devicemapper.Segment{{Offset: 201, Length: 9}}},
	} {
		for i := range c.want {
			c.want[i] = devicemapper.Segment{Device: "/dev/vda3", Offset: c.want[i].Offset * b, Length: c.want[i].Length * b}
		}
		if got := l.segments(c.layer); !slices.Equal(got, c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", c.layer.Size, c.layer.Verity.Offset, got, c.want)
		}
	}
}

// What is not found says why, and whether it is worth to wait for another disk.
func TestSearch(t *testing.T) {
	list := &layers.List{Layers: []layers.Layer{{Size: 1, Verity: &layers.Verity{}}}}
	empty := filepath.Join(t.TempDir(), "vda3")
	if err := os.WriteFile(empty, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	boot := disk.Disk{Name: "vda", GUID: "aaaa", Complete: true, Partitions: []disk.Partition{{Name: "vda3", Label: "BOOT", Device: empty}}}
	coming := boot
	coming.Complete = false
	other := disk.Disk{Name: "sda", GUID: "bbbb", Complete: true}
	for _, c := range []struct {
		name    string
		disks   []disk.Disk
		guid    string
		decided bool
		want    string
	}{
		{"no disk", nil, "AAAA", false, "the layers are on the partition BOOT, and no partitioned disk is there: is its driver in the image?"},
		{"another disk", []disk.Disk{other}, "aaaa", false, "the layers are on the partition BOOT of a disk that is not there (kiln.disk=aaaa); disks: sda"},
		{"the disk without them", []disk.Disk{other, boot}, "AAAA", true, "no slot of the disk has the layers of this system: vda3 slot B: ext4: corrupt file system"},
		{"the disk without BOOT", []disk.Disk{other, boot}, "BBBB", true, "no slot of the disk has the layers of this system: sda has no partition BOOT; roll back"},
		{"its partitions are coming", []disk.Disk{coming}, "AAAA", false, "no disk has the layers of this system: vda3 slot B: "},
		{"any disk", []disk.Disk{boot}, "", false, "no disk has the layers of this system: vda3 slot B: "},
	} {
		found, err := search(c.disks, c.guid, []string{"B", "A", "B"}, list)
		if found != nil || err == nil || !strings.HasPrefix(err.Error(), c.want) || errors.Is(err, errDecided) != c.decided {
			t.Errorf("%s: %v, %v; want %q, decided %t", c.name, found, err, c.want, c.decided)
		}
		if err != nil && strings.Count(err.Error(), "slot B") > 1 {
			t.Errorf("%s: the same reason twice: %v", c.name, err)
		}
	}
}

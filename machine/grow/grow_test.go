package grow

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/powercut"
)

const mib = 1 << 20

func table(attributes uint64) *gpt.Table {
	return &gpt.Table{DiskID: gpt.GUID{1}, SectorSize: 512, Size: 8 * mib, Partitions: []gpt.Partition{
		{Type: gpt.EFISystem, ID: gpt.GUID{2}, Name: "EFI", Start: mib, Size: 2 * mib},
		{},
		{Type: gpt.LinuxFilesystem, ID: gpt.GUID{3}, Name: "EPHEMERAL", Start: 3 * mib, Size: 4 * mib, Attributes: attributes},
	}}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		attributes uint64
		size, want int64 // of the disk and of the partition
	}{
		{gpt.GrowFileSystem, 8 * mib, 4 * mib},
		{gpt.GrowFileSystem, 8*mib + 32*512, 4 * mib},
		{gpt.GrowFileSystem, 8*mib + 33*512, 5 * mib}, // the table takes 33 sectors
		{gpt.GrowFileSystem, 3 << 40, 3<<40 - 4*mib},
		{0, 100 * mib, 4 * mib},
		{gpt.LegacyBIOSBootable, 100 * mib, 4 * mib},
	} {
		got, grown := Fit(table(tt.attributes), tt.size)
		if p := got.Partitions[2]; p.Size != tt.want || grown != (tt.want != 4*mib) || got.Size != tt.size {
			t.Errorf("%d bytes, attributes %x: partition of %d, %v, table for %d; want %d", tt.size, tt.attributes, p.Size, grown, got.Size, tt.want)
		}
		if _, err := got.Map(); err != nil {
			t.Errorf("%d bytes: %v", tt.size, err)
		}
	}
}

// Wherever a start is cut off, the next one goes on from there.
func TestTableCut(t *testing.T) {
	disk := powercut.New(make([]byte, 20*mib))
	if err := table(gpt.GrowFileSystem).Store(disk); err != nil {
		t.Fatal(err)
	}
	disk = powercut.New(disk.Bytes())
	want, written, err := Table(disk, disk.Size())
	if err != nil || !written {
		t.Fatalf("%v, %v", written, err)
	}
	n, err := disk.Cuts(1, 4, func(c powercut.Cut) error {
		again := powercut.New(bytes.Clone(c.Content))
		if _, _, err := Table(again, again.Size()); err != nil {
			return err
		}
		got, written, err := Table(again, again.Size())
		if err != nil {
			return err
		}
		if written || got.Damaged != nil || !reflect.DeepEqual(got.Partitions, want.Partitions) {
			t.Errorf("%v: %+v, written again: %v", c, got, written)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n < 10 {
		t.Errorf("%d states are too few", n)
	}
}

// A table that fits is left alone.
func TestTableFits(t *testing.T) {
	disk := powercut.New(make([]byte, 8*mib))
	if err := table(gpt.GrowFileSystem).Store(disk); err != nil {
		t.Fatal(err)
	}
	before := disk.Operations()
	if _, written, err := Table(disk, disk.Size()); written || err != nil {
		t.Errorf("%v, %v", written, err)
	}
	if disk.Operations() != before {
		t.Error("something was written")
	}
}

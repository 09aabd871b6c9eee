package gpt

import (
	"bytes"
	"errors"
	"reflect"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/internal/powercut"
)

// A disk whose table is replaced has the old one or the new one at any time,
// also when the old backup is where a smaller disk ended.
func TestStoreCut(t *testing.T) {
	const mib = 1 << 20
	small := &Table{DiskID: GUID{1}, SectorSize: 512, Size: 4 * mib, BootCode: []byte("code"), Partitions: []Partition{
		{Type: EFISystem, ID: GUID{2}, Name: "EFI", Start: mib, Size: mib},
		{Type: LinuxFilesystem, ID: GUID{3}, Name: "EPHEMERAL", Start: 2 * mib, Size: mib},
	}}
	large := *small
	large.Size = 8 * mib
	large.Partitions = []Partition{small.Partitions[0], small.Partitions[1]}
	large.Partitions[1].Size = 5 * mib
	disk := powercut.New(make([]byte, large.Size))
	if err := small.Store(disk); err != nil {
		t.Fatal(err)
	}
	disk = powercut.New(disk.Bytes())
	if err := large.Store(disk); err != nil {
		t.Fatal(err)
	}
	whole := func(b []byte) *Table {
		got, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return nil
		}
		if !bytes.HasPrefix(got.BootCode, small.BootCode) {
			t.Error("the boot code is gone")
		}
		return got
	}
	found := map[int64]int{}
	n, err := disk.Cuts(1, 20, func(c powercut.Cut) error {
		got := whole(c.Content)
		if got == nil {
			return errors.New("no table")
		}
		size := got.Partitions[1].Size
		if !reflect.DeepEqual(got.Partitions, small.Partitions) && !reflect.DeepEqual(got.Partitions, large.Partitions) {
			return errors.New("neither table")
		}
		found[size]++
		return nil
	})
	if err != nil || found[mib] == 0 || found[5*mib] == 0 {
		t.Errorf("%d states, %v: %v", n, found, err)
	}
	if got := whole(disk.Bytes()); got == nil || got.Damaged != nil {
		t.Errorf("in the end: %+v", got)
	}
	for n := range disk.Operations() {
		broken := powercut.New(disk.Bytes())
		broken.Fail = func(i int) error {
			if i == n {
				return syscall.EIO
			}
			return nil
		}
		if err := small.Store(broken); !errors.Is(err, syscall.EIO) {
			t.Errorf("operation %d fails: %v", n, err)
		}
	}
}

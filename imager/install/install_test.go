package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/internal/powercut"
)

const mib = 1 << 20

func bytesOf(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// image is a disk of 16 MiB in which every partition begins with data.
func image(t testing.TB, seed uint64) (*extent.Map, *gpt.Table) {
	t.Helper()
	table := &gpt.Table{DiskID: uuid.UUID{byte(seed)}, SectorSize: 512, Size: 16 * mib, BootCode: bytesOf(seed, 440)}
	disk := extent.New(table.Size)
	start := int64(mib)
	for i, p := range []struct {
		name string
		kind gpt.GUID
		size int64
	}{
		{"EFI", gpt.EFISystem, 4 * mib}, {"BIOS", gpt.BIOSBoot, mib}, {"BOOT", gpt.LinuxFilesystem, 5 * mib},
		{"STATE", gpt.LinuxFilesystem, mib}, {"EPHEMERAL", gpt.LinuxFilesystem, 3 * mib},
	} {
		table.Partitions = append(table.Partitions, gpt.Partition{
			Type: p.kind, ID: uuid.UUID{byte(seed), byte(i + 1)}, Name: p.name, Start: start, Size: p.size,
		})
		for _, at := range []int64{0, p.size / 2} {
			if err := disk.Put(start+at, extent.Bytes(bytesOf(seed<<4+uint64(i), 5000))); err != nil {
				t.Fatal(err)
			}
		}
		start += p.size
	}
	tables, err := table.Map()
	if err == nil {
		err = disk.Put(0, tables)
	}
	if err != nil {
		t.Fatal(err)
	}
	return disk, table
}

func content(t testing.TB, m *extent.Map) []byte {
	t.Helper()
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// whole says which of the systems a disk holds with all it needs to boot, as
// far as its partition table, any of the two, leads to it. The backup is where
// a disk ends.
func whole(disk []byte, systems ...[]byte) (int, error) {
	table, err := gpt.Read(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		return -1, nil // no firmware finds anything
	}
	for i, want := range systems {
		same := true
		for _, p := range table.Partitions {
			end := min(p.End(), int64(len(want))-tableArea)
			same = same && bytes.Equal(disk[p.Start:end], want[p.Start:end])
		}
		if same && table.DiskID[0] == want[512+56+3] {
			return i, nil
		}
	}
	return -1, fmt.Errorf("a partition table leads to what is not a whole system")
}

// Whenever the power fails, the disk is what it was, has no partition table or
// is whole.
func TestWriteCut(t *testing.T) {
	oldMap, _ := image(t, 1)
	newMap, table := image(t, 2)
	before, after := content(t, oldMap), content(t, newMap)
	disk := powercut.New(bytes.Clone(before))
	if err := Write(t.Context(), disk, newMap, table, Options{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(disk.Bytes(), after) {
		t.Fatal("the disk is not what was to be written")
	}
	found := map[int]int{}
	n, err := disk.Cuts(1, 8, func(c powercut.Cut) error {
		i, err := whole(c.Content, before, after)
		found[i]++
		return err
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states: %d old, %d new, %d that do not boot", n, found[0], found[1], found[-1])
	if found[0] == 0 || found[1] == 0 || found[-1] < n/2 {
		t.Error("these are not the states there should be")
	}
}

// What is kept is there in every state, and where the table leads to it.
func TestWriteKeeps(t *testing.T) {
	oldMap, oldTable := image(t, 1)
	newMap, table := image(t, 2)
	kept, err := Kept(oldTable, table, []string{"STATE", "EPHEMERAL"})
	if err != nil {
		t.Fatal(err)
	}
	before, after := content(t, oldMap), content(t, newMap)
	disk := powercut.New(bytes.Clone(before))
	if err := Write(t.Context(), disk, newMap, table, Options{Keep: []string{"STATE", "EPHEMERAL"}}); err != nil {
		t.Fatal(err)
	}
	bootable := 0
	n, err := disk.Cuts(1, 8, func(c powercut.Cut) error {
		if _, err := gpt.Read(bytes.NewReader(c.Content), int64(len(c.Content))); err != nil {
			return err
		}
		for _, p := range kept {
			if end := min(p.End(), 15*mib); !bytes.Equal(c.Content[p.Start:end], before[p.Start:end]) {
				return fmt.Errorf("%s has changed", p.Name)
			}
		}
		// A BIOS starts the boot code, UEFI what is in the file system EFI.
		efi, boot := c.Content[mib:5*mib], c.Content[6*mib:11*mib]
		if code := c.Content[:440]; bytes.Equal(code, after[:440]) && !bytes.Equal(boot, after[6*mib:11*mib]) {
			return errors.New("boot code of the new system without the system")
		} else if bytes.Equal(code, before[:440]) && !bytes.Equal(boot[headSize:], before[6*mib+headSize:11*mib]) {
			return errors.New("boot code of the old system without the system")
		}
		switch {
		case bytes.Equal(efi, before[mib:5*mib]), bytes.Equal(efi, after[mib:5*mib]):
			bootable++
		case !bytes.Equal(efi[:512], make([]byte, 512)) && !bytes.Equal(efi[headSize:], before[mib+headSize:5*mib]) && !bytes.Equal(efi[headSize:], after[mib+headSize:5*mib]):
			return errors.New("a boot sector of EFI with half a file system")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states, %d of them with a whole EFI partition", n, bootable)
}

// Each write and flush fails once: the error says what the disk is now, and it
// does not boot.
func TestWriteFails(t *testing.T) {
	oldMap, _ := image(t, 1)
	newMap, table := image(t, 2)
	before, after := content(t, oldMap), content(t, newMap)
	total := 0
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := 0; ; n++ {
			disk := powercut.New(bytes.Clone(before))
			var count atomic.Int64
			disk.Fail = func(int) error {
				if count.Add(1) == int64(n+1) {
					return fault
				}
				return nil
			}
			err := Write(t.Context(), disk, newMap, table, Options{})
			if err == nil {
				break
			}
			total++
			var failed *Error
			if !errors.As(err, &failed) || !errors.Is(err, fault) || !strings.HasSuffix(err.Error(), "run the same command again to finish") {
				t.Fatalf("operation %d: %v", n, err)
			}
			i, err := whole(disk.Bytes(), before, after)
			if err != nil {
				t.Fatalf("operation %d: %v", n, err)
			}
			if n > 2 && i >= 0 {
				t.Errorf("operation %d failed, and the disk boots system %d", n, i)
			}
		}
	}
	if total < 20 {
		t.Errorf("%d operations failed, which is too few to be all", total)
	}
}

// flipped gives back one bit that is not what was written.
type flipped struct{ *powercut.Disk }

func (f flipped) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Disk.ReadAt(p, off)
	if bad := int64(8*mib + 513*1024); off <= bad && bad < off+int64(n) {
		p[bad-off] ^= 1
	}
	return n, err
}

func TestVerify(t *testing.T) {
	newMap, table := image(t, 2)
	for verify, want := range map[Verify]error{Full: ErrVerify, Quick: ErrVerify, None: nil} {
		err := Write(t.Context(), flipped{powercut.New(make([]byte, 16*mib))}, newMap, table, Options{Verify: verify})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", verify, err, want)
		}
		if want != nil && !strings.Contains(err.Error(), "the disk has no partition table now and does not boot") {
			t.Errorf("%s: %v", verify, err)
		}
	}
}

func TestWriteCancelled(t *testing.T) {
	newMap, table := image(t, 2)
	disk := powercut.New(make([]byte, 16*mib))
	ctx, cancel := context.WithCancel(t.Context())
	err := Write(ctx, disk, newMap, table, Options{Progress: func(p Phase, _ int64) {
		if p == Verifying {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), string(Erased)) {
		t.Errorf("%v", err)
	}
	if _, err := gpt.Read(disk, disk.Size()); !errors.Is(err, gpt.ErrNone) {
		t.Errorf("the disk has a table: %v", err)
	}
}

// On a larger device the table is for that.
func TestWriteLarger(t *testing.T) {
	newMap, table := image(t, 2)
	larger := *table
	larger.Size = 20 * mib
	disk := powercut.New(bytesOf(9, 20*mib))
	var told int64
	o := Options{Progress: func(_ Phase, n int64) { atomic.AddInt64(&told, n) }}
	if err := Write(t.Context(), disk, newMap, &larger, o); err != nil {
		t.Fatal(err)
	}
	if want := Size(newMap, &larger, o); told != want {
		t.Errorf("progress of %d bytes, want %d", told, want)
	}
	got, err := gpt.Read(disk, disk.Size())
	if err != nil || got.Damaged != nil {
		t.Fatalf("%v, %v", err, got)
	}
	if b := disk.Bytes(); !bytes.Equal(b[mib:15*mib], content(t, newMap)[mib:15*mib]) {
		t.Error("partitions differ")
	}
	smaller := powercut.New(make([]byte, 15*mib))
	err = Write(t.Context(), smaller, newMap, table, Options{})
	if want := "the device has 15728640 bytes, 16777216 are needed; nothing was written"; fmt.Sprint(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
	if smaller.Operations() > 0 {
		t.Error("something was written")
	}
}

func TestKept(t *testing.T) {
	_, old := image(t, 1)
	_, table := image(t, 2)
	table.Partitions[3].Start += mib
	for labels, want := range map[string]string{
		"EPHEMERAL": "",
		"DATA":      "cannot keep the partition DATA: the disk has none; leave it out",
		"STATE":     "cannot keep the partition STATE: it is 1048576 bytes at 11534336, the new layout has 1048576 at 12582912",
	} {
		_, err := Kept(old, table, []string{labels})
		if want == "" && err != nil || want != "" && fmt.Sprint(err) != want {
			t.Errorf("%s: %v, want %s", labels, err, want)
		}
	}
}

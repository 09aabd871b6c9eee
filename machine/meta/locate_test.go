package meta

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/kilnhq/kiln/imager/gpt"
)

// partitioned is a disk of 8 MiB with those partitions, of a size each, from 1 MiB.
func partitioned(t *testing.T, sector int64, size int64, labels ...string) []byte {
	t.Helper()
	table := gpt.Table{DiskID: gpt.GUID{1}, SectorSize: sector, Size: 8 << 20}
	at := int64(1 << 20)
	for i, label := range labels {
		p := gpt.Partition{}
		if label != "" { // a number that is not in use
			p = gpt.Partition{Type: gpt.LinuxFilesystem, ID: gpt.GUID{2, byte(i)}, Name: label, Start: at, Size: size}
			at += size
		}
		table.Partitions = append(table.Partitions, p)
	}
	m, err := table.Map()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLocate(t *testing.T) {
	meta := encoded(t, Values{1: []byte("a")})
	large := slices.Concat(meta, meta, make([]byte, Size))
	degraded := slices.Concat(make([]byte, CopySize), meta, make([]byte, Size))
	broken := partitioned(t, 512, Size, "META")
	for _, at := range []int{512 + 20, len(broken) - 512 + 20} {
		broken[at]++
	}
	for name, test := range map[string]struct {
		image []byte
		want  Place
		is    error
		err   string
	}{
		"512":      {partitioned(t, 512, Size, "EFI", "", "META", "STATE"), Place{Offset: 2 << 20, Size: Size}, nil, ""},
		"4096":     {partitioned(t, 4096, 2*Size, "META"), Place{Offset: 1 << 20, Size: 2 * Size}, nil, ""},
		"bare":     {make([]byte, Size), Place{Size: Size, Bare: true}, nil, ""},
		"large":    {large, Place{Size: int64(len(large)), Bare: true}, nil, ""},
		"degraded": {degraded, Place{Size: int64(len(large)), Bare: true}, nil, ""},
		"zeros":    {make([]byte, 2*Size), Place{}, ErrNone, "no META: it is not a disk with the partition META (no GUID partition table: no header in sector 1 or in the last one, with sectors of 512 or 4096 bytes), nor such a partition, which has 1048576 bytes"},
		"empty":    {nil, Place{}, ErrNone, "no META: it is not a disk with the partition META (no GUID partition table: the disk has 0 bytes), nor such a partition, which has 1048576 bytes"},
		"none":     {partitioned(t, 512, Size, "EFI", "", "Meta"), Place{}, ErrNone, `no META: no partition has the label META; labels: "EFI", "Meta"`},
		"two":      {partitioned(t, 512, Size, "META", "META"), Place{}, ErrNone, "no META: 2 partitions have the label META; change the labels of others"},
		"small":    {partitioned(t, 512, CopySize, "META"), Place{}, ErrNone, "no META: the partition META has 262144 bytes, want at least 524288"},
		"broken":   {broken, Place{}, gpt.ErrDamaged, ""},
	} {
		got, err := Locate(bytes.NewReader(test.image), int64(len(test.image)))
		if got != test.want || !errors.Is(err, test.is) || test.err != "" && err.Error() != test.err {
			t.Errorf("%s: %+v, %v; want %+v, %s", name, got, err, test.want, test.err)
		}
	}
}

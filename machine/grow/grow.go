// Package grow enlarges the last partition of a disk, and the file system on it,
// to what the disk has: an image is as small as its content, the disk that it was
// written to is not.
//
// Only a partition that asks for it (gpt.GrowFileSystem) grows. Each step may be
// cut short and is done again at the next start: the partition table is replaced
// as gpt.Table.Store does, the kernel is told of the partition's size, and it
// enlarges the file system while that is mounted, with its journal.
package grow

import (
	"io"
	"slices"

	"github.com/kilnhq/kiln/imager/gpt"
)

// align is what the end of a partition is a multiple of, in bytes. It is also
// the least by which a partition grows.
const align = 1 << 20

// Fit returns the table t for a disk of size bytes: with its backup where the
// disk ends and with the last partition up to there, if that one asks for it. The
// second result says whether the partition has another size than before.
func Fit(t *gpt.Table, size int64) (*gpt.Table, bool) {
	fitted := *t
	fitted.Size = size / t.SectorSize * t.SectorSize
	fitted.Damaged = nil
	fitted.Partitions = slices.Clone(t.Partitions)
	last := -1
	for i, p := range fitted.Partitions {
		if p.Size > 0 && (last < 0 || p.Start > fitted.Partitions[last].Start) {
			last = i
		}
	}
	if last < 0 || fitted.Partitions[last].Attributes&gpt.GrowFileSystem == 0 {
		return &fitted, false
	}
	_, end := fitted.Usable()
	p := &fitted.Partitions[last]
	room := end/align*align - p.Start
	if room-p.Size < align {
		return &fitted, false
	}
	p.Size = room
	return &fitted, true
}

// Disk is what has a partition table.
type Disk interface {
	io.ReaderAt
	gpt.Storage
}

// Table makes the partition table of a disk of size bytes fit it. It returns
// the table, and whether it had to be written.
func Table(d Disk, size int64) (*gpt.Table, bool, error) {
	t, err := gpt.Read(d, size)
	if err != nil {
		return nil, false, err
	}
	// Read tells of a backup that is not at the end.
	fitted, grown := Fit(t, size)
	if !grown && t.Damaged == nil {
		return t, false, nil
	}
	return fitted, true, fitted.Store(d)
}

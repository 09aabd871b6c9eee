package meta

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/imager/gpt"
)

// A Place is where META is: Size bytes from Offset on.
type Place struct {
	Offset, Size int64
	Bare         bool // nothing else is there, and no label says that it is META
}

// Locate finds META in r, of size bytes, which is a disk with the partition META,
// or META alone: 1 MiB, or more if one of its copies is whole. It fails with
// ErrNone if there is none, or more than one, and with what gpt.Read fails with
// for a disk whose partition table is damaged.
func Locate(r io.ReaderAt, size int64) (Place, error) {
	bare := Place{Size: size, Bare: true}
	if size == Size {
		return bare, nil
	}
	table, err := gpt.Read(r, size)
	if errors.Is(err, gpt.ErrNone) {
		if first, second, err := read(r, size); err == nil && (first.err == nil || second.err == nil) {
			return bare, nil
		}
		return Place{}, fmt.Errorf("%w: it is not a disk with the partition %s (%w), nor such a partition, which has %d bytes", ErrNone, Label, err, Size)
	}
	if err != nil {
		return Place{}, err
	}
	var found []gpt.Partition
	var labels []string
	for _, p := range table.Partitions {
		if p.Size == 0 {
			continue
		}
		labels = append(labels, fmt.Sprintf("%q", p.Name))
		if p.Name == Label {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 0:
		return Place{}, fmt.Errorf("%w: no partition has the label %s; labels: %s", ErrNone, Label, strings.Join(labels, ", "))
	case len(found) > 1:
		return Place{}, fmt.Errorf("%w: %d partitions have the label %s; change the labels of others", ErrNone, len(found), Label)
	case found[0].Size < copies*CopySize:
		return Place{}, fmt.Errorf("%w: the partition %s has %d bytes, want at least %d", ErrNone, Label, found[0].Size, copies*CopySize)
	}
	return Place{Offset: found[0].Start, Size: found[0].Size}, nil
}

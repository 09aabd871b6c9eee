package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/kilnhq/kiln/imager/extent"
)

var le = binary.LittleEndian

// Map returns the table's two copies and the protective MBR in a map of t.Size
// bytes, in which everything else is a hole. It fails with ErrInvalid if a
// partition overlaps another one or the table itself, lies outside the disk, or
// cannot be encoded.
func (t *Table) Map() (*extent.Map, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	entries := make([]byte, tableBytes)
	for i, p := range t.Partitions {
		if p != (Partition{}) {
			t.encode(entries[i*entrySize:][:entrySize], p)
		}
	}
	last := t.Size/t.SectorSize - 1
	first := make([]byte, 2*t.SectorSize, 2*t.SectorSize+tableBytes)
	t.protect(first, last)
	copy(first[t.SectorSize:], t.header(entries, 1, last, 2))
	first = append(first, entries...)
	entriesLBA := last - tableBytes/t.SectorSize
	second := append(entries, t.header(entries, last, 1, entriesLBA)...)

	m := extent.New(t.Size)
	if err := m.PutBytes(0, first); err != nil {
		return nil, err
	}
	return m, m.PutBytes(entriesLBA*t.SectorSize, second)
}

// protect fills LBA 0. Its partition record has addresses of cylinder, head and
// sector as the specification wants them: those of LBA 1 and the largest.
// Only the sizes of disks below 2^32 sectors can be represented.
func (t *Table) protect(b []byte, last int64) {
	copy(b, t.BootCode)
	copy(b[mbrPartitions:], []byte{0, 0x00, 0x02, 0x00, typeProtective, 0xFF, 0xFF, 0xFF})
	le.PutUint32(b[mbrPartitions+8:], 1)
	le.PutUint32(b[mbrPartitions+12:], uint32(min(last, math.MaxUint32)))
	b[mbrSignature], b[mbrSignature+1] = 0x55, 0xAA
}

// header returns one of the two headers, a sector.
func (t *Table) header(entries []byte, lba, alternate, entriesLBA int64) []byte {
	b := make([]byte, t.SectorSize)
	copy(b, signature)
	start, end := t.Usable()
	le.PutUint32(b[atRevision:], revision)
	le.PutUint32(b[atHeaderSize:], headerSize)
	le.PutUint64(b[atMyLBA:], uint64(lba))
	le.PutUint64(b[atAlternate:], uint64(alternate))
	le.PutUint64(b[atFirstUsable:], uint64(start/t.SectorSize))
	le.PutUint64(b[atLastUsable:], uint64(end/t.SectorSize-1))
	id := swap(t.DiskID)
	copy(b[atDiskID:], id[:])
	le.PutUint64(b[atEntriesLBA:], uint64(entriesLBA))
	le.PutUint32(b[atEntries:], MaxPartitions)
	le.PutUint32(b[atEntrySize:], entrySize)
	le.PutUint32(b[atEntriesCRC:], crc32.ChecksumIEEE(entries))
	le.PutUint32(b[atHeaderCRC:], crc32.ChecksumIEEE(b[:headerSize]))
	return b
}

func (t *Table) encode(b []byte, p Partition) {
	kind, id := swap(p.Type), swap(p.ID)
	copy(b, kind[:])
	copy(b[atPartitionID:], id[:])
	le.PutUint64(b[atFirstLBA:], uint64(p.Start/t.SectorSize))
	le.PutUint64(b[atLastLBA:], uint64(p.End()/t.SectorSize-1))
	le.PutUint64(b[atAttributes:], p.Attributes)
	for i, u := range utf16.Encode([]rune(p.Name)) {
		le.PutUint16(b[atName+2*i:], u)
	}
}

func (t *Table) check() error {
	if t.SectorSize != 512 && t.SectorSize != 4096 {
		return invalid("sector size %d, want 512 or 4096", t.SectorSize)
	}
	if t.Size <= 0 || t.Size%t.SectorSize != 0 {
		return invalid("disk of %d bytes, want a multiple of the sector size %d", t.Size, t.SectorSize)
	}
	start, end := t.Usable()
	if start >= end {
		return invalid("disk of %d bytes has no room for partitions, want more than %d", t.Size, start+t.Size-end)
	}
	if t.DiskID == (GUID{}) {
		return invalid("DiskID is zero")
	}
	if len(t.BootCode) > bootCodeSize {
		return invalid("boot code of %d bytes, at most %d fit", len(t.BootCode), bootCodeSize)
	}
	if len(t.Partitions) > MaxPartitions {
		return invalid("%d partitions, at most %d fit", len(t.Partitions), MaxPartitions)
	}
	ids := map[GUID]string{t.DiskID: "the disk"}
	for i, p := range t.Partitions {
		if p == (Partition{}) {
			continue
		}
		name := label(i, p)
		if err := t.checkPartition(p, start, end); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
		}
		if other, ok := ids[p.ID]; ok {
			return invalid("%s has the same ID as %s: %s", name, other, p.ID)
		}
		ids[p.ID] = name
	}
	if a, b := overlap(t.Partitions); a != b {
		return invalid("%s overlaps %s", span(t.Partitions, a), span(t.Partitions, b))
	}
	return nil
}

func (t *Table) checkPartition(p Partition, start, end int64) error {
	switch {
	case p.Type == (GUID{}):
		return fmt.Errorf("its type is zero, which means that it does not exist")
	case p.ID == (GUID{}):
		return fmt.Errorf("its ID is zero")
	case p.Start%t.SectorSize != 0 || p.Size%t.SectorSize != 0:
		return fmt.Errorf("%d bytes at %d, want multiples of the sector size %d", p.Size, p.Start, t.SectorSize)
	case p.Size <= 0:
		return fmt.Errorf("its size is %d bytes", p.Size)
	case p.Start < start || p.Size > end-p.Start:
		return fmt.Errorf("%d bytes at %d are not within the usable range from %d to %d of a disk of %d bytes", p.Size, p.Start, start, end, t.Size)
	case !utf8.ValidString(p.Name) || strings.IndexByte(p.Name, 0) >= 0:
		return fmt.Errorf("its name is not valid UTF-8 without NUL")
	}
	if n := len(utf16.Encode([]rune(p.Name))); n > nameUnits {
		return fmt.Errorf("its name has %d UTF-16 code units, at most %d fit", n, nameUnits)
	}
	return nil
}

// overlap returns the indexes of two partitions that share a sector, or twice
// the same. Partitions must not be empty.
func overlap(parts []Partition) (int, int) {
	var order []int
	for i, p := range parts {
		if p != (Partition{}) {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case parts[a].Start < parts[b].Start:
			return -1
		case parts[a].Start > parts[b].Start:
			return 1
		}
		return 0
	})
	for i := 1; i < len(order); i++ {
		if a, b := order[i-1], order[i]; parts[a].End() > parts[b].Start {
			return a, b
		}
	}
	return 0, 0
}

func label(i int, p Partition) string { return fmt.Sprintf("partition %d (%s)", i+1, p.Name) }

func span(parts []Partition, i int) string {
	return fmt.Sprintf("%s, bytes [%d, %d)", label(i, parts[i]), parts[i].Start, parts[i].End())
}

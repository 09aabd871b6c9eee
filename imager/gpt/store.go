package gpt

import "io"

// GrowFileSystem is the bit of Partition.Attributes that asks for the file
// system to be enlarged to its partition when it is mounted (UAPI Group,
// "Discoverable Partitions Specification"). kiln enlarges the partition, too.
const GrowFileSystem = 1 << 59

// Storage is what a table is stored on. Sync returns when all that was written
// before is on the medium.
type Storage interface {
	io.WriterAt
	Sync() error
}

// Store writes both copies of the table and the protective MBR, one after the
// other: whenever that is cut short, one of the copies is the whole old table or
// the whole new one, and only when the new backup is on the medium is the primary
// one touched.
func (t *Table) Store(dev Storage) error {
	m, err := t.Map()
	if err != nil {
		return err
	}
	first, end := t.Usable()
	for _, area := range [][2]int64{{end, t.Size}, {2 * t.SectorSize, first}, {t.SectorSize, 2 * t.SectorSize}, {0, t.SectorSize}} {
		b := make([]byte, area[1]-area[0])
		if _, err := m.ReadAt(b, area[0]); err != nil {
			return err
		}
		if _, err := dev.WriteAt(b, area[0]); err != nil {
			return err
		}
		if err := dev.Sync(); err != nil {
			return err
		}
	}
	return nil
}

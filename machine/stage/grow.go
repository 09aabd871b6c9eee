//go:build linux

package stage

import (
	"fmt"
	"io"
	"os"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/grow"
)

// fit makes the disk's partition table fit the disk. A node whose disk does not
// grow is up nonetheless.
func (s *start) fit(d *disk.Disk) {
	if err := fit("/dev/" + d.Name); err != nil {
		s.console.Note(fmt.Sprintf("disk %s keeps its partition table: %v", d.Name, err))
	}
}

func fit(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	table, written, err := grow.Table(f, size)
	if err != nil || !written {
		return err
	}
	for i, p := range table.Partitions {
		if p.Name == disk.Ephemeral {
			return grow.Partition(f, i+1, p.Start, p.Size)
		}
	}
	return nil
}

// grow enlarges EPHEMERAL's file system, which is mounted, to its partition.
func (s *start) grow(p disk.Partition) {
	s.begin("grow")
	size, grown, err := growFileSystem(p.Device)
	if err != nil {
		s.console.Note(fmt.Sprintf("%s keeps its size: %v", p.Name, err))
		return
	}
	s.done(console.F("on", p.Name), console.F("bytes", size), console.F("grown", grown))
}

func growFileSystem(device string) (int64, bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, false, err
	}
	grown, err := grow.FileSystem(ephemeralDir, size)
	return size, grown, err
}

package fat

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Device is what holds a file system that is edited: a partition, or a section
// of a disk.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // returns when all that was written is on the medium
}

// Editor changes a file system in place. Its methods keep the order of writes
// that the package comment describes and return when all is on the medium. They
// are not to be called at the same time.
//
// Names are paths as io/fs has them, relative to the root directory. They match
// long and short names without regard to the case of letters. Errors wrap
// fs.ErrNotExist and fs.ErrExist.
//
// After a write or a Sync that failed it is not known what is on the medium: all
// methods return the error again, and Edit must be called anew. The first change
// then repairs what was left.
type Editor struct {
	*reader
	dev     Device
	pending bool  // something was written since the last Sync
	err     error // of a write or Sync

	boot   []byte   // the boot sector
	info   []byte   // the sector of FSInfo, nil if there is none
	infoAt int64    // where it is
	table  []byte   // the FAT, as it should be
	stale  [][]bool // for each FAT, which of its sectors are not like table
	free   int64    // clusters
	dirs   []int64  // the first clusters of directories with orphans in them
}

// maxTable is the size in bytes of the largest FAT that can be edited. All of it
// is in the reader's pages, which are parts of Editor.table.
const maxTable = maxPages * pageSize

// What says that the file system was not unmounted cleanly: a bit in the boot
// sector, which is Linux's, and the absence of one in the second entry of the FAT.
const (
	atDirty16 = 37
	atDirty32 = 65
	dirtyMark = 0x01
	cleanMark = 0x08000000 // in FAT32; 0x8000 in FAT16
)

// Edit reads the file system in the first size bytes of dev, which nothing else
// may be using, and writes nothing. It fails as Open does, with ErrCorrupt also
// if the boot sector differs from its copy, and with ErrUnsupported for FAT12.
func Edit(dev Device, size int64) (*Editor, error) {
	x := &reader{src: io.NewSectionReader(dev, 0, size), pages: map[int64][]byte{}}
	found := &FileSystem{Tree: tree.New()}
	if err := x.parameters(size, found); err != nil {
		return nil, err
	}
	e := &Editor{reader: x, dev: dev}
	if err := e.readBoot(); err != nil {
		return nil, err
	}
	if err := e.readTable(); err != nil {
		return nil, err
	}
	w := walker{reader: x, fs: found}
	if err := w.walk(); err != nil {
		return nil, err
	}
	if err := e.checkDirs(w.dirs); err != nil {
		return nil, err
	}
	return e, e.collect()
}

// Free returns how many bytes are in free clusters. Create needs that many for
// the content, rounded up to clusters, and a little for directories that are
// made or grow.
func (e *Editor) Free() int64 { return e.free * e.cluster }

// readBoot reads the boot sector and FSInfo.
func (e *Editor) readBoot() error {
	switch {
	case e.bits == 12:
		return unsupported("FAT12 cannot be edited, only FAT16 and FAT32")
	case e.fats > fats:
		return unsupported("%d FATs, want 1 or 2", e.fats)
	case e.fatBytes > maxTable:
		return unsupported("a FAT of %d bytes; at most %d can be edited", e.fatBytes, int64(maxTable))
	case e.rootSize%e.sector != 0:
		return corrupt("a root directory of %d bytes, which are not whole sectors of %d", e.rootSize, e.sector)
	}
	e.boot = make([]byte, e.sector)
	if err := e.readAt(e.boot, 0); err != nil {
		return err
	}
	if e.bits != 32 {
		return nil
	}
	if le.Uint16(e.boot[atExtFlags:])&noMirror != 0 {
		return unsupported("only one of the FATs is in use")
	}
	if n := int64(le.Uint16(e.boot[atBackup:])); n != 0 && n*e.sector < e.fat {
		backup := make([]byte, bootSize)
		if err := e.readAt(backup, n*e.sector); err != nil {
			return fmt.Errorf("copy of the boot sector: %w", err)
		}
		if !bytes.Equal(e.boot[atSectorSize:atDrive], backup[atSectorSize:atDrive]) {
			return corrupt("the parameters in the boot sector differ from those in sector %d; repair them with fsck.fat", n)
		}
	}
	if n := int64(le.Uint16(e.boot[atInfo:])); n != 0 && n*e.sector < e.fat {
		e.info, e.infoAt = make([]byte, e.sector), n*e.sector
		if err := e.readAt(e.info, e.infoAt); err != nil {
			return fmt.Errorf("FSInfo: %w", err)
		}
		if !bytes.HasPrefix(e.info, []byte("RRaA")) || !bytes.HasPrefix(e.info[atInfoFields:], []byte("rrAa")) {
			e.info = nil // nobody believes it
		}
	}
	return nil
}

// checkDirs looks for directories with orphans, and for what drivers disagree
// about: entries after the end of a directory.
func (e *Editor) checkDirs(dirs []int64) error {
	for _, cluster := range append([]int64{e.root}, dirs...) {
		d, err := e.readDir(cluster)
		if err != nil {
			return err
		}
		for i := d.end; i < d.slots(); i++ {
			if c := d.content[i*entrySize]; c != entryEnd && c != entryFree {
				return corrupt("a directory of %d entries has more after its end; repair it with fsck.fat", d.end)
			}
		}
		if len(d.orphans) > 0 {
			e.dirs = append(e.dirs, cluster)
		}
	}
	return nil
}

// begin is called before every change. The first one makes right what was found
// to be wrong but harmless: it frees the clusters that belong to nothing, makes
// the FATs equal, deletes orphans and says that the file system is clean, which
// Edit has made sure of.
func (e *Editor) begin(name string) error {
	if e.err != nil {
		return e.err
	}
	if !tree.Valid(name) || name == "." {
		return fmt.Errorf("%q: %w", name, fs.ErrInvalid)
	}
	dirty := atDirty16
	if e.bits == 32 {
		dirty = atDirty32
	}
	if e.boot[dirty]&dirtyMark != 0 {
		e.boot[dirty] &^= dirtyMark
		if err := e.write(e.boot, 0); err != nil {
			return err
		}
	}
	for _, cluster := range e.dirs {
		if err := e.deleteOrphans(cluster); err != nil {
			return err
		}
	}
	e.dirs = nil
	return e.commit()
}

func (e *Editor) write(p []byte, off int64) error {
	e.pending = true
	if _, err := e.dev.WriteAt(p, off); err != nil {
		e.err = fmt.Errorf("writing %d bytes at %d of the file system: %w", len(p), off, err)
	}
	return e.err
}

func (e *Editor) sync() error {
	if !e.pending {
		return nil
	}
	e.pending = false
	if err := e.dev.Sync(); err != nil {
		e.err = fmt.Errorf("sync of the file system: %w", err)
	}
	return e.err
}

// commit writes the FATs and returns when everything is on the medium.
func (e *Editor) commit() error {
	if err := e.flush(); err != nil {
		return err
	}
	return e.sync()
}

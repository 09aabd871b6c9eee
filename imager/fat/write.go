package fat

import (
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
)

// The boot sector's fields; all of them are named in the specification.
const (
	atOEMName        = 3  // 8 bytes
	atSectorSize     = 11 // u16
	atClusterSectors = 13 // u8
	atReserved       = 14 // u16
	atFATs           = 16 // u8
	atRootEntries    = 17 // u16, 0 in FAT32
	atSectors16      = 19 // u16, 0 in FAT32
	atMedia          = 21 // u8
	atFATSize16      = 22 // u16, 0 in FAT32
	atTrackSectors   = 24 // u16
	atHeads          = 26 // u16
	atHidden         = 28 // u32
	atSectors32      = 32 // u32

	// These are FAT32's.
	atFATSize32   = 36 // u32
	atExtFlags    = 40 // u16
	atVersion     = 42 // u16, 0
	atRootCluster = 44 // u32
	atInfo        = 48 // u16, sector of FSInfo
	atBackup      = 50 // u16, sector of the copy of the boot sector
	atDrive       = 64 // u8
	atExtended    = 66 // u8: what follows is there
	atVolumeID    = 67 // u32
	atLabel       = 71 // 11 bytes
	atType        = 82 // 8 bytes, for people only
	atCode        = 90

	noMirror = 0x80 // in the flags: only one FAT is written

	atSignature = 510 // 55 AA, with sectors of 4096 bytes too

	infoSector   = 1
	backupSector = 6
	bootSize     = 512 // bytes of the boot sector and of FSInfo that are in use

	mediaFixed = 0xF8
	driveFixed = 0x80
	extended   = 0x29
	noLabel    = "NO NAME"

	// The geometry for the BIOS is arbitrary: cylinders of 1 MiB, with sectors
	// of 512 bytes. mtools wants whole tracks.
	trackSectors = 32
	heads        = 64
)

// FSInfo's fields.
const (
	atInfoStart  = 0   // "RRaA"
	atInfoFields = 484 // "rrAa"
	atFree       = 488 // u32, free clusters
	atNext       = 492 // u32, where to look for a free one
)

// Marks in the FAT.
const (
	endOfFile = 0x0FFFFFFF
	// fatHead is the first entry, which repeats the media byte. The second one
	// says that the file system was unmounted cleanly.
	fatHead  = 0x0FFFFF00 | mediaFixed
	fatClean = 0x0FFFFFFF
)

// noBoot is x86 code for a BIOS that was told to boot from this partition: it
// returns to the BIOS (int 0x18), which may try the next device, or halts.
var noBoot = []byte{0xCD, 0x18, 0xF4, 0xEB, 0xFD}

func (v *volume) write(g geometry) (*extent.Map, error) {
	used, end := v.place(g)
	m := extent.New(v.opts.Size)
	boot, info := v.boot(g), v.info(g, used, end)
	table := v.table(g, end)
	for _, p := range []struct {
		sector int64
		data   []byte
	}{
		{0, boot}, {infoSector, info}, {backupSector, boot}, {backupSector + infoSector, info},
		{g.reserved, table}, {g.reserved + g.fatSize, table},
	} {
		if err := m.PutBytes(p.sector*g.sectorSize, p.data); err != nil {
			return nil, err
		}
	}
	for _, d := range v.dirs {
		if err := m.PutBytes(g.offset(d.cluster), v.entries(d)); err != nil {
			return nil, err
		}
	}
	for _, f := range v.files {
		if f.cluster == 0 {
			continue
		}
		if err := m.Put(g.offset(f.cluster), f.inode.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return m, nil
}

// place gives everything its clusters. It returns how many are in use, and the
// end of the last one in use.
func (v *volume) place(g geometry) (used, end int64) {
	for _, p := range v.places(g.clusterSize()) {
		p.node.cluster = rootCluster + p.start
		used += p.count
		end = max(end, p.end())
	}
	return used, end
}

// table returns the FAT as far as it is not zero.
func (v *volume) table(g geometry, end int64) []byte {
	b := make([]byte, 4*(rootCluster+end))
	le.PutUint32(b, fatHead)
	le.PutUint32(b[4:], fatClean)
	for _, list := range [][]*node{v.dirs, v.files} {
		for _, n := range list {
			last := n.cluster + v.nodeClusters(n, g.clusterSize()) - 1
			for c := n.cluster; c < last; c++ {
				le.PutUint32(b[4*c:], uint32(c+1))
			}
			if n.cluster != 0 {
				le.PutUint32(b[4*last:], endOfFile)
			}
		}
	}
	return b
}

func (v *volume) boot(g geometry) []byte {
	b := make([]byte, bootSize)
	copy(b, []byte{0xEB, atCode - 2, 0x90}) // jump to the code
	copy(b[atOEMName:], "MSWIN4.1")         // what the specification recommends
	le.PutUint16(b[atSectorSize:], uint16(g.sectorSize))
	b[atClusterSectors] = byte(g.cluster)
	le.PutUint16(b[atReserved:], uint16(g.reserved))
	b[atFATs] = fats
	b[atMedia] = mediaFixed
	le.PutUint16(b[atTrackSectors:], trackSectors)
	le.PutUint16(b[atHeads:], heads)
	le.PutUint32(b[atHidden:], v.opts.HiddenSectors)
	le.PutUint32(b[atSectors32:], uint32(g.sectors))
	le.PutUint32(b[atFATSize32:], uint32(g.fatSize))
	le.PutUint32(b[atRootCluster:], rootCluster)
	le.PutUint16(b[atInfo:], infoSector)
	le.PutUint16(b[atBackup:], backupSector)
	b[atDrive] = driveFixed
	b[atExtended] = extended
	le.PutUint32(b[atVolumeID:], v.opts.VolumeID)
	label := v.opts.Label
	if label == "" {
		label = noLabel
	}
	copy(b[atLabel:], fmt.Sprintf("%-11s", label))
	copy(b[atType:], "FAT32   ")
	copy(b[atCode:], noBoot)
	b[atSignature], b[atSignature+1] = 0x55, 0xAA
	return b
}

func (v *volume) info(g geometry, used, end int64) []byte {
	b := make([]byte, bootSize)
	copy(b[atInfoStart:], "RRaA")
	copy(b[atInfoFields:], "rrAa")
	next := rootCluster + end
	if end == g.clusters {
		next = rootCluster
	}
	le.PutUint32(b[atFree:], uint32(g.clusters-used))
	le.PutUint32(b[atNext:], uint32(next))
	b[atSignature], b[atSignature+1] = 0x55, 0xAA
	return b
}

// entries returns the content of a directory.
func (v *volume) entries(d *node) []byte {
	at := newStamp(v.opts.Time)
	b := make([]byte, 0, v.size(d))
	switch {
	case d != v.root:
		b = appendShort(b, newShortName(".", ""), attrDir, d.cluster, 0, at)
		parent := d.parent.cluster
		if d.parent == v.root {
			parent = 0 // by definition, although the root has a cluster
		}
		b = appendShort(b, newShortName("..", ""), attrDir, parent, 0, at)
	case v.opts.Label != "":
		var name shortName
		copy(name[:], fmt.Sprintf("%-11s", v.opts.Label))
		b = appendShort(b, name, attrVolume, 0, 0, at)
	}
	for _, n := range d.children {
		attr := byte(attrArchive)
		if n.inode.Mode.IsDir() {
			attr = attrDir
		} else if n.inode.Mode&0o222 == 0 {
			attr |= attrReadOnly
		}
		b = appendLong(b, n.long, n.short.checksum())
		b = appendShort(b, n.short, attr, n.cluster, uint32(n.inode.Size()), at)
	}
	return b
}

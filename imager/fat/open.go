package fat

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Limits of what Open accepts, so that a hostile image cannot cost more than
// some memory. Each cluster is read at most once.
const (
	maxPaths     = 1 << 20
	maxDirBytes  = maxDirSlots * entrySize
	maxDirsBytes = 256 << 20 // of all directories
	maxRuns      = 1 << 20   // fragments of all files and directories
	pageSize     = 64 << 10  // of the FAT, read at a time
	maxPages     = 1 << 10   // kept
)

// FileSystem is what Open found.
type FileSystem struct {
	Bits     int // 12, 16 or 32
	Label    string
	VolumeID uint32
	Size     int64 // bytes
	Cluster  int64 // bytes
	Free     int64 // bytes in clusters that belong to no file and no directory

	// Tree holds all files; times are taken to be UTC. Contents are extent maps
	// over the reader given to Open, read when they are asked for.
	Tree *tree.Tree
}

// reader knows where things are in an image. All its numbers but those of
// clusters are in bytes.
type reader struct {
	src      extent.Source
	bits     int
	sector   int64
	fat      int64 // where the first FAT is
	fatBytes int64
	fats     int64 // how many there are
	rootAt   int64 // where the root directory is, FAT12 and FAT16
	rootSize int64
	root     int64 // cluster of the root directory, FAT32
	data     int64
	cluster  int64
	clusters int64

	used    []uint64 // a bit for each cluster that is part of something
	usedNum int64
	runs    int
	pages   map[int64][]byte // of the FAT, as far as they were read
}

// Open reads the directories and the allocation of the FAT file system in the
// first size bytes of r. It fails with ErrFormat if there is none, and with
// ErrCorrupt for damage, for clusters that are used twice and for more than a
// million files. A FAT32 of fewer than 65,525 clusters is corrupt too, because
// firmware takes it for FAT16.
func Open(r io.ReaderAt, size int64) (*FileSystem, error) {
	x := &reader{src: io.NewSectionReader(r, 0, size), pages: map[int64][]byte{}}
	fs := &FileSystem{Tree: tree.New()}
	if err := x.parameters(size, fs); err != nil {
		return nil, err
	}
	w := walker{reader: x, fs: fs}
	if err := w.walk(); err != nil {
		return nil, err
	}
	fs.Free = (x.clusters - x.usedNum) * x.cluster
	return fs, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// readAt fills p from byte off of the file system.
func (x *reader) readAt(p []byte, off int64) error {
	n, err := x.src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return corrupt("%d bytes at %d are beyond its end", len(p), off)
	}
	return err
}

// parameters reads the boot sector.
func (x *reader) parameters(size int64, fs *FileSystem) error {
	if size < bootSize {
		return fmt.Errorf("%w: %d bytes", ErrFormat, size)
	}
	b := make([]byte, bootSize)
	if err := x.readAt(b, 0); err != nil {
		return err
	}
	sector, perCluster := int64(le.Uint16(b[atSectorSize:])), int64(b[atClusterSectors])
	if b[atSignature] != 0x55 || b[atSignature+1] != 0xAA || sector < 512 || sector > 4096 || sector&(sector-1) != 0 ||
		perCluster == 0 || perCluster&(perCluster-1) != 0 || b[atMedia] < 0xF0 {
		return fmt.Errorf("%w: no valid parameters in the boot sector", ErrFormat)
	}
	reserved, fats := int64(le.Uint16(b[atReserved:])), int64(b[atFATs])
	rootEntries := int64(le.Uint16(b[atRootEntries:]))
	sectors, fatSize := int64(le.Uint16(b[atSectors16:])), int64(le.Uint16(b[atFATSize16:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[atSectors32:]))
	}
	wide := fatSize == 0
	ext := b[36:] // the fields that FAT12 and FAT16 have where FAT32's begin
	if wide {
		fatSize = int64(le.Uint32(b[atFATSize32:]))
		ext = b[atDrive:]
		x.root = int64(le.Uint32(b[atRootCluster:])) & 0x0FFFFFFF
		if v := le.Uint16(b[atVersion:]); v != 0 {
			return corrupt("version %d.%d, want 0.0", v>>8, v&0xFF)
		}
	}
	if sectors > size/sector {
		return corrupt("%d sectors of %d bytes, but the image has only %d bytes", sectors, sector, size)
	}
	x.cluster = perCluster * sector
	x.sector, x.fat, x.fatBytes, x.fats = sector, reserved*sector, fatSize*sector, fats
	x.rootAt, x.rootSize = x.fat+fats*x.fatBytes, rootEntries*entrySize
	x.data = x.rootAt + ceil(x.rootSize, sector)*sector
	if reserved == 0 || fats == 0 || fatSize == 0 || x.data > sectors*sector || (rootEntries == 0) != wide {
		return corrupt("%d reserved sectors, %d FATs of %d sectors and %d root entries in %d sectors", reserved, fats, fatSize, rootEntries, sectors)
	}
	x.clusters = (sectors*sector - x.data) / x.cluster
	switch {
	case wide && x.clusters < fat32Clusters:
		return corrupt("FAT32 with %d clusters, fewer than %d: firmware takes it for FAT16; use smaller clusters or a larger partition", x.clusters, fat32Clusters)
	case wide:
		x.bits = 32
	case x.clusters < 4085:
		x.bits = 12
	case x.clusters < fat32Clusters:
		x.bits = 16
	default:
		return corrupt("FAT16 with %d clusters, want fewer than %d", x.clusters, fat32Clusters)
	}
	if need := (x.clusters + rootCluster) * int64(x.bits) / 8; need > x.fatBytes || x.clusters > maxClusters {
		return corrupt("%d clusters, but the FAT has only %d bytes", x.clusters, x.fatBytes)
	}
	x.used = make([]uint64, ceil(x.clusters+rootCluster, 64))
	fs.Bits, fs.Size, fs.Cluster = x.bits, sectors*sector, x.cluster
	if ext[2] == extended {
		fs.VolumeID = le.Uint32(ext[3:])
	}
	return nil
}

// readFAT fills p, which is whole sectors, from byte off of the first FAT. Of a
// sector that cannot be read it takes the copy.
func (x *reader) readFAT(p []byte, off int64) error {
	err := x.readAt(p, x.fat+off)
	if err == nil {
		return nil
	}
	for i := int64(0); i < int64(len(p)); i += x.sector {
		if !x.readCopy(p[i:i+x.sector], off+i) {
			return err
		}
	}
	return nil
}

func (x *reader) readCopy(p []byte, off int64) bool {
	for n := range x.fats {
		if x.readAt(p, x.fat+n*x.fatBytes+off) == nil {
			return true
		}
	}
	return false
}

// next returns the entry of a cluster in the FAT.
func (x *reader) next(cluster int64) (int64, error) {
	off := cluster * int64(x.bits) / 8
	page, ok := x.pages[off/pageSize]
	if !ok {
		if len(x.pages) == maxPages {
			clear(x.pages)
		}
		page = make([]byte, min(pageSize, x.fatBytes-off/pageSize*pageSize))
		if err := x.readFAT(page, off/pageSize*pageSize); err != nil {
			return 0, err
		}
		x.pages[off/pageSize] = page
	}
	e := page[off%pageSize:] // no entry is in two pages: a FAT12 is smaller than one
	if len(e)*8 < x.bits {
		return 0, corrupt("the FAT ends in the entry of cluster %d", cluster)
	}
	switch {
	case x.bits == 32:
		return int64(le.Uint32(e)) & 0x0FFFFFFF, nil
	case x.bits == 16:
		return int64(le.Uint16(e)), nil
	case cluster%2 == 0:
		return int64(le.Uint16(e)) & 0xFFF, nil
	}
	return int64(le.Uint16(e)) >> 4, nil
}

// isEnd says whether an entry of the FAT marks the end of a file.
func (x *reader) isEnd(entry int64) bool {
	return entry >= 1<<min(x.bits, 28)-8
}

// chain returns the content that begins in a cluster: size bytes, or up to the
// end mark but at most limit bytes if size is negative. A file may have clusters
// beyond its size, which are its own too. Every cluster may be in one chain only,
// which bounds the work and refuses loops.
func (x *reader) chain(cluster, size, limit int64) (*extent.Map, error) {
	var runs []span
	var total int64
	for !x.isEnd(cluster) {
		i := cluster - rootCluster
		if i < 0 || i >= x.clusters {
			return nil, corrupt("cluster %d, there are %d to %d", cluster, rootCluster, x.clusters+rootCluster-1)
		}
		if x.used[i/64]&(1<<(i%64)) != 0 {
			return nil, corrupt("cluster %d is used twice", cluster)
		}
		x.used[i/64] |= 1 << (i % 64)
		x.usedNum++
		if total++; size < 0 && total*x.cluster > limit {
			return nil, corrupt("a directory of more than %d bytes", limit)
		}
		if runs = appendSpan(runs, cluster); len(runs) > maxRuns-x.runs {
			return nil, corrupt("more than %d fragments", maxRuns)
		}
		var err error
		if cluster, err = x.next(cluster); err != nil {
			return nil, err
		}
	}
	x.runs += len(runs)
	if total*x.cluster < size {
		return nil, corrupt("%d clusters of %d bytes for %d bytes", total, x.cluster, size)
	}
	if size < 0 {
		size = total * x.cluster
	}
	m := extent.New(size)
	var off int64
	for _, r := range runs {
		n := min(r.n*x.cluster, size-off)
		if n == 0 {
			break
		}
		sec, err := extent.Section(x.src, x.offset(r.first), n)
		if err == nil {
			err = m.Put(off, sec)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		off += n
	}
	return m, nil
}

// offset returns where a cluster is.
func (x *reader) offset(cluster int64) int64 {
	return x.data + (cluster-rootCluster)*x.cluster
}

// span is so many clusters that follow each other.
type span struct{ first, n int64 }

func appendSpan(runs []span, cluster int64) []span {
	if n := len(runs); n > 0 && runs[n-1].first+runs[n-1].n == cluster {
		runs[n-1].n++
		return runs
	}
	return append(runs, span{cluster, 1})
}

// parseLabel returns the name of a volume; it has no dot.
func parseLabel(name []byte) string {
	return strings.TrimRight(decodeBytes(bytes.TrimRight(name, "\x00")), " ")
}

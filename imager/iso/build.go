package iso

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// volume is an image while it is laid out. Positions are in sectors.
type volume struct {
	tree *tree.Tree
	opts Options
	// dirs are in the order of the path table: by depth, then by parent, then by
	// identifier. The root is the first.
	dirs  []*dir
	links map[*tree.Inode]uint32 // how many names an inode has
	// serials are the numbers of the inodes.
	serials map[*tree.Inode]uint32
	rest    continuation

	restAt    int64
	pathTable int64         // its size in bytes
	tables    [2]int64      // where the two path tables are
	files     []*tree.Inode // that have content of their own, in the order of the tree
	places    map[*tree.Inode]int64
	shared    map[*tree.Inode]within // those of them that are stored elsewhere
	efi       int64
	end       int64 // where the volume ends
}

// dir is a directory.
type dir struct {
	name    string // its path in the tree
	inode   *tree.Inode
	id      string // identifier in the parent
	number  uint16 // in the path table, from 1
	parent  *dir   // the root's is itself
	entries []entry
	self    []byte // system use of "."
	up      []byte // system use of ".."
	at      int64
	size    int64 // in bytes
}

// entry is something in a directory.
type entry struct {
	id    string
	inode *tree.Inode
	dir   *dir   // nil if it is none
	use   []byte // system use: Rock Ridge
}

// Build lays out t. No content is read. It fails with ErrUnsupported, naming
// the path, for what the format cannot represent.
func Build(t *tree.Tree, opts Options) (*extent.Map, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	v := &volume{tree: t, opts: opts, links: map[*tree.Inode]uint32{}, serials: map[*tree.Inode]uint32{}, places: map[*tree.Inode]int64{}, shared: map[*tree.Inode]within{}}
	v.collectInodes()
	next := int64(catalogSector)
	if opts.bootable() {
		next++
	}
	if opts.BIOS != nil {
		next = BIOSSector + sectors(int64(len(opts.BIOS.Image)))
	}
	if err := v.collectDirs(); err != nil {
		return nil, err
	}
	next = v.placeDirs(next)
	if err := v.placeFiles(next); err != nil {
		return nil, err
	}
	return v.build()
}

// collectInodes counts names and gives numbers.
func (v *volume) collectInodes() {
	for name, ino := range v.tree.All() {
		if v.serials[ino] == 0 {
			v.serials[ino] = uint32(len(v.serials) + 1)
			if ino.Size() > 0 {
				v.files = append(v.files, ino)
			}
		}
		v.links[ino]++
		if ino.Mode.IsDir() { // each has a name for itself in "." and ".."
			v.links[ino]++
			if parent := v.tree.Lookup(path.Dir(name)); parent != ino {
				v.links[parent]++
			}
		}
	}
}

// collectDirs finds all directories, names their entries and encodes what Rock
// Ridge says of them.
func (v *volume) collectDirs() error {
	root := &dir{name: ".", inode: v.tree.Lookup("."), id: "\x00"}
	root.parent = root
	queue := []*dir{root}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		if len(v.dirs) == maxDirs {
			return fmt.Errorf("%s: %w", d.name, unsupported("more than %d directories", maxDirs))
		}
		v.dirs = append(v.dirs, d)
		d.number = uint16(len(v.dirs))
		d.self = v.rest.pack(v.dotEntries(d), recordSize(1))
		d.up = v.rest.pack(v.inodeEntries(d.parent.inode), recordSize(1))
		names := v.tree.Children(d.name)
		ids := v.identifiers(d.name, names)
		for i, name := range names {
			full := path.Join(d.name, name)
			ino := v.tree.Lookup(full)
			entries, err := v.entries(name, ino)
			if err != nil {
				return fmt.Errorf("%s: %w", full, err)
			}
			e := entry{id: ids[i].String(), inode: ino, use: v.rest.pack(entries, recordSize(len(ids[i].String())))}
			if ino.Mode.IsDir() {
				e.dir = &dir{name: full, inode: ino, id: e.id, parent: d}
			}
			d.entries = append(d.entries, e)
		}
		slices.SortFunc(d.entries, func(a, b entry) int { return compareIDs(a.id, b.id) })
		for _, e := range d.entries {
			if e.dir != nil {
				queue = append(queue, e.dir)
			}
		}
	}
	return nil
}

// maxDirs is how many directories the path table can number.
const maxDirs = 1<<16 - 1

// placeDirs places the path tables, the directories and the continuations of
// their records from a sector on, and returns the one behind them. Readers that
// do not go back want this order.
func (v *volume) placeDirs(next int64) int64 {
	for _, d := range v.dirs {
		v.pathTable += int64(pathRecordSize(d.id))
		d.size = v.dirSize(d)
	}
	for i := range v.tables {
		v.tables[i] = next
		next += sectors(v.pathTable)
	}
	for _, d := range v.dirs {
		d.at = next
		next += d.size / SectorSize
	}
	v.restAt = next
	v.rest.place(next)
	for _, d := range v.dirs {
		refer(d.self, next)
		refer(d.up, next)
		for _, e := range d.entries {
			refer(e.use, next)
		}
	}
	return next + sectors(int64(len(v.rest.data)))
}

// dirSize returns the size of a directory in bytes. No record lies in two
// sectors.
func (v *volume) dirSize(d *dir) int64 {
	var size int64
	add := func(n int) {
		if size%SectorSize+int64(n) > SectorSize {
			size = extent.Align(size, SectorSize)
		}
		size += int64(n)
	}
	add(recordSize(1) + len(d.self))
	add(recordSize(1) + len(d.up))
	for _, e := range d.entries {
		for range max(1, (e.inode.Size()+maxExtent-1)/maxExtent) {
			add(recordSize(len(e.id)) + len(e.use))
		}
	}
	return extent.Align(size, SectorSize)
}

// placeFiles places everything else, from a sector on.
func (v *volume) placeFiles(next int64) error {
	v.share()
	for _, ino := range v.files {
		if _, ok := v.shared[ino]; !ok {
			v.places[ino] = next
			next += sectors(ino.Size())
		}
	}
	v.end = next
	if v.opts.bootable() {
		v.end = extent.Align(v.end, partitionAlign)
	}
	if v.opts.EFI != nil {
		v.efi = v.end
		v.end = extent.Align(v.efi+sectors(v.opts.EFI.Size()), partitionAlign)
	}
	for ino, in := range v.shared {
		v.places[ino] = v.efi + in.at
		if in.host != nil {
			v.places[ino] = v.places[in.host] + in.at
		}
	}
	if v.end > maxSectors {
		return unsupported("a volume of %d sectors of %d bytes, at most %d", v.end, SectorSize, int64(maxSectors))
	}
	return nil
}

// within is where a file lies in something else.
type within struct {
	host *tree.Inode // another file, which is in none; nil is the EFI system partition
	at   int64       // in sectors
}

// share finds the files that are in the EFI system partition as well, or within
// another file, at the beginning of a sector.
func (v *volume) share() {
	find := func(ino, host *tree.Inode, m *extent.Map) bool {
		at := m.Index(ino.Content)
		if at < 0 || at%SectorSize != 0 {
			return false
		}
		v.shared[ino] = within{host, at / SectorSize}
		return true
	}
	type host struct {
		inode   *tree.Inode
		content *extent.Map
	}
	var hosts []host
	efi, _ := v.opts.EFI.(*extent.Map)
	// Nothing is within what is smaller, nor a host within another.
	bySize := slices.Clone(v.files)
	slices.SortStableFunc(bySize, func(a, b *tree.Inode) int { return cmp.Compare(b.Size(), a.Size()) })
	for _, ino := range bySize {
		if efi != nil && find(ino, nil, efi) {
			continue
		}
		within := slices.ContainsFunc(hosts, func(h host) bool { return find(ino, h.inode, h.content) })
		if !within && ino.Size() >= worthSharing {
			m := extent.New(ino.Size())
			if m.Put(0, ino.Content) == nil {
				hosts = append(hosts, host{ino, m})
			}
		}
	}
}

// worthSharing is from how many bytes on a file is looked into for others: an
// image may have very many small ones.
const worthSharing = 1 << 20

// partitionAlign is what the ends of partitions and of the image are multiples
// of, as usual on disks: 1 MiB.
const partitionAlign = 1 << 20 / SectorSize

// build puts everything in its place.
func (v *volume) build() (*extent.Map, error) {
	size := v.end * SectorSize
	var table *extent.Map
	if v.opts.bootable() {
		// The second copy of the GPT takes 33 disk sectors.
		size = extent.Align(size+33*diskSector, partitionAlign*SectorSize)
		var err error
		if table, err = v.partitions(size); err != nil {
			return nil, err
		}
	}
	m := extent.New(size)
	var err error
	put := func(at int64, src extent.Source) {
		if err == nil {
			err = m.Put(at*SectorSize, src)
		}
	}
	if table != nil {
		put(0, table)
	}
	put(descriptors, extent.Bytes(v.descriptors()))
	if v.opts.bootable() {
		put(catalogSector, extent.Bytes(v.catalog()))
	}
	if v.opts.BIOS != nil {
		put(BIOSSector, extent.Bytes(v.opts.BIOS.Image))
	}
	put(v.tables[0], extent.Bytes(v.pathTableBytes(le)))
	put(v.tables[1], extent.Bytes(v.pathTableBytes(be)))
	for _, d := range v.dirs {
		put(d.at, extent.Bytes(v.dirBytes(d)))
	}
	put(v.restAt, extent.Bytes(v.rest.data))
	for _, ino := range v.files {
		if _, ok := v.shared[ino]; !ok {
			put(v.places[ino], ino.Content)
		}
	}
	if v.opts.EFI != nil {
		put(v.efi, v.opts.EFI)
	}
	if err != nil {
		return nil, fmt.Errorf("ISO 9660: %w", err)
	}
	return m, nil
}

// partitions returns the GPT of an image of size bytes.
func (v *volume) partitions(size int64) (*extent.Map, error) {
	table := gpt.Table{DiskID: v.opts.DiskID, SectorSize: diskSector, Size: size}
	files := gpt.Partition{Type: gpt.LinuxFilesystem, ID: v.opts.FilesID, Name: "ISO9660", Start: descriptors * SectorSize, Attributes: readOnly}
	end := v.end
	if v.opts.EFI != nil {
		end = v.efi
	}
	files.Size = end*SectorSize - files.Start
	table.Partitions = append(table.Partitions, files)
	if v.opts.EFI != nil {
		table.Partitions = append(table.Partitions, gpt.Partition{
			Type: gpt.EFISystem, ID: v.opts.EFIID, Name: "EFI", Start: v.efi * SectorSize, Size: (v.end - v.efi) * SectorSize,
		})
	}
	if v.opts.BIOS != nil {
		table.BootCode = v.opts.BIOS.BootCode
	}
	return table.Map()
}

// readOnly is the attribute of a GPT partition that must not be written to, as
// Windows and systemd know it.
const readOnly = 1 << 60

// kind returns the type of a file as a POSIX mode has it, or ErrUnsupported.
func kind(mode fs.FileMode) (uint32, error) {
	switch mode.Type() {
	case 0:
		return 0o100000, nil
	case fs.ModeDir:
		return 0o040000, nil
	case fs.ModeSymlink:
		return 0o120000, nil
	case fs.ModeDevice:
		return 0o060000, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		return 0o020000, nil
	case fs.ModeNamedPipe:
		return 0o010000, nil
	case fs.ModeSocket:
		return 0o140000, nil
	}
	return 0, unsupported("a file of type %v", mode.Type())
}

// compareIDs compares two identifiers in the order of directories: as if name
// and extension were padded with spaces.
func compareIDs(a, b string) int {
	aName, aExt, _ := strings.Cut(a, ".")
	bName, bExt, _ := strings.Cut(b, ".")
	if c := strings.Compare(aName, bName); c != 0 {
		return c
	}
	return strings.Compare(aExt, bExt)
}

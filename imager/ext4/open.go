package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Limits of what Open accepts, so that a hostile image cannot cost more than
// some memory.
const (
	maxPaths     = 1 << 20
	maxDirBytes  = 64 << 20  // of one directory
	maxDirsBytes = 256 << 20 // of all directories
	maxMetaBytes = 256 << 20 // of all link targets and extended attributes
	maxTreeNodes = 1 << 12   // blocks of one file's extent tree
	maxHeight    = 5         // of an extent tree
)

// FileSystem is what Open found.
type FileSystem struct {
	Label string
	UUID  [16]byte
	Size  int64 // bytes
	Free  int64 // bytes, as of the last time it was unmounted

	// Tree holds all files, lost+found too. Contents are read from the
	// reader given to Open when they are asked for.
	Tree *tree.Tree
}

// reader knows where things are in an image.
type reader struct {
	r              io.ReaderAt
	blockSize      int64
	blocks         int64
	firstBlock     int64 // of group 0
	groupBlocks    int64
	groups         int64
	inodes         int64
	inodesPerGroup int64
	inodeSize      int64
	descSize       int64
	firstMeta      int64 // first block of descriptors that is in its own groups (meta_bg)
	metaBG         bool
	sparse         bool // sparse_super
	fileTypes      bool
	verify         bool // check metadata_csum
	seed           uint32
	metaBytes      int64 // of link targets and extended attributes so far
}

// Open reads the directories and inodes of the ext4 file system in the first
// size bytes of r, and checks the checksums of what it reads. It wants a file
// system that was unmounted cleanly, in which files are mapped by extents; it
// fails with ErrUnsupported for features it does not know, with ErrCorrupt for
// damage and for more than a million files.
func Open(r io.ReaderAt, size int64) (*FileSystem, error) {
	return open(r, size, true)
}

func open(r io.ReaderAt, size int64, verify bool) (*FileSystem, error) {
	x := &reader{r: r, verify: verify}
	out := &FileSystem{}
	if err := x.super(size, out); err != nil {
		return nil, err
	}
	w := &walker{reader: x, tree: tree.New(), seen: map[uint32]*tree.Inode{}}
	if err := w.walk(); err != nil {
		return nil, err
	}
	out.Tree = w.tree
	return out, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// readAt fills p from byte off of the file system.
func (x *reader) readAt(p []byte, off int64) error {
	n, err := x.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return corrupt("%d bytes at %d are beyond its end", len(p), off)
	}
	return err
}

func (x *reader) block(n int64) ([]byte, error) {
	if n <= 0 || n >= x.blocks {
		return nil, corrupt("block %d of %d", n, x.blocks)
	}
	b := make([]byte, x.blockSize)
	return b, x.readAt(b, n*x.blockSize)
}

const (
	readCompatible = incompatFileType | incompatExtents | incompat64Bit | incompatFlexBG |
		incompatMetaBG | incompatCsumSeed | incompatLargeDir
	maxBlockSizeLog = 2 // 1024 << 2; more than a page needs a recent kernel
)

// super reads the superblock.
func (x *reader) super(size int64, out *FileSystem) error {
	le := binary.LittleEndian
	b := make([]byte, superSize)
	if size < superAt+superSize {
		return corrupt("%d bytes are too few for a superblock", size)
	}
	if err := x.readAt(b, superAt); err != nil {
		return err
	}
	if m := le.Uint16(b[56:]); m != extMagic {
		return corrupt("magic number %#04x, wanted %#04x", m, extMagic)
	}
	incompat, ro := le.Uint32(b[96:]), le.Uint32(b[100:])
	if incompat&incompatRecover != 0 {
		return unsupported("it was not unmounted cleanly; mount it or run e2fsck to replay its journal")
	}
	if unknown := incompat &^ readCompatible; unknown != 0 {
		return unsupported("features %#x", unknown)
	}
	if c := ro & roChecksums; c == 0 {
		x.verify = false
	}
	if x.verify {
		if sum := crc32c(^uint32(0), b[:superSum]); sum != le.Uint32(b[superSum:]) {
			return corrupt("superblock checksum %#08x, wanted %#08x", le.Uint32(b[superSum:]), sum)
		}
	}
	if n := le.Uint32(b[24:]); n > maxBlockSizeLog {
		return unsupported("block size 1024<<%d, the largest is 4096", n)
	}
	x.blockSize = 1024 << le.Uint32(b[24:])
	x.blocks = int64(le.Uint32(b[4:]))
	x.descSize = 32
	free := int64(le.Uint32(b[12:]))
	if incompat&incompat64Bit != 0 {
		x.blocks |= int64(le.Uint32(b[336:])) << 32
		free |= int64(le.Uint32(b[344:])) << 32
		x.descSize = int64(le.Uint16(b[254:]))
		if x.descSize < descSize || x.descSize > 1024 || x.descSize&(x.descSize-1) != 0 {
			return corrupt("group descriptors of %d bytes", x.descSize)
		}
	}
	if x.blocks > size/x.blockSize {
		return corrupt("%d blocks of %d bytes, but the image has only %d bytes", x.blocks, x.blockSize, size)
	}
	x.firstBlock = int64(le.Uint32(b[20:]))
	x.groupBlocks = int64(le.Uint32(b[32:]))
	x.inodesPerGroup = int64(le.Uint32(b[40:]))
	x.inodes = int64(le.Uint32(b[0:]))
	x.inodeSize = 128
	if le.Uint32(b[76:]) > 0 {
		x.inodeSize = int64(le.Uint16(b[88:]))
	}
	if x.inodeSize < 128 || x.inodeSize > x.blockSize || x.inodeSize&(x.inodeSize-1) != 0 {
		return corrupt("inodes of %d bytes", x.inodeSize)
	}
	if n := 8 * x.blockSize; x.firstBlock >= x.blocks || x.firstBlock > 1 || x.groupBlocks < 1 || x.groupBlocks > n || x.inodesPerGroup < 1 || x.inodesPerGroup > n {
		return corrupt("%d blocks and %d inodes per group, first block %d of %d", x.groupBlocks, x.inodesPerGroup, x.firstBlock, x.blocks)
	}
	x.groups = ceil(x.blocks-x.firstBlock, x.groupBlocks)
	if x.inodes > x.groups*x.inodesPerGroup {
		return corrupt("%d inodes in %d groups of %d", x.inodes, x.groups, x.inodesPerGroup)
	}
	x.metaBG = incompat&incompatMetaBG != 0
	x.firstMeta = int64(le.Uint32(b[260:]))
	x.sparse = ro&roSparseSuper != 0
	x.fileTypes = incompat&incompatFileType != 0
	x.seed = crc32c(^uint32(0), b[104:120])
	if incompat&incompatCsumSeed != 0 {
		x.seed = le.Uint32(b[624:])
	}
	label, _, _ := bytes.Cut(b[120:136], []byte{0})
	out.Label = string(label)
	out.UUID = [16]byte(b[104:120])
	out.Size = x.blocks * x.blockSize
	out.Free = max(0, min(free, x.blocks)) * x.blockSize
	return nil
}

// descriptor returns the descriptor of a group.
func (x *reader) descriptor(group int64) ([]byte, error) {
	le := binary.LittleEndian
	perBlock := x.blockSize / x.descSize
	at := x.firstBlock + 1 + group/perBlock
	if i := group / perBlock; x.metaBG && i >= x.firstMeta {
		first := i * perBlock
		at = x.firstBlock + first*x.groupBlocks
		if !x.sparse || hasSuper(first) {
			at++
		}
	}
	d := make([]byte, x.descSize)
	if at >= x.blocks {
		return nil, corrupt("descriptor of group %d in block %d of %d", group, at, x.blocks)
	}
	if err := x.readAt(d, at*x.blockSize+group%perBlock*x.descSize); err != nil {
		return nil, err
	}
	if x.verify {
		found := le.Uint16(d[30:])
		le.PutUint16(d[30:], 0)
		if sum := descChecksum(d, uint32(group), x.seed); sum != found {
			return nil, corrupt("descriptor of group %d: checksum %#04x, wanted %#04x", group, found, sum)
		}
	}
	return d, nil
}

// inodeAt returns the offset of an inode in the file system.
func (x *reader) inodeAt(ino uint32) (int64, error) {
	le := binary.LittleEndian
	if ino == 0 || int64(ino) > x.inodes {
		return 0, corrupt("inode %d of %d", ino, x.inodes)
	}
	i := int64(ino) - 1
	d, err := x.descriptor(i / x.inodesPerGroup)
	if err != nil {
		return 0, err
	}
	table := int64(le.Uint32(d[8:]))
	if x.descSize >= descSize {
		table |= int64(le.Uint32(d[40:])) << 32
	}
	at := i % x.inodesPerGroup * x.inodeSize
	if table <= 0 || table >= x.blocks-at/x.blockSize {
		return 0, corrupt("inode table of group %d at block %d of %d", i/x.inodesPerGroup, table, x.blocks)
	}
	return table*x.blockSize + at, nil
}

// rawInode returns an inode as it is on disk, its checksum zeroed.
func (x *reader) rawInode(ino uint32) ([]byte, error) {
	le := binary.LittleEndian
	at, err := x.inodeAt(ino)
	if err != nil {
		return nil, err
	}
	b := make([]byte, x.inodeSize)
	if err := x.readAt(b, at); err != nil {
		return nil, err
	}
	if x.verify {
		found, mask := uint32(le.Uint16(b[124:])), uint32(0xffff)
		le.PutUint16(b[124:], 0)
		if x.inodeSize > 128 && le.Uint16(b[128:]) >= 4 {
			found |= uint32(le.Uint16(b[130:])) << 16
			mask = 0xffffffff
			le.PutUint16(b[130:], 0)
		}
		if sum := inodeChecksum(b, x.inodeSeed(ino, b)) & mask; sum != found {
			return nil, corrupt("inode %d: checksum %#x, wanted %#x", ino, found, sum)
		}
	}
	return b, nil
}

func (x *reader) inodeSeed(ino uint32, raw []byte) uint32 {
	return inodeSeed(x.seed, ino, binary.LittleEndian.Uint32(raw[100:]))
}

// walker builds the tree.
type walker struct {
	*reader
	tree     *tree.Tree
	seen     map[uint32]*tree.Inode
	dirBytes int64
	paths    int
}

type found struct {
	name string
	ino  uint32
}

// walk goes through the directories without recursion.
func (w *walker) walk() error {
	queue := []found{{".", inoRoot}}
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		raw, err := w.rawInode(dir.ino)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.name, err)
		}
		if dir.name == "." {
			if binary.LittleEndian.Uint16(raw)&modeType != modeDir {
				return corrupt("inode %d, the root, is not a directory", inoRoot)
			}
			if _, err := w.add(".", inoRoot); err != nil {
				return err
			}
		}
		entries, err := w.entries(dir.ino, raw)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.name, err)
		}
		for _, e := range entries {
			e.name = path.Join(dir.name, e.name)
			isDir, err := w.add(e.name, e.ino)
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			if isDir {
				queue = append(queue, e)
			}
		}
	}
	return nil
}

// add puts an inode into the tree and says whether it is a directory.
func (w *walker) add(name string, ino uint32) (bool, error) {
	if w.paths++; w.paths > maxPaths {
		return false, corrupt("more than %d paths", maxPaths)
	}
	node := w.seen[ino]
	if node != nil && node.Mode.IsDir() {
		return false, corrupt("directory inode %d has two names", ino)
	}
	if node == nil {
		raw, err := w.rawInode(ino)
		if err != nil {
			return false, err
		}
		if node, err = w.inode(ino, raw); err != nil {
			return false, err
		}
		w.seen[ino] = node
	}
	if err := w.tree.Add(name, node); err != nil {
		return false, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return node.Mode.IsDir(), nil
}

// entries returns what a directory holds. The inner nodes of a hashed directory
// look like unused entries.
func (w *walker) entries(ino uint32, raw []byte) ([]found, error) {
	le := binary.LittleEndian
	f := &content{reader: w.reader, ino: ino, raw: raw, size: fileSize(raw)}
	if f.size > maxDirBytes || f.size%w.blockSize != 0 {
		return nil, corrupt("directory of %d bytes, wanted whole blocks and at most %d bytes", f.size, maxDirBytes)
	}
	if w.dirBytes += f.size; w.dirBytes > maxDirsBytes {
		return nil, corrupt("directories of more than %d bytes", maxDirsBytes)
	}
	b := make([]byte, w.blockSize)
	var out []found
	for off := int64(0); off < f.size; off += w.blockSize {
		if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
			return nil, err
		}
		end := len(b) - dirTail
		if tail := b[end:]; w.verify && bytes.Equal(tail[:8], []byte{0, 0, 0, 0, dirTail, 0, 0, dirTailType}) {
			if sum := crc32c(w.inodeSeed(ino, raw), b[:end]); sum != le.Uint32(tail[8:]) {
				return nil, corrupt("directory block %d: checksum %#08x, wanted %#08x", off/w.blockSize, le.Uint32(tail[8:]), sum)
			}
		}
		for at := 0; at < len(b); {
			rest := b[at:]
			if len(rest) < direntHeader {
				return nil, corrupt("directory entry at the end of a block")
			}
			size, nameLen := int(le.Uint16(rest[4:])), int(rest[6])
			if size < direntHeader || size%4 != 0 || size > len(rest) || direntHeader+nameLen > size {
				return nil, corrupt("directory entry of %d bytes with a name of %d", size, nameLen)
			}
			at += size
			name := string(rest[direntHeader : direntHeader+nameLen])
			child := le.Uint32(rest)
			if child == 0 || name == "." || name == ".." {
				continue
			}
			if name == "" || strings.ContainsAny(name, "/\x00") {
				return nil, corrupt("file name %q", name)
			}
			if len(out) == maxPaths {
				return nil, corrupt("more than %d paths", maxPaths)
			}
			out = append(out, found{name, child})
		}
	}
	return out, nil
}

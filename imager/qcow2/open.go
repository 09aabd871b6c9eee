package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/kilnhq/kiln/imager/extent"
)

const (
	// maxExtents bounds the memory for an image with holes everywhere.
	maxExtents = 1 << 22

	// direct is the number of bytes that must lie in a row in the file to
	// become an extent of the file: worth copying without looking at it.
	direct = 1 << 20
)

// Open returns the disk in an image of version 2 or 3. Clusters that are not
// allocated or read as zeros are holes; compressed ones are decompressed when
// they are read. What the image has besides the disk as it is now (internal
// snapshots, bitmaps) is ignored.
//
// An image that needs a backing file or an external data file, is encrypted, is
// marked dirty or corrupt, has subclusters (extended L2 entries), or a feature
// of which nothing is known, is refused with ErrUnsupported; one that
// contradicts itself or has been cut off with ErrCorrupt. Refcounts are not
// looked at. The last cluster of a file may be shorter than the others, so the
// loss of less than a cluster goes unnoticed.
func Open(src extent.Source) (*extent.Map, error) {
	h, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	l1 := make([]byte, h.l1Entries()*entrySize)
	if err := readAt(src, l1, h.l1); err != nil {
		return nil, fmt.Errorf("%w: L1 table at %d: %w", ErrCorrupt, h.l1, err)
	}
	r := &reader{
		image: &image{geometry: h.geometry, version: h.version, src: src, compression: h.compression},
		disk:  extent.New(h.size),
		seen:  make(map[int64]bool),
	}
	r.image.cache.limit = max(2, cacheSize>>h.clusterBits)
	for i := range h.l1Entries() {
		if err := r.l1Entry(i, binary.BigEndian.Uint64(l1[i*entrySize:])); err != nil {
			return nil, err
		}
	}
	return r.disk, r.flush()
}

type header struct {
	geometry
	version     uint32
	compression Compression
	l1          int64
}

func readHeader(src extent.Source) (header, error) {
	b := make([]byte, headerSize)
	n, err := src.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	be := binary.BigEndian
	if n < header2Size || be.Uint32(b) != magic {
		return header{}, fmt.Errorf("%w: does not begin with a qcow2 header", ErrCorrupt)
	}
	h := header{version: be.Uint32(b[4:])}
	length := uint32(header2Size)
	switch h.version {
	case 2:
	case 3:
		length = be.Uint32(b[100:])
		if n < header3Size || length < header3Size || length%8 != 0 {
			return header{}, fmt.Errorf("%w: header of %d bytes, want 104 or more and a multiple of 8", ErrCorrupt, length)
		}
		if err := h.features(be.Uint64(b[72:]), length, b[104]); err != nil {
			return header{}, err
		}
	default:
		return header{}, fmt.Errorf("%w: version %d, want 2 or 3", ErrUnsupported, h.version)
	}
	if at := be.Uint64(b[8:]); at != 0 {
		return header{}, fmt.Errorf("%w: it only has what differs from a backing file%s; merge them with qemu-img convert",
			ErrUnsupported, backingName(src, at, be.Uint32(b[16:])))
	}
	switch method := be.Uint32(b[32:]); method {
	case 0:
	case 1:
		return header{}, fmt.Errorf("%w: it is encrypted (AES)", ErrUnsupported)
	case 2:
		return header{}, fmt.Errorf("%w: it is encrypted (LUKS)", ErrUnsupported)
	default:
		return header{}, fmt.Errorf("%w: it is encrypted (method %d)", ErrUnsupported, method)
	}

	clusterBits := be.Uint32(b[20:])
	if clusterBits < minClusterBits || clusterBits > maxClusterBits {
		return header{}, fmt.Errorf("%w: clusters of 2^%d bytes, want 2^9 to 2^21", ErrCorrupt, clusterBits)
	}
	size := be.Uint64(b[24:])
	if size > 1<<62 {
		return header{}, fmt.Errorf("%w: disk of %d bytes", ErrCorrupt, size)
	}
	h.geometry = geometry{int64(size), int(clusterBits)}
	need, have := h.l1Entries(), int64(be.Uint32(b[36:]))
	if have < need {
		return header{}, fmt.Errorf("%w: L1 table of %d entries, a disk of %d bytes needs %d", ErrCorrupt, have, size, need)
	}
	l1 := be.Uint64(b[40:])
	if need*entrySize > maxL1 || l1&uint64(h.clusterSize()-1) != 0 || l1 > uint64(src.Size()) || need*entrySize > src.Size()-int64(l1) {
		return header{}, fmt.Errorf("%w: L1 table of %d entries at %d in a file of %d bytes", ErrCorrupt, need, l1, src.Size())
	}
	h.l1 = int64(l1)
	return h, nil
}

// features checks the incompatible features of a header of version 3.
func (h *header) features(incompatible uint64, length uint32, compression byte) error {
	switch {
	case incompatible&featureCorrupt != 0:
		return fmt.Errorf("%w: it is marked corrupt; try qemu-img check -r all on a copy", ErrUnsupported)
	case incompatible&featureDirty != 0:
		return fmt.Errorf("%w: it is marked dirty, as it was not closed; repair it with qemu-img check -r all", ErrUnsupported)
	case incompatible&featureDataFile != 0:
		return fmt.Errorf("%w: its data is in an external data file; merge them with qemu-img convert", ErrUnsupported)
	case incompatible&featureExtendedL2 != 0:
		return fmt.Errorf("%w: it has subclusters (extended L2 entries); convert it with qemu-img convert -O qcow2 -o extended_l2=off",
			ErrUnsupported)
	}
	if unknown := incompatible &^ featureCompression; unknown != 0 {
		return fmt.Errorf("%w: unknown incompatible feature, bit %d", ErrUnsupported, bits.TrailingZeros64(unknown))
	}
	if incompatible&featureCompression == 0 {
		return nil
	}
	if length <= header3Size || compression == byte(Zlib) {
		return fmt.Errorf("%w: the compression type is announced and missing", ErrCorrupt)
	}
	if h.compression = Compression(compression); h.compression != Zstd {
		return fmt.Errorf("%w: %v, want zlib or zstd", ErrUnsupported, h.compression)
	}
	return nil
}

func backingName(src extent.Source, at uint64, length uint32) string {
	if length > 1023 || at > uint64(src.Size()) {
		return ""
	}
	name := make([]byte, length)
	if err := readAt(src, name, int64(at)); err != nil {
		return ""
	}
	return fmt.Sprintf(" (%q)", name)
}

// reader builds the map of the disk. It collects clusters that are not holes
// until there is a hole, or enough that lie in a row in the file.
type reader struct {
	*image
	disk *extent.Map
	seen map[int64]bool // offsets of L2 tables
	made int            // number of extents

	first   int64    // cluster of the disk that is first in pending
	pending []uint64 // entries of the clusters that are not in the map yet
	row     int      // how many of the last of them lie in a row in the file
}

func (r *reader) l1Entry(i int64, entry uint64) error {
	at := int64(entry & offsetMask)
	if entry&^(offsetMask|flagCopied) != 0 || at%r.clusterSize() != 0 {
		return fmt.Errorf("%w: L1 entry %d is %#x", ErrCorrupt, i, entry)
	}
	if at == 0 {
		return r.flush()
	}
	// Each table once: otherwise a small file could ask for any amount of work.
	if r.seen[at] {
		return fmt.Errorf("%w: L2 table at %d is used twice", ErrCorrupt, at)
	}
	r.seen[at] = true
	first := i * r.perL2()
	table := make([]byte, min(r.perL2(), r.clusters(r.size)-first)*entrySize)
	if err := readAt(r.src, table, at); err != nil {
		return fmt.Errorf("%w: L2 table at %d: %w", ErrCorrupt, at, err)
	}
	for j := range int64(len(table) / entrySize) {
		if err := r.l2Entry(first+j, binary.BigEndian.Uint64(table[j*entrySize:])); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) l2Entry(cluster int64, entry uint64) error {
	hole, err := r.check(cluster, entry)
	if err != nil {
		return err
	}
	if hole {
		return r.flush()
	}
	entry &^= flagCopied
	enough := max(1, direct>>r.clusterBits)
	n := len(r.pending)
	switch {
	case entry&flagPacked != 0 || !r.whole(entry):
		if r.row >= enough {
			if err := r.flush(); err != nil {
				return err
			}
		}
		r.row = 0
	case r.row > 0 && r.pending[n-1]+uint64(r.clusterSize()) == entry:
		r.row++
	default:
		if r.row >= enough {
			if err := r.flush(); err != nil {
				return err
			}
		}
		r.row = 1
	}
	if len(r.pending) == 0 {
		r.first = cluster
	}
	r.pending = append(r.pending, entry)
	if r.row == enough {
		// What came before is an extent of its own.
		return r.put(len(r.pending) - r.row)
	}
	return nil
}

// check validates an entry of an L2 table and reports whether it is a hole.
func (r *reader) check(cluster int64, entry uint64) (hole bool, err error) {
	if entry&flagPacked != 0 {
		at, _ := r.packedPlace(entry)
		if entry&flagCopied != 0 || at >= r.src.Size() {
			return false, fmt.Errorf("%w: cluster %d of the disk: compressed data at %d in a file of %d bytes (entry %#x)",
				ErrCorrupt, cluster, at, r.src.Size(), entry)
		}
		return false, nil
	}
	at := int64(entry & offsetMask)
	switch {
	case entry&^(offsetMask|flagCopied|flagZero) != 0 || at%r.clusterSize() != 0 || at == 0 && entry&flagCopied != 0,
		entry&flagZero != 0 && r.version < 3:
		return false, fmt.Errorf("%w: cluster %d of the disk: entry %#x", ErrCorrupt, cluster, entry)
	case at == 0 || entry&flagZero != 0:
		return true, nil
	case at >= r.src.Size():
		return false, fmt.Errorf("%w: cluster %d of the disk is at %d, but the file ends at %d", ErrCorrupt, cluster, at, r.src.Size())
	}
	return false, nil
}

// whole reports whether all of the standard cluster is in the file.
func (r *reader) whole(entry uint64) bool {
	return int64(entry&offsetMask) <= r.src.Size()-r.clusterSize()
}

// flush puts the pending clusters into the map.
func (r *reader) flush() error {
	err := r.put(len(r.pending))
	r.row = 0
	return err
}

// put puts the first n of the pending clusters into the map.
func (r *reader) put(n int) error {
	if n == 0 {
		return nil
	}
	if r.made++; r.made > maxExtents {
		return fmt.Errorf("%w: more than %d fragments; defragment it with qemu-img convert", ErrUnsupported, maxExtents)
	}
	start := r.first << r.clusterBits
	size := min(int64(n)<<r.clusterBits, r.size-start)
	var src extent.Source
	var err error
	if r.row == n && n == len(r.pending) && n >= max(1, direct>>r.clusterBits) {
		src, err = extent.Section(r.src, int64(r.pending[0]), size)
	} else {
		src = &clusters{image: r.image, entries: append([]uint64(nil), r.pending[:n]...), size: size}
	}
	if err == nil {
		err = r.disk.Put(start, src)
	}
	r.first += int64(n)
	r.pending = append(r.pending[:0], r.pending[n:]...)
	return err
}

// readAt reads len(p) bytes.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Package qcow2 writes and reads disk images of QEMU's format qcow2.
//
// It follows docs/interop/qcow2.txt of the QEMU sources. An image is a sequence
// of clusters, by default of 64 KiB; so is the disk that the guest sees. Every
// integer is big-endian.
//
//	header           cluster 0: 72 bytes in version 2, 104 or more in version 3
//	refcount table   64-bit offsets of the refcount blocks
//	refcount blocks  one cluster each: for every cluster of the file, how often
//	                 it is referred to (here always 16 bits each)
//	L1 table         64-bit offsets of the L2 tables
//	L2 tables        one cluster each: for every cluster of the disk, where it is
//	data             the clusters of the disk
//
// An entry of an L2 table is 0 for a cluster that is a hole, or an offset in
// the file, or, for a compressed cluster, an offset and a number of 512-byte
// sectors. Compressed clusters lie next to each other without regard for
// clusters and sectors, and count as one reference to each cluster of the file
// that their sectors lie in.
//
// Map returns an image that is not compressed as an extent map, without reading
// the disk. Write compresses. Open returns the disk in an image.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/kilnhq/kiln/imager/extent"
)

// Errors returned, wrapped, by this package.
var (
	// ErrInvalid is for options, or a disk, that cannot be written.
	ErrInvalid = errors.New("cannot be a qcow2 image")
	// ErrCorrupt is for an image that contradicts the specification or itself.
	ErrCorrupt = errors.New("damaged qcow2 image")
	// ErrUnsupported is for an image with a feature that Open cannot read.
	ErrUnsupported = errors.New("unsupported qcow2 image")
)

// DefaultClusterSize is the cluster size, in bytes, that qemu-img uses too.
const DefaultClusterSize = 64 << 10

const (
	magic = 0x514649fb // "QFI\xfb"

	minClusterBits = 9
	maxClusterBits = 21 // of QEMU; the specification has no limit
	sector         = 512

	// What QEMU opens: an L1 table of 32 MiB, a refcount table of 8 MiB.
	maxL1            = 32 << 20
	maxRefcountTable = 8 << 20

	header2Size = 72
	header3Size = 104
	headerSize  = 112 // with the compression type

	offsetMask  = 1<<56 - 1<<9 // of an L1 entry and of a standard cluster
	flagCopied  = 1 << 63      // refcount is exactly one
	flagZero    = 1 << 0       // standard cluster that reads as zeros
	flagPacked  = 1 << 62      // compressed cluster
	entrySize   = 8
	refcountLen = 2 // bytes; refcount_order 4
	maxRefcount = 1<<16 - 1
)

// Incompatible features, as bits.
const (
	featureDirty       = 1 << 0
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
)

// Types of header extensions.
const (
	extensionEnd      = 0
	extensionFeatures = 0x6803f857
)

// Compression is how the clusters of an image are compressed.
type Compression byte

const (
	// Zlib is raw deflate, which everything reads that reads qcow2.
	Zlib Compression = 0
	// Zstd needs QEMU 5.1 or newer.
	Zstd Compression = 1
)

// String returns the name that QEMU has for it.
func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", byte(c))
}

// geometry is what follows from the size of disk and clusters.
type geometry struct {
	size        int64 // of the disk, in bytes
	clusterBits int
}

func newGeometry(size, clusterSize int64) (geometry, error) {
	if clusterSize == 0 {
		clusterSize = DefaultClusterSize
	}
	if clusterSize < 1<<minClusterBits || clusterSize > 1<<maxClusterBits || clusterSize&(clusterSize-1) != 0 {
		return geometry{}, fmt.Errorf("%w: cluster size %d, want a power of two from 512 to 2097152", ErrInvalid, clusterSize)
	}
	g := geometry{size, bits.TrailingZeros64(uint64(clusterSize))}
	if size%sector != 0 {
		return geometry{}, fmt.Errorf("%w: a disk of %d bytes is not a whole number of 512-byte sectors", ErrInvalid, size)
	}
	if limit := maxL1 / entrySize * g.perL2() * clusterSize; size > limit {
		return geometry{}, fmt.Errorf("%w: a disk of %d bytes; clusters of %d bytes can hold %d, larger clusters more",
			ErrInvalid, size, clusterSize, limit)
	}
	return g, nil
}

func (g geometry) clusterSize() int64 { return 1 << g.clusterBits }

// perL2 is the number of clusters that an L2 table describes.
func (g geometry) perL2() int64 { return g.clusterSize() / entrySize }

// perRefcountBlock is the number of clusters that a refcount block counts.
func (g geometry) perRefcountBlock() int64 { return g.clusterSize() / refcountLen }

// clusters is the number of clusters that n bytes need.
func (g geometry) clusters(n int64) int64 { return ceil(n, g.clusterSize()) }

// l1Entries is the number of entries of the L1 table.
func (g geometry) l1Entries() int64 { return ceil(g.clusters(g.size), g.perL2()) }

// l1Clusters is the number of clusters of the L1 table: none for a disk of size 0.
func (g geometry) l1Clusters() int64 { return g.clusters(g.l1Entries() * entrySize) }

// packedShift is the number of bits of a compressed cluster's offset. The
// number of its sectors is in the bits above.
func (g geometry) packedShift() int { return 62 - (g.clusterBits - 8) }

// refcounts returns how many clusters the refcount table and the refcount
// blocks of an image need that has n other clusters: they count themselves too.
func (g geometry) refcounts(n int64) (table, blocks int64, err error) {
	for {
		t := g.clusters(blocks * entrySize)
		b := ceil(n+t+blocks, g.perRefcountBlock())
		if t == table && b == blocks {
			break
		}
		table, blocks = t, b
	}
	if table*g.clusterSize() > maxRefcountTable || (n+table+blocks)<<g.clusterBits-1 > offsetMask {
		return 0, 0, fmt.Errorf("%w: %d clusters of %d bytes are more than QEMU can count; use larger clusters",
			ErrInvalid, n, g.clusterSize())
	}
	return table, blocks, nil
}

func ceil(n, d int64) int64 {
	if n == 0 {
		return 0
	}
	return (n-1)/d + 1
}

// tables is where things are in an image, in bytes from its beginning.
type tables struct {
	l1               int64
	refcountTable    int64
	refcountClusters int64 // of the table
}

// header returns the header of version 3 and its extensions.
func (g geometry) header(t tables, c Compression) []byte {
	b := make([]byte, 0, 256)
	be := binary.BigEndian
	b = be.AppendUint32(b, magic)
	b = be.AppendUint32(b, 3)
	b = be.AppendUint64(b, 0) // backing file: offset,
	b = be.AppendUint32(b, 0) // length of its name
	b = be.AppendUint32(b, uint32(g.clusterBits))
	b = be.AppendUint64(b, uint64(g.size))
	b = be.AppendUint32(b, 0) // no encryption
	b = be.AppendUint32(b, uint32(g.l1Entries()))
	b = be.AppendUint64(b, uint64(t.l1))
	b = be.AppendUint64(b, uint64(t.refcountTable))
	b = be.AppendUint32(b, uint32(t.refcountClusters))
	b = be.AppendUint32(b, 0) // snapshots: number,
	b = be.AppendUint64(b, 0) // offset
	var incompatible uint64
	length := uint32(header3Size)
	if c != Zlib {
		incompatible, length = featureCompression, headerSize
	}
	b = be.AppendUint64(b, incompatible)
	b = be.AppendUint64(b, 0) // compatible features
	b = be.AppendUint64(b, 0) // auto-clear features
	b = be.AppendUint32(b, uint32(bits.TrailingZeros(refcountLen*8)))
	b = be.AppendUint32(b, length)
	if c != Zlib {
		b = append(b, byte(c), 0, 0, 0, 0, 0, 0, 0)
		// A QEMU that does not know the feature says this name.
		b = be.AppendUint32(b, extensionFeatures)
		b = be.AppendUint32(b, 48)
		name := [48]byte{0: 0, 1: byte(bits.TrailingZeros(featureCompression))}
		copy(name[2:], "compression type")
		b = append(b, name[:]...)
	}
	b = be.AppendUint32(b, extensionEnd)
	return be.AppendUint32(b, 0)
}

// run is a run of clusters of the disk that are allocated.
type run struct {
	first, end int64 // clusters of the disk
	before     int64 // number of clusters in the runs before this one
}

// runs returns the clusters that extents of the disk touch.
func (g geometry) runs(disk *extent.Map) []run {
	var list []run
	var n int64
	for _, e := range disk.Extents() {
		first, end := e.Offset>>g.clusterBits, g.clusters(e.End())
		if i := len(list) - 1; i >= 0 && first <= list[i].end {
			n += max(0, end-list[i].end)
			list[i].end = max(list[i].end, end)
			continue
		}
		list = append(list, run{first, end, n})
		n += end - first
	}
	return list
}

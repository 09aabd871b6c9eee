// Package squashfs writes and reads SquashFS 4.0 images: compressed, read-only
// file systems. The format is the one of the Linux kernel's
// fs/squashfs/squashfs_fs.h; all numbers are little-endian.
//
// An image is, in this order,
//
//	superblock         96 bytes; where everything else begins
//	compressor options 10 bytes, optional
//	data blocks        contents of files, and fragments
//	inode table        metadata blocks
//	directory table    metadata blocks
//	fragment table     position and size of every fragment
//	export table       the inode reference of every inode number, for NFS
//	id table           the 32-bit user and group ids; inodes hold 16-bit indexes
//	xattr table        sets of extended attributes
//	padding            zeros up to a multiple of 4 KiB, as loop devices want it
//
// A file is cut into blocks of one size (128 KiB in most images, 1 MiB here).
// What is left at its end goes, together with the ends of other files, into a
// fragment, which is at most one block. Blocks and fragments are compressed one
// by one; one that does not shrink is stored as it is, and a block of zeros is
// not stored at all.
//
// A metadata block is a 16-bit header and up to 8 KiB of a table, compressed;
// bit 15 of the header says that it is not compressed, the other bits are the
// stored size. An inode is referred to by the position of its metadata block
// in the inode table and by its offset in that block before compression.
package squashfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// Options say how Write makes an image. The zero value is good.
type Options struct {
	BlockSize int               // in bytes, a power of two from 4 KiB to 1 MiB; 0 is 1 MiB
	Level     zstd.EncoderLevel // 0 is zstd.SpeedBestCompression
	Workers   int               // compressing at the same time; 0 is GOMAXPROCS. Each takes about 40 MB of memory
	ModTime   uint32            // of the image itself, seconds since 1970
}

// The superblock and its fields.
const (
	magic          = 0x73717368 // "hsqs"
	superblockSize = 96
	padding        = 4096

	minBlockSize = 4 << 10
	maxBlockSize = 1 << 20

	// none stands for a table that the image does not have.
	none = math.MaxUint64
	// noIndex stands for a fragment or xattr set that an inode does not have.
	noIndex = math.MaxUint32

	// rawBlock marks the size of a data block that is stored uncompressed.
	rawBlock = 1 << 24
)

// Flags of the superblock. Only flagCompressorOptions changes how an image is
// read, the others say how it was made.
const (
	flagAlwaysFragments   = 0x020
	flagDuplicates        = 0x040
	flagExportable        = 0x080
	flagNoXattrs          = 0x200
	flagCompressorOptions = 0x400
)

// Compressors.
const (
	gzipCompressor = 1
	zstdCompressor = 6
)

// Types of inodes. A directory entry always has the basic one, which is the
// extended one minus extended.
const (
	typeDir = iota + 1
	typeFile
	typeSymlink
	typeBlockDev
	typeCharDev
	typeFifo
	typeSocket

	extended = 7
)

// superblock is the first 96 bytes of an image.
type superblock struct {
	Magic       uint32
	Inodes      uint32
	ModTime     uint32
	BlockSize   uint32
	Fragments   uint32
	Compressor  uint16
	BlockLog    uint16
	Flags       uint16
	IDs         uint16
	Major       uint16
	Minor       uint16
	Root        uint64 // reference to the root's inode
	BytesUsed   uint64 // without the padding
	IDTable     uint64
	XattrTable  uint64
	InodeTable  uint64
	DirTable    uint64
	FragTable   uint64
	ExportTable uint64
}

// Write writes tree t to w and returns the size of the image in bytes, a
// multiple of 4096. Every byte up to there is written.
//
// The image is a function of the tree and of the options other than Workers.
// Times outside of 1970 to 2106 become the nearest that can be stored. Whatever
// else the format or the kernel cannot hold is an error that names the path.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, opts Options) (int64, error) {
	if err := opts.complete(); err != nil {
		return 0, err
	}
	l, err := newLayout(t)
	if err != nil {
		return 0, err
	}
	if err := l.dedupe(ctx, opts.Workers); err != nil {
		return 0, err
	}
	l.order()
	comp, err := newCompressor(opts)
	if err != nil {
		return 0, err
	}
	defer comp.close()

	out := &output{w: w, pos: superblockSize}
	out.write(comp.options())
	frags, err := writeData(ctx, out, l.contents, comp, opts)
	if err != nil {
		return 0, err
	}
	sb := superblock{
		Magic: magic, Inodes: uint32(len(l.nodes)), ModTime: opts.ModTime,
		BlockSize: uint32(opts.BlockSize), BlockLog: uint16(bits.TrailingZeros(uint(opts.BlockSize))),
		Fragments: uint32(len(frags)), Compressor: zstdCompressor, IDs: uint16(len(l.ids)), Major: 4,
		Flags: flagAlwaysFragments | flagDuplicates | flagExportable | flagCompressorOptions,
	}
	if err := writeTables(ctx, out, &sb, l, frags, comp); err != nil {
		return 0, err
	}
	sb.BytesUsed = uint64(out.pos)
	out.write(make([]byte, -out.pos&(padding-1)))
	size := out.pos
	head, err := binary.Append(nil, binary.LittleEndian, &sb)
	if err != nil {
		return 0, err
	}
	out.pos = 0
	out.write(head)
	return size, out.err
}

// complete fills in the defaults and refuses what cannot be.
func (o *Options) complete() error {
	if o.BlockSize == 0 {
		o.BlockSize = maxBlockSize
	}
	if o.BlockSize < minBlockSize || o.BlockSize > maxBlockSize || o.BlockSize&(o.BlockSize-1) != 0 {
		return fmt.Errorf("squashfs: block size %d: want a power of two from %d to %d", o.BlockSize, minBlockSize, maxBlockSize)
	}
	if o.Level == 0 {
		o.Level = zstd.SpeedBestCompression
	}
	if o.Level < zstd.SpeedFastest || o.Level > zstd.SpeedBestCompression {
		return fmt.Errorf("squashfs: no zstd level %d: want %d to %d", o.Level, zstd.SpeedFastest, zstd.SpeedBestCompression)
	}
	if o.Workers < 0 {
		return fmt.Errorf("squashfs: %d workers: want 1 or more", o.Workers)
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	return nil
}

// output appends to an image. After the first error it does nothing.
type output struct {
	w   io.WriterAt
	pos int64
	err error
}

func (o *output) write(p []byte) {
	if o.err != nil || len(p) == 0 {
		return
	}
	_, o.err = o.w.WriteAt(p, o.pos)
	o.pos += int64(len(p))
}

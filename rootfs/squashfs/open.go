package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrFormat is wrapped by the errors of Open and of reading contents for an
// image that is damaged or no SquashFS at all.
var ErrFormat = errors.New("not a valid squashfs image")

// Bounds of what Open accepts, beyond those of the format.
const (
	maxPaths = 4 << 20   // names in the tree
	maxTable = 128 << 20 // bytes of a table before compression

	// Nothing makes a metadata block smaller than this, its header included,
	// so a table of n bytes has at most n/minMetadata*8192 before compression.
	minMetadata = 13

	cachedMetadata = 512 // metadata blocks that Open keeps
	cachedBlocks   = 8   // data blocks kept for reading contents
)

// Open returns the tree in the SquashFS 4.0 image of size bytes in r. Names and
// metadata are read now, contents when somebody asks for them, from r. Images
// compressed with zstd or gzip are read, others refused.
//
// The image is not trusted: one that was made to use up memory or time is an
// error. Inodes with equal extended attributes share the map of them.
func Open(r io.ReaderAt, size int64) (*tree.Tree, error) {
	head := make([]byte, superblockSize)
	if n, err := r.ReadAt(head, 0); n < len(head) {
		if err == io.EOF {
			err = ErrFormat
		}
		return nil, fmt.Errorf("squashfs: a superblock of %d bytes, want %d: %w", n, len(head), err)
	}
	img := &image{r: r}
	sb := &img.sb
	if _, err := binary.Decode(head, binary.LittleEndian, sb); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	if err := sb.check(size); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(maxBlockSize))
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	img.zstd = dec
	l := &loader{
		image: img, tree: tree.New(), blocks: map[int64]metadataBlock{},
		inodes: map[uint64]*tree.Inode{}, sets: map[uint32]map[string][]byte{},
		inodeBudget: budget(sb.DirTable - sb.InodeTable),
		dirBudget:   budget(sb.BytesUsed - sb.DirTable),
		xattrBudget: budget(sb.BytesUsed - sb.DirTable),
	}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	return l.tree, nil
}

// budget returns how many bytes may be read from a table of n bytes. Reading
// more means reading something again, which only a hostile image asks for.
func budget(n uint64) int64 { return int64(min((n/minMetadata+1)*metadataSize, maxTable)) }

// check refuses superblocks that cannot be.
func (sb *superblock) check(size int64) error {
	if sb.Magic != magic {
		return fmt.Errorf("magic number %#08x, want %#08x: %w", sb.Magic, uint32(magic), ErrFormat)
	}
	if sb.Major != 4 || sb.Minor != 0 {
		return fmt.Errorf("version %d.%d, want 4.0: %w", sb.Major, sb.Minor, ErrUnsupported)
	}
	if sb.Compressor != gzipCompressor && sb.Compressor != zstdCompressor {
		name := fmt.Sprint(sb.Compressor)
		if names := []string{"none", "gzip", "lzma", "lzo", "xz", "lz4", "zstd"}; int(sb.Compressor) < len(names) {
			name = names[sb.Compressor]
		}
		return fmt.Errorf("compressor %s, want gzip or zstd: %w", name, ErrUnsupported)
	}
	if sb.BlockSize < minBlockSize || sb.BlockSize > maxBlockSize || sb.BlockSize&(sb.BlockSize-1) != 0 ||
		int(sb.BlockLog) != bits.TrailingZeros32(sb.BlockSize) {
		return fmt.Errorf("block size %d, log %d: %w", sb.BlockSize, sb.BlockLog, ErrFormat)
	}
	if size < superblockSize || sb.BytesUsed > uint64(size) {
		return fmt.Errorf("%d bytes of an image of %d: cut off: %w", size, sb.BytesUsed, ErrFormat)
	}
	if sb.InodeTable < superblockSize || sb.InodeTable >= sb.DirTable || sb.DirTable > sb.BytesUsed {
		return fmt.Errorf("inodes at %d, directories at %d in %d bytes: %w", sb.InodeTable, sb.DirTable, sb.BytesUsed, ErrFormat)
	}
	if sb.IDs == 0 {
		return fmt.Errorf("no user and group ids: %w", ErrFormat)
	}
	return nil
}

// image is what contents are read from.
type image struct {
	r    io.ReaderAt
	sb   superblock
	zstd *zstd.Decoder
	data blockCache
}

// bytesAt reads n bytes at pos, which must be within the image.
func (img *image) bytesAt(pos uint64, n int) ([]byte, error) {
	if pos > img.sb.BytesUsed || uint64(n) > img.sb.BytesUsed-pos {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, pos, img.sb.BytesUsed, ErrFormat)
	}
	p := make([]byte, n)
	if got, err := img.r.ReadAt(p, int64(pos)); got < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read at %d: %w", pos, err)
	}
	return p, nil
}

// decompress returns what src holds: at least one byte, at most limit.
func (img *image) decompress(src []byte, limit int) ([]byte, error) {
	var dst []byte
	var err error
	if img.sb.Compressor == zstdCompressor {
		dst, err = img.zstd.DecodeAll(src, make([]byte, 0, limit))
	} else {
		dst, err = inflate(src, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(dst) == 0 || len(dst) > limit {
		return nil, fmt.Errorf("%w: a block of %d bytes, want 1 to %d", ErrFormat, len(dst), limit)
	}
	return dst, nil
}

// metadataBlock is a decompressed metadata block.
type metadataBlock struct {
	data []byte
	next uint64 // position of the block behind it
}

// cursor reads from a table.
type cursor struct {
	*loader
	pos    uint64 // of the metadata block
	off    int    // in it
	budget *int64
}

// read returns the next n bytes.
func (c *cursor) read(n int) ([]byte, error) {
	if *c.budget -= int64(n); *c.budget < 0 {
		return nil, fmt.Errorf("tables that overlap, or are larger than %d bytes: %w", maxTable, ErrFormat)
	}
	var p []byte
	for {
		b, err := c.block(c.pos)
		if err != nil {
			return nil, err
		}
		if c.off > len(b.data) {
			return nil, fmt.Errorf("offset %d in a metadata block of %d: %w", c.off, len(b.data), ErrFormat)
		}
		part := b.data[c.off:min(c.off+n-len(p), len(b.data))]
		c.off += len(part)
		if p == nil && len(part) == n {
			return part, nil
		}
		if p = append(p, part...); len(p) == n {
			return p, nil
		}
		c.pos, c.off = b.next, 0
	}
}

// decode reads a fixed-size structure.
func (c *cursor) decode(v any) error {
	p, err := c.read(binary.Size(v))
	if err == nil {
		_, err = binary.Decode(p, binary.LittleEndian, v)
	}
	return err
}

// block returns the metadata block at pos.
func (l *loader) block(pos uint64) (metadataBlock, error) {
	if b, ok := l.blocks[int64(pos)]; ok {
		return b, nil
	}
	p, err := l.bytesAt(pos, 2)
	if err != nil {
		return metadataBlock{}, err
	}
	header := binary.LittleEndian.Uint16(p)
	n := int(header &^ rawMetadata)
	if n == 0 || n > metadataSize {
		return metadataBlock{}, fmt.Errorf("a metadata block of %d bytes at %d: %w", n, pos, ErrFormat)
	}
	b := metadataBlock{next: pos + 2 + uint64(n)}
	if b.data, err = l.bytesAt(pos+2, n); err != nil {
		return b, err
	}
	if header&rawMetadata == 0 {
		if b.data, err = l.decompress(b.data, metadataSize); err != nil {
			return b, fmt.Errorf("metadata block at %d: %w", pos, err)
		}
	}
	if len(l.blocks) >= cachedMetadata {
		clear(l.blocks)
	}
	l.blocks[int64(pos)] = b
	return b, nil
}

// indexed returns entry i, of n bytes, of a table that is found through the
// list of block positions at list.
func (l *loader) indexed(list uint64, i uint32, n int) ([]byte, error) {
	perBlock := uint32(metadataSize / n)
	if list > l.sb.BytesUsed {
		return nil, fmt.Errorf("a table at %d of %d: %w", list, l.sb.BytesUsed, ErrFormat)
	}
	p, err := l.bytesAt(list+uint64(i/perBlock)*8, 8)
	if err != nil {
		return nil, err
	}
	left := int64(n)
	c := cursor{loader: l, pos: binary.LittleEndian.Uint64(p), off: int(i%perBlock) * n, budget: &left}
	if p, err = c.read(n); err != nil {
		return nil, err
	}
	return bytes.Clone(p), nil
}

package squashfs

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"sync"
)

// stored is the content of a file in an image.
type stored struct {
	*image
	size     int64
	sizes    []uint32    // of the blocks, as in the inode
	starts   []uint64    // position of every startEvery-th block
	fragment storedBlock // that holds what is behind the blocks, if any
	offset   int         // in the fragment
}

// startEvery keeps the positions of blocks small in memory and quick to find.
const startEvery = 64

// append adds a block.
func (s *stored) append(b storedBlock) {
	if len(s.sizes)%startEvery == 0 {
		s.starts = append(s.starts, b.pos)
	}
	s.sizes = append(s.sizes, b.size)
}

// at returns block i.
func (s *stored) at(i int64) storedBlock {
	pos := s.starts[i/startEvery]
	for _, size := range s.sizes[i/startEvery*startEvery : i] {
		pos += uint64(size &^ rawBlock)
	}
	return storedBlock{pos, s.sizes[i]}
}

// storedBlock is a data block or a fragment.
type storedBlock struct {
	pos  uint64
	size uint32 // as in the inode; 0 is a block of zeros
}

// stored checks that a data block is within the image.
func (img *image) stored(pos uint64, size uint32) (storedBlock, error) {
	n := size &^ rawBlock
	if n > img.sb.BlockSize || pos > img.sb.BytesUsed || uint64(n) > img.sb.BytesUsed-pos || n == 0 && size != 0 {
		return storedBlock{}, fmt.Errorf("a block of %#x bytes at %d of %d: %w", size, pos, img.sb.BytesUsed, ErrFormat)
	}
	return storedBlock{pos, size}, nil
}

// Size implements tree.Content.
func (s *stored) Size() int64 { return s.size }

// ReadAt implements tree.Content. It is safe for concurrent use.
func (s *stored) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > s.size-off {
		p, eof = p[:s.size-off], io.EOF
	}
	blockSize := int64(s.sb.BlockSize)
	for n := 0; n < len(p); {
		i := (off + int64(n)) / blockSize
		at := int((off + int64(n)) % blockSize)
		want := int(min(blockSize, s.size-i*blockSize)) // bytes of the file in this block
		part := p[n:min(len(p), n+want-at)]
		b, skip := s.fragment, s.offset
		if i < int64(len(s.sizes)) {
			b, skip = s.at(i), 0
		}
		if b.size == 0 {
			clear(part)
			n += len(part)
			continue
		}
		data, err := s.image.block(b)
		if err != nil {
			return n, fmt.Errorf("squashfs: data block at %d: %w", b.pos, err)
		}
		if len(data) < skip+want {
			return n, fmt.Errorf("squashfs: data block at %d: %d bytes, want %d: %w", b.pos, len(data), skip+want, ErrFormat)
		}
		n += copy(part, data[skip+at:])
	}
	return len(p), eof
}

// block returns the bytes of a data block.
func (img *image) block(b storedBlock) ([]byte, error) {
	if data := img.data.get(b); data != nil {
		return data, nil
	}
	data, err := img.bytesAt(b.pos, int(b.size&^rawBlock))
	if err != nil {
		return nil, err
	}
	if b.size&rawBlock == 0 {
		if data, err = img.decompress(data, int(img.sb.BlockSize)); err != nil {
			return nil, err
		}
	}
	img.data.put(b, data)
	return data, nil
}

// blockCache keeps the last few data blocks, since contents are often read in
// smaller steps.
type blockCache struct {
	mu     sync.Mutex
	keys   [cachedBlocks]storedBlock
	values [cachedBlocks][]byte
	next   int
}

func (c *blockCache) get(b storedBlock) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.keys {
		if k == b {
			return c.values[i]
		}
	}
	return nil
}

func (c *blockCache) put(b storedBlock, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[c.next], c.values[c.next] = b, data
	c.next = (c.next + 1) % cachedBlocks
}

// inflate decompresses a zlib stream of at most limit bytes.
func inflate(src []byte, limit int) ([]byte, error) {
	z, err := zlib.NewReader(bytes.NewReader(src))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, int64(limit)+1))
}

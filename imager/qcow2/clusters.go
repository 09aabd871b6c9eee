package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
)

// cacheSize is the number of bytes of decompressed clusters that are kept for
// one image, for readers that read less than a cluster at a time.
const cacheSize = 4 << 20

// image is what the sources of one image share.
type image struct {
	geometry
	version     uint32
	src         extent.Source
	compression Compression
	cache       cache
	inflaters   sync.Pool // of io.ReadCloser
	zstd        sync.Pool // of *zstd.Decoder
}

// clusters is a Source: clusters of the disk, none of them a hole, that lie
// anywhere in the file.
type clusters struct {
	*image
	entries []uint64
	size    int64
}

func (c *clusters) Size() int64 { return c.size }

func (c *clusters) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > c.size-off {
		p, eof = p[:c.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		within := pos & (c.clusterSize() - 1)
		part := p[done:min(len(p), done+int(c.clusterSize()-within))]
		entry := c.entries[pos>>c.clusterBits]
		var err error
		if entry&flagPacked != 0 {
			err = c.readPacked(part, entry, within)
		} else {
			err = c.readStandard(part, int64(entry&offsetMask)+within)
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, eof
}

// readStandard reads from the file, behind the end of which are zeros.
func (i *image) readStandard(p []byte, at int64) error {
	n := max(0, min(int64(len(p)), i.src.Size()-at))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return readAt(i.src, p[:n], at)
}

// readPacked reads from a compressed cluster.
func (i *image) readPacked(p []byte, entry uint64, within int64) error {
	if int64(len(p)) == i.clusterSize() {
		return i.unpack(p, entry)
	}
	content, ok := i.cache.get(entry)
	if !ok {
		content = make([]byte, i.clusterSize())
		if err := i.unpack(content, entry); err != nil {
			return err
		}
		i.cache.put(entry, content)
	}
	copy(p, content[within:])
	return nil
}

// packedPlace returns the offset of a compressed cluster and the number of bytes
// to the end of its last sector.
func (i *image) packedPlace(entry uint64) (at, n int64) {
	shift := i.packedShift()
	entry &^= flagPacked | flagCopied
	at = int64(entry & (1<<shift - 1))
	more := int64(entry >> shift)
	return at, (more+1)*sector - at%sector
}

// unpack decompresses a cluster into p. The data ends somewhere in its last
// sector; what follows belongs to others.
func (i *image) unpack(p []byte, entry uint64) error {
	at, n := i.packedPlace(entry)
	packed := make([]byte, min(n, i.src.Size()-at))
	err := readAt(i.src, packed, at)
	if err == nil {
		switch i.compression {
		case Zlib:
			err = i.inflate(p, packed)
		default:
			err = i.unzstd(p, packed)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %v data at %d: %w", ErrCorrupt, i.compression, at, err)
	}
	return nil
}

func (i *image) inflate(p, packed []byte) error {
	r, ok := i.inflaters.Get().(io.ReadCloser)
	if !ok {
		r = flate.NewReader(nil)
	}
	defer i.inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, p)
	return err
}

func (i *image) unzstd(p, packed []byte) error {
	frame, err := firstFrame(packed)
	if err != nil {
		return err
	}
	d, ok := i.zstd.Get().(*zstd.Decoder)
	if !ok {
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return err
		}
	}
	defer i.zstd.Put(d)
	out, err := d.DecodeAll(frame, p[:0:len(p)])
	if err != nil {
		return err
	}
	if copy(p, out) != len(p) {
		return fmt.Errorf("%d bytes, want %d", len(out), len(p))
	}
	return nil
}

// firstFrame returns the Zstandard frame that p begins with. A frame is a
// header, then blocks, each behind 3 bytes (little-endian) with its length,
// and a checksum of 4 bytes if the header says so: RFC 8878, section 3.1.1.
func firstFrame(p []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(p); err != nil {
		return nil, err
	}
	if h.Skippable {
		return nil, zstd.ErrMagicMismatch
	}
	end := h.HeaderSize
	for last := false; !last; {
		if end+3 > len(p) {
			return nil, io.ErrUnexpectedEOF
		}
		block := uint32(p[end]) | uint32(binary.LittleEndian.Uint16(p[end+1:]))<<8
		last = block&1 != 0
		end += 3
		if block>>1&3 == 1 { // one byte, repeated
			end++
		} else {
			end += int(block >> 3)
		}
	}
	if h.HasCheckSum {
		end += 4
	}
	if end > len(p) {
		return nil, io.ErrUnexpectedEOF
	}
	return p[:end], nil
}

// cache keeps the clusters that were used last.
type cache struct {
	mu    sync.Mutex
	limit int
	items []cached // the one used last is last
}

type cached struct {
	entry   uint64
	content []byte // not changed any more
}

func (c *cache) get(entry uint64) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.items) - 1; i >= 0; i-- {
		if item := c.items[i]; item.entry == entry {
			c.items = append(append(c.items[:i], c.items[i+1:]...), item)
			return item.content, true
		}
	}
	return nil, false
}

func (c *cache) put(entry uint64, content []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.items) >= c.limit {
		c.items = append(c.items[:0], c.items[1:]...)
	}
	c.items = append(c.items, cached{entry, content})
}

package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/kilnhq/kiln/imager/extent"
)

// cacheSize is the number of bytes of decompressed grains that are kept for one
// image, for readers that read less than a grain at a time.
const cacheSize = 4 << 20

// sparse is what the sources of one extent share.
type sparse struct {
	src       extent.Source
	grain     int64 // bytes
	packed    bool
	cache     cache
	inflaters sync.Pool // of io.ReadCloser
}

// grains is a Source: grains of the disk in a row, none of them a hole, that lie
// anywhere in the file.
type grains struct {
	*sparse
	first   int64
	entries []uint32
	size    int64
}

func (g *grains) Size() int64 { return g.size }

func (g *grains) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= g.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > g.size-off {
		p, eof = p[:g.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		i, within := pos/g.grain, pos%g.grain
		part := p[done:min(int64(len(p)), int64(done)+g.grain-within)]
		var err error
		if g.packed {
			err = g.readPacked(part, i, within)
		} else {
			err = readAt(g.src, part, int64(g.entries[i])*sector+within)
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, eof
}

// readPacked reads from the i-th grain.
func (g *grains) readPacked(p []byte, i, within int64) error {
	if int64(len(p)) == g.grain {
		return g.unpack(p, i)
	}
	content, ok := g.cache.get(g.first + i)
	if !ok {
		// The last grain of a disk may have been written short.
		content = make([]byte, min(g.grain, g.size-i*g.grain))
		if err := g.unpack(content, i); err != nil {
			return err
		}
		g.cache.put(g.first+i, content)
	}
	copy(p, content[within:])
	return nil
}

// unpack decompresses the i-th grain into p, which is as long as the grain or
// what of it is on the disk.
func (g *grains) unpack(p []byte, i int64) error {
	at := int64(g.entries[i]) * sector
	packed, err := g.readMarked(i, at)
	if err == nil {
		err = g.inflate(p, packed)
	}
	if err != nil {
		return fmt.Errorf("%w: grain %d at %d: %w", ErrCorrupt, g.first+i, at, err)
	}
	return nil
}

// readMarked returns the compressed data behind the marker at a position.
func (g *grains) readMarked(i, at int64) ([]byte, error) {
	// Mostly the next grain follows, which tells the length without a look at the
	// marker.
	guess := int64(sector)
	if i+1 < int64(len(g.entries)) {
		if next := int64(g.entries[i+1]) * sector; next > at && next-at <= g.grain+4*sector {
			guess = next - at
		}
	}
	b := make([]byte, min(guess, g.src.Size()-at))
	if err := readAt(g.src, b, at); err != nil {
		return nil, err
	}
	lba, n := binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint32(b[8:]))
	if want := uint64((g.first + i) * g.grain / sector); lba != want {
		return nil, fmt.Errorf("its marker is that of sector %d, want %d", lba, want)
	}
	if n > 2*g.grain || markerSize+n > g.src.Size()-at {
		return nil, fmt.Errorf("its marker has a length of %d", n)
	}
	if have := int64(len(b)); markerSize+n > have {
		b = append(b, make([]byte, markerSize+n-have)...)
		if err := readAt(g.src, b[have:], at+have); err != nil {
			return nil, err
		}
	}
	return b[markerSize : markerSize+n], nil
}

func (s *sparse) inflate(p, packed []byte) error {
	r, ok := s.inflaters.Get().(io.ReadCloser)
	var err error
	if ok {
		err = r.(zlib.Resetter).Reset(bytes.NewReader(packed), nil)
	} else {
		r, err = zlib.NewReader(bytes.NewReader(packed))
	}
	if err != nil {
		return err
	}
	defer s.inflaters.Put(r)
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	// The checksum is behind what is left: nothing, or what is behind the end of
	// the disk.
	n, err := io.Copy(io.Discard, io.LimitReader(r, s.grain-int64(len(p))+1))
	if err == nil && int64(len(p))+n > s.grain {
		err = errors.New("more than a grain")
	}
	return err
}

// cache keeps the grains that were used last.
type cache struct {
	mu    sync.Mutex
	limit int
	items []cached // the one used last is last
}

type cached struct {
	grain   int64
	content []byte // not changed any more
}

func (c *cache) get(grain int64) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.items) - 1; i >= 0; i-- {
		if item := c.items[i]; item.grain == grain {
			c.items = append(append(c.items[:i], c.items[i+1:]...), item)
			return item.content, true
		}
	}
	return nil, false
}

func (c *cache) put(grain int64, content []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.items) >= c.limit {
		c.items = append(c.items[:0], c.items[1:]...)
	}
	c.items = append(c.items, cached{grain, content})
}

package module

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	streamxz "github.com/mikelolasagasti/xz"

	"github.com/kilnhq/kiln/kernel/module/xz"
)

// maxWindow bounds the memory in bytes a decompressor may take for its window;
// xz -9 takes 64 MiB. Kernel modules are compressed with 1 or 2 MiB.
const maxWindow = 64 << 20

// Magic numbers of the compressions the kernel's build knows.
const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// Decompress returns the content of a module file: gzip, xz and zstd are known
// by their magic number, anything else is returned as it is. path stands for
// the file in errors. It fails with ErrLimit if the content has more than
// limit bytes.
func Decompress(path string, data []byte, limit int64) ([]byte, error) {
	out, err := new(decompressor).decompress(data, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// decompressor decompresses one file after another into the same buffer.
type decompressor struct {
	out      []byte
	xz       *xz.Decoder
	streamXZ *streamxz.Reader // knows more filters, and is slower
	zstd     *zstd.Decoder
	gzip     *gzip.Reader
}

// decompress returns data itself if it is not compressed, otherwise a buffer
// that holds until the next call.
func (d *decompressor) decompress(data []byte, limit int64) ([]byte, error) {
	if bytes.HasPrefix(data, []byte(xz.Magic)) {
		out, err := d.decompressXZ(data, limit)
		if !errors.Is(err, xz.ErrUnsupported) {
			return out, err
		}
	}
	name, r, err := d.open(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if r == nil {
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("%w: found %d bytes, the limit is %d", ErrLimit, len(data), limit)
		}
		return data, nil
	}
	d.reserve(sizeHint(name, data), limit)
	out := d.out[:0]
	for {
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		d.out = out
		if int64(len(out)) > limit {
			return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrLimit, limit)
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: after %d bytes: %w", name, len(out), err)
		}
	}
}

// reserve makes room for a content of size bytes, unless that is too much.
func (d *decompressor) reserve(size, limit int64) {
	if size <= limit && int64(cap(d.out)) <= size {
		d.out = make([]byte, 0, size+1) // one more, to see the end
	}
}

func (d *decompressor) decompressXZ(data []byte, limit int64) ([]byte, error) {
	if d.xz == nil {
		d.xz = new(xz.Decoder)
	}
	d.reserve(sizeHint("xz", data), limit)
	out, err := d.xz.Decode(d.out, data, limit)
	if errors.Is(err, xz.ErrLimit) {
		return nil, fmt.Errorf("xz: %w: more than %d bytes", ErrLimit, limit)
	}
	if err != nil {
		return nil, err
	}
	d.out = out
	return out, nil
}

// open returns a reader of the decompressed content, none if data is not
// compressed, and the name of the compression.
func (d *decompressor) open(data []byte) (name string, r io.Reader, err error) {
	src := bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(data, []byte(xz.Magic)):
		if d.streamXZ == nil {
			d.streamXZ, err = streamxz.NewReader(src, maxWindow)
		} else {
			err = d.streamXZ.Reset(src)
		}
		return "xz", d.streamXZ, err
	case bytes.HasPrefix(data, []byte(zstdMagic)):
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
				zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return "zstd", nil, err
			}
		}
		return "zstd", d.zstd, d.zstd.Reset(src)
	case bytes.HasPrefix(data, []byte(gzipMagic)):
		if d.gzip == nil {
			d.gzip, err = gzip.NewReader(src)
		} else {
			err = d.gzip.Reset(src)
		}
		return "gzip", d.gzip, err
	}
	return "", nil, nil
}

// sizeHint guesses how many bytes data decompresses to, at least 4 KiB and
// never more than 1,000 times its size, so that a small file that lies does
// not make us allocate much.
func sizeHint(name string, data []byte) int64 {
	hint := int64(len(data)) * 6
	if n := len(data); name == "xz" && n >= 12 {
		// The stream footer says how long the index is before it.
		back := (int(binary.LittleEndian.Uint32(data[n-8:])) + 1) * 4
		if start := n - 12 - back; back > 0 && start > 0 {
			hint = xzIndexSize(data[start:n-12], hint)
		}
	}
	return max(4096, min(hint, int64(len(data))*1000))
}

// xzIndexSize returns the sum of the uncompressed sizes in an xz index (xz file
// format 1.1.0, 4), or otherwise if it makes no sense.
func xzIndexSize(index []byte, otherwise int64) int64 {
	if len(index) == 0 || index[0] != 0 {
		return otherwise
	}
	index = index[1:]
	next := func() uint64 {
		v, n := binary.Uvarint(index)
		if n <= 0 {
			index = nil
			return 0
		}
		index = index[n:]
		return v
	}
	records, total := next(), int64(0)
	for ; records > 0 && len(index) > 0; records-- {
		next() // unpadded size of the block
		total += int64(min(next(), 1<<40))
	}
	if total <= 0 {
		return otherwise
	}
	return total
}

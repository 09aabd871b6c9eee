package qcow2

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// level is the effort of deflate. Above 6 it takes many times as long for less
// than 1 %.
const level = 6

// compressor compresses clusters, one at a time. What it makes of a cluster
// does not depend on what it compressed before.
//
// Both encoders give up early on data that is compressed already: they skip
// ahead the faster the longer they find nothing, and pass over it at more than
// 1 GB/s. So there is no need for another test before.
type compressor interface {
	// compress appends the compressed cluster to dst.
	compress(dst, cluster []byte) ([]byte, error)
}

func newCompressor(c Compression, clusterSize int64) (compressor, error) {
	switch c {
	case Zlib:
		w, err := flate.NewWriter(nil, level)
		return &deflater{w}, err
	case Zstd:
		// Better levels gain 2 or 3 % for half as much time again. The frame
		// says its size, and needs no window larger than a cluster.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(int(max(clusterSize, zstd.MinWindowSize))), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
		return zstandard{e}, err
	}
	return nil, fmt.Errorf("%w: %v, want zlib or zstd", ErrInvalid, c)
}

type deflater struct{ w *flate.Writer }

func (d *deflater) compress(dst, cluster []byte) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	d.w.Reset(out)
	if _, err := d.w.Write(cluster); err != nil {
		return nil, err
	}
	err := d.w.Close()
	return out.Bytes(), err
}

type zstandard struct{ e *zstd.Encoder }

func (z zstandard) compress(dst, cluster []byte) ([]byte, error) {
	return z.e.EncodeAll(cluster, dst), nil
}

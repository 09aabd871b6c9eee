package squashfs

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// compressor makes zstd frames that the kernel can read: each with its size in
// the header and a window no larger than a block. It is safe for concurrent use.
type compressor struct {
	level zstd.EncoderLevel
	enc   *zstd.Encoder
	probe *zstd.Encoder // fast, to recognise what does not shrink
}

func newCompressor(opts Options) (*compressor, error) {
	c := &compressor{level: opts.Level}
	var err error
	if c.enc, err = newEncoder(opts, opts.Level); err != nil {
		return nil, err
	}
	if c.probe, err = newEncoder(opts, zstd.SpeedFastest); err != nil {
		return nil, err
	}
	return c, nil
}

func newEncoder(opts Options, level zstd.EncoderLevel) (*zstd.Encoder, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(opts.Workers),
		zstd.WithWindowSize(opts.BlockSize),
		zstd.WithSingleSegment(true),
		zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("squashfs: %w", err)
	}
	return enc, nil
}

func (c *compressor) close() {
	c.enc.Close()
	c.probe.Close()
}

// options returns the compressor options: one metadata block, uncompressed,
// with the level on the scale of the zstd program. Readers do not need it, but
// take level 15 for granted without.
func (c *compressor) options() []byte {
	level := map[zstd.EncoderLevel]uint32{
		zstd.SpeedFastest: 1, zstd.SpeedDefault: 3, zstd.SpeedBetterCompression: 7, zstd.SpeedBestCompression: 11,
	}[c.level]
	b := binary.LittleEndian.AppendUint16(nil, rawMetadata|4)
	return binary.LittleEndian.AppendUint32(b, level)
}

// data compresses a data block into dst's memory. It returns nil if src does
// not shrink, which it finds out cheaply.
func (c *compressor) data(dst, src []byte) []byte {
	if looksRandom(src) {
		p := c.probe.EncodeAll(src, dst[:0])
		if len(p) > len(src)-len(src)/64 {
			return nil
		}
	}
	return c.metadata(dst, src)
}

// metadata is data without the search for what does not shrink.
func (c *compressor) metadata(dst, src []byte) []byte {
	p := c.enc.EncodeAll(src, dst[:0])
	if len(p) >= len(src) {
		return nil
	}
	return p
}

// looksRandom says whether the bytes in p are distributed almost evenly, as in
// compressed or encrypted data. The sum of the squared counts is n²/256 if they
// are even, and larger by about n if they are random; one percent is granted on
// top. Integers only, so that every machine comes to the same result.
func looksRandom(p []byte) bool {
	var counts [256]uint32
	for _, b := range p {
		counts[b]++
	}
	var sum uint64
	for _, c := range counts {
		sum += uint64(c) * uint64(c)
	}
	n := uint64(len(p))
	return sum <= (n*n/256)*101/100+2*n
}

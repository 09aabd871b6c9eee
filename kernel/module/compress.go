package module

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compress returns a module compressed as a kernel with CONFIG_MODULE_DECOMPRESS
// can undo it, and the suffix that its name gets. The format is "gzip", "xz" or
// "zstd". The kernel's xz decoder knows no other checksum than CRC32.
func Compress(format string, data []byte) (out []byte, suffix string, err error) {
	var buf bytes.Buffer
	var w io.WriteCloser
	switch format {
	case "gzip":
		suffix = ".gz"
		w, err = gzip.NewWriterLevel(&buf, gzip.BestCompression)
	case "xz":
		suffix = ".xz"
		w, err = xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(&buf)
	case "zstd":
		suffix = ".zst"
		w, err = zstd.NewWriter(&buf, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	default:
		return nil, "", fmt.Errorf("compression %q of modules, want gzip, xz or zstd", format)
	}
	if err != nil {
		return nil, "", err
	}
	if _, err := w.Write(data); err != nil {
		return nil, "", err
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	return buf.Bytes(), suffix, nil
}

package layers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ErrDamaged is wrapped by the errors of Verify for a layer whose content is
// not what the list says.
var ErrDamaged = errors.New("layer is damaged")

// minTail is from how many zero bytes at the end on Verify speaks of them. A
// squashfs image is padded with fewer.
const minTail = 64 << 10

// Verify reads the layer from r to its end and compares size and digest. When
// the kernel could not unpack all of a file it leaves the rest of it zero; the
// error says so.
func (y Layer) Verify(r io.Reader) error {
	h := sha256.New()
	var tail zeros
	// A buffer of a mebibyte keeps the number of calls small; one byte too many
	// is enough to know that the layer is too long.
	n, err := io.CopyBuffer(io.MultiWriter(h, &tail), io.LimitReader(r, y.Size+1), make([]byte, 1<<20))
	if err != nil {
		return fmt.Errorf("%s (%s %s): %w", y.Path, y.Kind, y.Name, err)
	}
	var found, want string
	switch sum := hex.EncodeToString(h.Sum(nil)); {
	case n > y.Size:
		found, want = fmt.Sprintf("more than %d bytes", y.Size), fmt.Sprintf("%d", y.Size)
	case n < y.Size:
		found, want = fmt.Sprintf("%d bytes", n), fmt.Sprintf("%d", y.Size)
	case sum == y.SHA256:
		return nil
	case tail >= minTail:
		found, want = fmt.Sprintf("only zeros after the first %d of %d bytes, sha256 %s", n-int64(tail), n, sum), y.SHA256
	default:
		found, want = "sha256 "+sum, y.SHA256
	}
	return fmt.Errorf("%s (%s %s): %w: found %s, want %s", y.Path, y.Kind, y.Name, ErrDamaged, found, want)
}

// zeros counts the zero bytes at the end of what is written to it.
type zeros int64

func (z *zeros) Write(p []byte) (int, error) {
	kept := len(bytes.TrimRight(p, "\x00"))
	if kept > 0 {
		*z = 0
	}
	*z += zeros(len(p) - kept)
	return len(p), nil
}

package layers

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ErrDamaged is wrapped by the errors of Verify for a layer whose content is
// not what the list says.
var ErrDamaged = errors.New("layer is damaged")

// Verify reads the layer from r to its end and compares size and digest.
func (y Layer) Verify(r io.Reader) error {
	h := sha256.New()
	// A buffer of a mebibyte keeps the number of calls small; one byte too many
	// is enough to know that the layer is too long.
	n, err := io.CopyBuffer(h, io.LimitReader(r, y.Size+1), make([]byte, 1<<20))
	switch {
	case err != nil:
		return fmt.Errorf("%s (%s %s): %w", y.Path, y.Kind, y.Name, err)
	case n > y.Size:
		return fmt.Errorf("%s (%s %s): %w: found more than %d bytes, want %d", y.Path, y.Kind, y.Name, ErrDamaged, y.Size, y.Size)
	case n < y.Size:
		return fmt.Errorf("%s (%s %s): %w: found %d bytes, want %d", y.Path, y.Kind, y.Name, ErrDamaged, n, y.Size)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != y.SHA256 {
		return fmt.Errorf("%s (%s %s): %w: found sha256 %s, want %s", y.Path, y.Kind, y.Name, ErrDamaged, sum, y.SHA256)
	}
	return nil
}

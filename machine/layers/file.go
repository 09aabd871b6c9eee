package layers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/verity"
)

// File is the name of the file with the layers, in the directory of a slot on
// BOOT.
const File = "layers"

// Verity is what proves a layer that is on a disk. The layer begins at Offset of
// the file, is filled up with zeros to whole blocks, and its hash tree follows.
type Verity struct {
	Offset int64  `json:"offset"` // bytes, a multiple of verity.BlockSize
	Salt   string `json:"salt"`   // lower-case hexadecimal
	Root   string `json:"root"`   // hash, lower-case hexadecimal
}

// ErrOther is wrapped by the error of Match for the file of another system.
var ErrOther = errors.New("not the layers of this system")

// OnBoot says whether the layers are in a file on BOOT.
func (l *List) OnBoot() bool { return len(l.Layers) > 0 && l.Layers[0].Verity != nil }

// FileSize returns the size in bytes of the file with the layers; 0 if they are
// in the initramfs.
func (l *List) FileSize() int64 {
	if !l.OnBoot() {
		return 0
	}
	_, end := l.Layers[len(l.Layers)-1].Span()
	return end
}

// Blocks returns the number of blocks of the layer, without its hash tree.
func (y Layer) Blocks() int64 { return (y.Size + verity.BlockSize - 1) / verity.BlockSize }

// Span returns where in the file the layer and its hash tree are, in bytes.
func (y Layer) Span() (start, end int64) {
	tree, _ := verity.Size(y.Size) // a list that is valid has no others
	return y.Verity.Offset, y.Verity.Offset + y.Blocks()*verity.BlockSize + tree
}

// Keys returns salt and root hash of the layer's hash tree.
func (y Layer) Keys() (salt []byte, root [sha256.Size]byte) {
	salt, _ = hex.DecodeString(y.Verity.Salt)
	b, _ := hex.DecodeString(y.Verity.Root)
	copy(root[:], b)
	return salt, root
}

// validateFile wants all layers in the file or none, one behind the other.
func (l *List) validateFile() error {
	end := int64(0)
	for i, y := range l.Layers {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("%s: %w: layer %d: %s", Name, ErrInvalid, i, fmt.Sprintf(format, args...))
		}
		if (y.Verity != nil) != l.OnBoot() {
			return bad("some layers are in the initramfs, others are not")
		}
		if y.Verity == nil {
			continue
		}
		if y.Size > verity.MaxSize {
			return bad("size %d", y.Size)
		}
		if y.Verity.Offset != end {
			return bad("at %d of the file, want %d", y.Verity.Offset, end)
		}
		if salt, err := hex.DecodeString(y.Verity.Salt); err != nil || len(salt) > verity.MaxSalt {
			return bad("bad salt %q", y.Verity.Salt)
		}
		if root, err := hex.DecodeString(y.Verity.Root); err != nil || len(root) != sha256.Size {
			return bad("bad root hash %q", y.Verity.Root)
		}
		_, end = y.Span()
	}
	return nil
}

// Match says whether the file of size bytes in r is that of the list, as far as
// can be told without reading all of it: the first block of each hash tree, from
// which everything follows. The error for another one is ErrOther.
func (l *List) Match(r io.ReaderAt, size int64) error {
	if want := l.FileSize(); size != want {
		return fmt.Errorf("%w: %d bytes, want %d", ErrOther, size, want)
	}
	for _, y := range l.Layers {
		start, end := y.Span()
		block := make([]byte, verity.BlockSize)
		at := start + y.Blocks()*verity.BlockSize
		if at == end { // a single block needs no tree
			at = start
		}
		if _, err := r.ReadAt(block, at); err != nil && err != io.EOF {
			return err
		}
		salt, root := y.Keys()
		if sum := sha256.Sum256(append(salt, block...)); sum != root {
			return fmt.Errorf("%w: %s %s has the root hash %x, want %x", ErrOther, y.Kind, y.Name, sum, root)
		}
	}
	return nil
}

// Content returns the layer in the file.
func (y Layer) Content(file extent.Source) (extent.Source, error) {
	start, end := y.Span()
	if end > file.Size() {
		return nil, fmt.Errorf("%s (%s %s): %w: the file ends at %d, want %d", y.Path, y.Kind, y.Name, ErrDamaged, file.Size(), end)
	}
	return extent.Section(file, start, y.Size)
}

// VerifyTree reads the layer in the file and its hash tree. The error for what
// does not match is ErrDamaged, and a *verity.DamagedError with the block.
func (y Layer) VerifyTree(ctx context.Context, file extent.Source) error {
	data, err := y.Content(file)
	if err != nil {
		return err
	}
	start, end := y.Span()
	at := start + y.Blocks()*verity.BlockSize
	tree, err := extent.Section(file, at, end-at)
	if err != nil {
		return err
	}
	salt, root := y.Keys()
	err = verity.Verify(ctx, data, tree, salt, root)
	var damaged *verity.DamagedError
	if errors.As(err, &damaged) {
		return fmt.Errorf("%s (%s %s) at %d: %w: %w", y.Path, y.Kind, y.Name, start, ErrDamaged, err)
	}
	return err
}

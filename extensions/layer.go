package extensions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// layerFormat changes whenever the same tree gives other squashfs bytes, so
// that no stale layer is taken out of a cache.
const layerFormat = "kiln squashfs layer 1"

// Layer returns t as a squashfs image, compressed now or at an earlier time.
// The second result says whether it came out of the cache.
func Layer(ctx context.Context, c cache.Dir, t *tree.Tree) (cache.Entry, bool, error) {
	sum, err := t.Digest()
	if err != nil {
		return cache.Entry{}, false, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%x\n", layerFormat, sum)
	return c.Get(ctx, hex.EncodeToString(h.Sum(nil)), func(ctx context.Context, f *os.File) error {
		_, err := squashfs.Write(ctx, f, t, squashfs.Options{})
		return err
	})
}

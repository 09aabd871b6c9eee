package base

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
)

// Verify reads all parts of the base and compares them with their digests.
func (b *Base) Verify(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, p := range b.parts {
		group.Go(func() error { return p.verify(ctx) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// verify reads the part and compares its content with its digest.
func (p Part) verify(ctx context.Context) error {
	h := sha256.New()
	r := extent.Reader(p.Content)
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if err := compare(h.Sum(nil), p.SHA256); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

func verify(data []byte, want v1.Hash) error {
	sum := sha256.Sum256(data)
	return compare(sum[:], want.Hex)
}

func compare(sum []byte, want string) error {
	if got := hex.EncodeToString(sum); got != want {
		return fmt.Errorf("%w: content is sha256:%s, want sha256:%s; the base is damaged, build or copy it again", ErrFormat, got, want)
	}
	return nil
}

package base

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
)

// Verify reads all parts of the base and compares them with their digests.
func (b *Base) Verify(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, p := range b.parts {
		group.Go(func() error { return p.compare(ctx, p.Content) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	return nil
}

// compare compares what was read, or is still to be, with the part's digest.
func (p Part) compare(ctx context.Context, content extent.Source) error {
	if err := ocilayout.Verify(ctx, content, v1.Hash{Algorithm: "sha256", Hex: p.SHA256}); err != nil {
		return fmt.Errorf("%s: %w", p.Name, layoutError(err))
	}
	return nil
}

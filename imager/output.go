package imager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/profiles"
)

// ErrOutput is wrapped by errors of writing an image.
var ErrOutput = errors.New("cannot write the image")

// WriteFile writes the disk in the given format to a file, which is there whole
// or not at all. progress, which may be nil, is told of every n bytes of the disk
// that are dealt with.
//
// While it writes it checks the base against its digests: a node would refuse
// damaged layers, but firmware may not refuse a damaged kernel.
func (i *Image) WriteFile(ctx context.Context, path, format string, progress func(n int64)) error {
	if err := checkFormat(format); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	defer f.Close()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.base.Verify(gctx) })
	group.Go(func() error {
		var err error
		if format == "raw" {
			err = extent.WriteSparse(gctx, f.File, i.Disk, progress)
		} else {
			err = i.stream(gctx, f, format, progress)
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
	}
	return nil
}

// WriteTo streams the disk in the given format, after it has checked the base.
func (i *Image) WriteTo(ctx context.Context, w io.Writer, format string, progress func(n int64)) error {
	if err := checkFormat(format); err != nil {
		return err
	}
	if err := i.base.Verify(ctx); err != nil {
		return err
	}
	if err := i.stream(ctx, w, format, progress); err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	return nil
}

func (i *Image) stream(ctx context.Context, w io.Writer, format string, progress func(n int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	if format == "raw" {
		_, err := i.Disk.WriteTo(&observer{ctx, w, progress})
		return err
	}
	// The payload is compressed already, so a fast level finds all there is:
	// the holes. The concurrency is fixed so that the bytes are.
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return err
	}
	_, err = i.Disk.WriteTo(&observer{ctx, z, progress})
	return errors.Join(err, z.Close())
}

func checkFormat(format string) error {
	if !slices.Contains(profiles.Formats(), format) {
		return fmt.Errorf("output format %q%s", format, spelling.Hint(format, profiles.Formats()))
	}
	return nil
}

// observer passes writes on, tells of them, and stops when the context ends.
type observer struct {
	ctx      context.Context
	w        io.Writer
	progress func(int64)
}

func (o *observer) Write(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := o.w.Write(p)
	o.progress(int64(n))
	return n, err
}

// Size is the number of bytes that WriteFile tells progress of in all.
func (i *Image) Size(format string, file bool) int64 {
	if format == "raw" && file {
		return i.Disk.Allocated()
	}
	return i.Disk.Size()
}

package imager

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
)

// ErrOutput is wrapped by errors of writing an image.
var ErrOutput = errors.New("cannot write the image")

// WriteFile writes the image in the given format to a file, or to a directory if
// the format is several files, which is there whole or not at all. progress, which may be nil, is told of every n bytes that are
// dealt with.
//
// While it writes it checks the base against its digests: a node would refuse
// damaged layers, but firmware may not refuse a damaged kernel.
func (i *Image) WriteFile(ctx context.Context, path, format string, progress func(n int64)) error {
	form, err := formOf(format)
	if err != nil {
		return err
	}
	if form.files != nil {
		if err := i.request.Base.Verify(ctx); err != nil {
			return err
		}
		if err := writeTree(ctx, path, form.files(i), progress); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
		}
		return nil
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	defer f.Close()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.request.Base.Verify(gctx) })
	group.Go(func() error {
		err := func() error {
			if form.layout == nil {
				return form.write(gctx, i, f.File, observe(progress))
			}
			m, err := form.layout(i)
			if err != nil {
				return err
			}
			return extent.WriteSparse(gctx, f.File, m, progress)
		}()
		if err == nil {
			err = f.Sync()
		}
		if err != nil && !errors.Is(err, ErrRefused) {
			return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
	}
	return nil
}

// WriteTo streams the image in the given format, after it has checked the base.
func (i *Image) WriteTo(ctx context.Context, w io.Writer, format string, progress func(n int64)) error {
	form, err := formOf(format)
	if err != nil {
		return err
	}
	if err := i.request.Base.Verify(ctx); err != nil {
		return err
	}
	stream := form.write
	if form.files != nil {
		stream = func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			return tarTree(&observer{ctx, w, progress}, form.files(i), i.request.Epoch)
		}
	}
	if form.layout != nil {
		stream = func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			m, err := form.layout(i)
			if err != nil {
				return err
			}
			_, err = m.WriteTo(&observer{ctx, w, progress})
			return err
		}
	}
	// Hidden behind the interface, so that nobody takes it for a file to seek in.
	if err := stream(ctx, i, struct{ io.Writer }{w}, observe(progress)); err != nil {
		if errors.Is(err, ErrRefused) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	return nil
}

func observe(progress func(int64)) func(int64) {
	if progress == nil {
		return func(int64) {}
	}
	return progress
}

// Size is the number of bytes that WriteFile, or else WriteTo, tells progress of
// in all.
func (i *Image) Size(format string, file bool) int64 {
	form, err := formOf(format)
	if err == nil && form.files != nil {
		var n int64
		for _, src := range form.files(i) {
			n += src.Size()
		}
		return n
	}
	if err != nil || form.layout == nil {
		return i.Disk.Size()
	}
	m, err := form.layout(i)
	if err != nil {
		return 0
	}
	if file {
		return m.Allocated()
	}
	return m.Size()
}

package imager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/profiles"
)

// ErrOutput is wrapped by errors of writing an image.
var ErrOutput = errors.New("cannot write the image")

// WriteFile writes disk in the given format to a file, which is there whole or
// not at all. progress, which may be nil, is told of every n bytes of the disk
// that are dealt with.
func WriteFile(ctx context.Context, path, format string, disk *extent.Map, progress func(n int64)) error {
	if err := checkFormat(format); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOutput, err)
	}
	defer f.Close()
	if format == "raw" {
		err = extent.WriteSparse(ctx, f.File, disk, progress)
	} else {
		err = WriteTo(ctx, f, format, disk, progress)
	}
	if err == nil {
		err = f.Commit()
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrOutput, filepath.Base(path), err)
	}
	return nil
}

// WriteTo streams disk in the given format.
func WriteTo(ctx context.Context, w io.Writer, format string, disk *extent.Map, progress func(n int64)) error {
	if err := checkFormat(format); err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	if format == "raw" {
		_, err := disk.WriteTo(&observer{ctx, w, progress})
		return err
	}
	// The payload is compressed already, so a fast level finds all there is:
	// the holes. The concurrency is fixed so that the bytes are.
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return err
	}
	_, err = disk.WriteTo(&observer{ctx, z, progress})
	return errors.Join(err, z.Close())
}

func checkFormat(format string) error {
	if !slices.Contains(profiles.Formats(), format) {
		return fmt.Errorf("output format %q%s", format, strictyaml.Suggest(format, profiles.Formats()))
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

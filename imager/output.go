package imager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
)

// ErrOutput is wrapped by errors of writing an image.
var ErrOutput = errors.New("cannot write the image")

// WriteFile writes the image in the given format to a file, or to a directory if
// the format is several files, which is there whole or not at all. If digest is
// set the artifact has the digests of its files. progress, which may be nil, is
// told of every n bytes that are dealt with.
//
// While it writes it checks the base against its digests: a node would refuse
// damaged layers, but firmware may not refuse a damaged kernel.
func (i *Image) WriteFile(ctx context.Context, path, format string, digest bool, progress func(n int64)) (*Artifact, error) {
	form, err := i.form(format)
	if err != nil {
		return nil, err
	}
	i.warnImageCache(format)
	a := &Artifact{Path: path, Format: format}
	if form.files != nil {
		if err := i.Verify(ctx); err != nil {
			return nil, err
		}
		files, err := form.files(i)
		if err != nil {
			return nil, err
		}
		err = writeTree(ctx, path, files, progress)
		if err == nil && digest {
			a.Files, err = sumTree(path, files)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
		}
		return a, nil
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOutput, err)
	}
	defer f.Close()
	file := ArtifactFile{Name: filepath.Base(path)}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.Verify(gctx) })
	group.Go(func() error {
		err := i.writeFile(gctx, form, f.File, &file, digest, progress)
		if err == nil {
			err = f.Sync()
		}
		if err != nil && !errors.Is(err, ErrRefused) {
			return fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := f.Commit(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrOutput, path, err)
	}
	a.Files = []ArtifactFile{file}
	return a, nil
}

// writeFile writes to f and digests what it writes.
func (i *Image) writeFile(ctx context.Context, form form, f *os.File, file *ArtifactFile, digest bool, progress func(int64)) error {
	if form.layout == nil {
		if err := form.write(ctx, i, f, observe(progress)); err != nil {
			return err
		}
		// Some formats are written back and forth.
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		file.Size = size
		if digest {
			file.SHA256, err = sum(io.NewSectionReader(f, 0, size))
		}
		return err
	}
	m, err := form.layout(ctx, i)
	if err != nil {
		return err
	}
	file.Size = m.Size()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return extent.WriteSparse(ctx, f, m, progress) })
	if !digest {
		return group.Wait()
	}
	group.Go(func() error {
		h := sha256.New()
		_, err := m.WriteTo(&observer{ctx, h, func(int64) {}})
		file.SHA256 = hex.EncodeToString(h.Sum(nil))
		return err
	})
	return group.Wait()
}

// WriteTo streams the image in the given format, after it has checked the base.
func (i *Image) WriteTo(ctx context.Context, w io.Writer, format string, progress func(n int64)) error {
	form, err := i.form(format)
	if err != nil {
		return err
	}
	i.warnImageCache(format)
	if err := i.Verify(ctx); err != nil {
		return err
	}
	stream := form.write
	if form.files != nil {
		stream = func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			files, err := form.files(i)
			if err != nil {
				return err
			}
			return tarTree(&observer{ctx, w, progress}, files, i.request.Epoch)
		}
	}
	if form.layout != nil {
		stream = func(ctx context.Context, i *Image, w io.Writer, progress func(int64)) error {
			m, err := form.layout(ctx, i)
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
func (i *Image) Size(ctx context.Context, format string, file bool) int64 {
	form, err := i.form(format)
	if err == nil && form.files != nil {
		files, err := form.files(i)
		if err != nil {
			return 0
		}
		var n int64
		for _, src := range files {
			n += src.Size()
		}
		return n
	}
	if err == nil && form.size != nil {
		return form.size(i)
	}
	if err == nil && form.skips {
		return i.Disk.Allocated()
	}
	if err != nil || form.layout == nil {
		return i.Disk.Size()
	}
	m, err := form.layout(ctx, i)
	if err != nil {
		return 0
	}
	if file {
		return m.Allocated()
	}
	return m.Size()
}

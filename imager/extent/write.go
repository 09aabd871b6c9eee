package extent

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is the unit in which data is moved: large enough that system calls do
// not count, small enough to stay in the processor's cache.
const chunk = 1 << 20

// WriteTo streams the whole map, holes as zeros, to w. It implements
// io.WriterTo.
func (m *Map) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, chunk)
	var done int64
	for done < m.size {
		p := buf[:min(chunk, m.size-done)]
		if n, err := m.ReadAt(p, done); n < len(p) {
			return done, fmt.Errorf("read at %d: %w", done, err)
		}
		n, err := w.Write(p)
		done += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// WriteSparse writes only the extents of m to dst, which must read as zeros
// everywhere else: a new file, or a device that has been zeroed. A file is
// extended to the size of the map. Data that lives in files is copied by the
// kernel. If progress is not nil it is called with the number of bytes written
// since the last call.
func WriteSparse(ctx context.Context, dst *os.File, m *Map, progress func(n int64)) error {
	fi, err := dst.Stat()
	if err != nil {
		return err
	}
	if fi.Mode().IsRegular() && fi.Size() < m.size {
		if err := dst.Truncate(m.size); err != nil {
			return err
		}
	}
	if progress == nil {
		progress = func(int64) {}
	}
	w := sparseWriter{dst: dst, buf: make([]byte, chunk), progress: progress}
	for _, e := range m.extents {
		if err := w.extent(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

type sparseWriter struct {
	dst      *os.File
	buf      []byte
	noKernel bool // copy_file_range does not work on this destination
	progress func(int64)
}

func (w *sparseWriter) extent(ctx context.Context, e Extent) error {
	if f, ok := e.Source.(*FileSource); ok && e.Length >= chunk && !w.noKernel {
		done, err := w.copyRange(ctx, f, e)
		if err != nil {
			return err
		}
		e.Offset, e.At, e.Length = e.Offset+done, e.At+done, e.Length-done
	}
	for e.Length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := w.buf[:min(chunk, e.Length)]
		if _, err := readFull(e.Source, p, e.At); err != nil {
			return err
		}
		if _, err := w.dst.WriteAt(p, e.Offset); err != nil {
			return err
		}
		n := int64(len(p))
		e.Offset, e.At, e.Length = e.Offset+n, e.At+n, e.Length-n
		w.progress(n)
	}
	return nil
}

// copyRange lets the kernel copy e from f and returns how far it came. It
// gives up without an error where the kernel or the file system cannot.
func (w *sparseWriter) copyRange(ctx context.Context, f *FileSource, e Extent) (int64, error) {
	src, err := os.Open(f.path)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	var done int64
	for done < e.Length {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		roff, woff := e.At+done, e.Offset+done
		n, err := unix.CopyFileRange(int(src.Fd()), &roff, int(w.dst.Fd()), &woff, int(min(16*chunk, e.Length-done)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOSPC || err == unix.EIO || err == unix.EDQUOT || err == unix.EFBIG:
			return done, &os.PathError{Op: "copy_file_range", Path: w.dst.Name(), Err: err}
		case err != nil || n == 0:
			w.noKernel = err != nil
			return done, nil
		}
		// Let the device begin now rather than at the final fsync. This is only
		// a hint: where it does not work fsync has more to do.
		_ = unix.SyncFileRange(int(w.dst.Fd()), e.Offset+done, int64(n), unix.SYNC_FILE_RANGE_WRITE)
		done += int64(n)
		w.progress(int64(n))
	}
	return done, nil
}

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
	defer w.close()
	for _, e := range m.extents {
		if err := w.extent(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

const (
	// minKernel is the least that is worth asking the kernel to copy, in bytes.
	minKernel = 128 << 10

	// window is how many bytes the device is told of at a time. Smaller ones
	// are more work for the file system.
	window = 32 << 20
)

type sparseWriter struct {
	dst      *os.File
	buf      []byte
	noKernel bool // copy_file_range does not work on this destination
	progress func(int64)
	flushed  int64 // the device has been told of what is before

	// The file that was read last: a disk in a file is often many small extents
	// of it.
	src openFile
}

// open opens f, unless it is open.
func (w *sparseWriter) open(f *FileSource) error {
	if w.src.FileSource == f {
		return nil
	}
	w.close()
	h, err := os.Open(f.path)
	if err == nil {
		w.src = openFile{f, h}
	}
	return err
}

func (w *sparseWriter) close() {
	if w.src.h != nil {
		w.src.h.Close() // it was only read
	}
	w.src = openFile{}
}

// flush lets the device begin with what is before end now, rather than at the
// final fsync. This is only a hint: where it does not work fsync has more to do.
func (w *sparseWriter) flush(end int64) {
	if end-w.flushed >= window {
		_ = unix.SyncFileRange(int(w.dst.Fd()), w.flushed, end-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = end
	}
}

func (w *sparseWriter) extent(ctx context.Context, e Extent) error {
	src := io.ReaderAt(e.Source)
	if f, ok := e.Source.(*FileSource); ok {
		if err := w.open(f); err != nil {
			return err
		}
		src = w.src
		if e.Length >= minKernel && !w.noKernel {
			done, err := w.copyRange(ctx, e)
			if err != nil {
				return err
			}
			e.Offset, e.At, e.Length = e.Offset+done, e.At+done, e.Length-done
		}
	}
	for e.Length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := w.buf[:min(chunk, e.Length)]
		if _, err := readFull(src, p, e.At); err != nil {
			return err
		}
		if _, err := w.dst.WriteAt(p, e.Offset); err != nil {
			return err
		}
		n := int64(len(p))
		e.Offset, e.At, e.Length = e.Offset+n, e.At+n, e.Length-n
		w.flush(e.Offset)
		w.progress(n)
	}
	return nil
}

// copyRange lets the kernel copy e, of the open file, and returns how far it
// came. It gives up without an error where the kernel or the file system cannot.
func (w *sparseWriter) copyRange(ctx context.Context, e Extent) (int64, error) {
	var done int64
	for done < e.Length {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		roff, woff := e.At+done, e.Offset+done
		n, err := unix.CopyFileRange(int(w.src.h.Fd()), &roff, int(w.dst.Fd()), &woff, int(min(16*chunk, e.Length-done)), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOSPC || err == unix.EIO || err == unix.EDQUOT || err == unix.EFBIG:
			return done, &os.PathError{Op: "copy_file_range", Path: w.dst.Name(), Err: err}
		case err != nil || n == 0:
			w.noKernel = err != nil
			return done, nil
		}
		done += int64(n)
		w.flush(e.Offset + done)
		w.progress(int64(n))
	}
	return done, nil
}

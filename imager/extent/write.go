package extent

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"

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
// extended to the size of the map; where its file system can, it shares the
// blocks of files that data lives in. If progress is not nil it is called with
// the number of bytes written since the last call.
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
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() {
		w.block = int64(st.Blksize)
	}
	defer w.close()
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
	block    int64 // of the file system of dst, in bytes; 0 if dst is not a file
	progress func(int64)

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

func (w *sparseWriter) extent(ctx context.Context, e Extent) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, ok := e.Source.(*FileSource)
	if !ok {
		return w.copy(ctx, e.Source, e)
	}
	if err := w.open(f); err != nil {
		return err
	}
	if w.block == 0 || (e.At-e.Offset)%w.block != 0 {
		return w.copy(ctx, w.src, e)
	}
	// Whole blocks of both files.
	start, end := Align(e.At, w.block)-e.At, (e.At+e.Length)/w.block*w.block-e.At
	if start >= end || w.clone(e.part(start, end-start)) != nil {
		return w.copy(ctx, w.src, e)
	}
	if err := w.copy(ctx, w.src, e.part(0, start)); err != nil {
		return err
	}
	return w.copy(ctx, w.src, e.part(end, e.Length-end))
}

// part returns n bytes of e, from off on.
func (e Extent) part(off, n int64) Extent {
	return Extent{Offset: e.Offset + off, Length: n, Source: e.Source, At: e.At + off}
}

// clone makes dst share the blocks of the open file. Few file systems can.
func (w *sparseWriter) clone(e Extent) error {
	err := unix.IoctlFileCloneRange(int(w.dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(w.src.h.Fd()), Src_offset: uint64(e.At), Src_length: uint64(e.Length), Dest_offset: uint64(e.Offset),
	})
	if err == nil {
		w.progress(e.Length)
	}
	return err
}

// copy reads e from src, which is its source, and writes it.
func (w *sparseWriter) copy(ctx context.Context, src io.ReaderAt, e Extent) error {
	for e.Length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunk, e.Length)
		if _, err := readFull(src, w.buf[:n], e.At); err != nil {
			return err
		}
		if _, err := w.dst.WriteAt(w.buf[:n], e.Offset); err != nil {
			return err
		}
		e = e.part(n, e.Length-n)
		w.progress(n)
	}
	return nil
}

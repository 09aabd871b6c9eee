package extent

import (
	"fmt"
	"io"
	"os"
)

// FileSource is a Source that is a whole regular file. It keeps no descriptor:
// each ReadAt opens the file, so that thousands of them may exist at once.
type FileSource struct {
	path string
	size int64
}

// File returns a source for the regular file at path, whose size is taken now.
func File(path string) (*FileSource, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file (%s)", path, fi.Mode().Type())
	}
	return &FileSource{path: path, size: fi.Size()}, nil
}

// Path returns the name the source was opened by.
func (f *FileSource) Path() string { return f.path }

// Size returns the size the file had when the source was made.
func (f *FileSource) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt. A file that has become shorter since is an
// error that names it.
func (f *FileSource) ReadAt(p []byte, off int64) (int, error) {
	h, err := os.Open(f.path)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	return openFile{f, h}.ReadAt(p, off)
}

// openFile is a FileSource and a descriptor of it.
type openFile struct {
	*FileSource
	h *os.File
}

func (f openFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.size-off {
		p, eof = p[:f.size-off], io.EOF
	}
	n, err := f.h.ReadAt(p, off)
	if n < len(p) {
		if err == nil || err == io.EOF {
			err = fmt.Errorf("%s: shrank while it was read: %w", f.path, io.ErrUnexpectedEOF)
		}
		return n, err
	}
	return n, eof
}

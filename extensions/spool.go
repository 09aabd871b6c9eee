package extensions

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	spoolMemory = 64 << 20  // bytes kept in memory before a file is used
	spoolChunk  = 128 << 10 // bytes; a chunk of zeros becomes a hole
)

// spool keeps the contents of an archive that has no random access: in memory
// as long as there is little, then in a file that has no name any more and goes
// away with the last content in it.
type spool struct {
	memory int64
	file   *os.File
	size   int64 // of the file
	buf    []byte
}

// add reads size bytes from r. Zeros are not kept.
func (s *spool) add(r io.Reader, size int64) (tree.Content, error) {
	if s.buf == nil {
		s.buf = make([]byte, spoolChunk)
	}
	if size <= spoolChunk {
		p := s.buf[:size]
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, short(err)
		}
		return s.keep(p)
	}
	m := extent.New(size)
	for off := int64(0); off < size; {
		p := s.buf[:min(size-off, spoolChunk)]
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, short(err)
		}
		if !zero(p) {
			src, err := s.keep(p)
			if err != nil {
				return nil, err
			}
			if err := m.Put(off, src); err != nil {
				return nil, err
			}
		}
		off += int64(len(p))
	}
	return m, nil
}

func short(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (s *spool) keep(p []byte) (extent.Source, error) {
	n := int64(len(p))
	if s.memory+n <= spoolMemory {
		s.memory += n
		return extent.Bytes(append([]byte(nil), p...)), nil
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "kiln-extension-*")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(f.Name()); err != nil {
			f.Close()
			return nil, err
		}
		s.file = f // closed when the last content is garbage
	}
	if _, err := s.file.WriteAt(p, s.size); err != nil {
		return nil, fmt.Errorf("unpacking: %w", err)
	}
	src := io.NewSectionReader(s.file, s.size, n)
	s.size += n
	return src, nil
}

// zero says whether p is all zeros: its first byte is, and each equals the one
// before.
func zero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

package ext4

import (
	"fmt"
	"io/fs"
)

// Extent is a run of bytes of a file system, in whole blocks.
type Extent struct{ Offset, Length int64 }

// Extents returns where the content of a regular file is, front to back: what
// dm-linear makes a device of. Together they are as long as the file, rounded up
// to blocks. The error is ErrUnsupported if the file has holes.
func (f *FileSystem) Extents(name string) ([]Extent, error) {
	ino := f.Tree.Lookup(name)
	if ino == nil {
		return nil, fmt.Errorf("ext4: %s: %w", name, fs.ErrNotExist)
	}
	c, ok := ino.Content.(*content)
	if !ok {
		return nil, unsupported("%s is empty or not a regular file, and has no extents", name)
	}
	c.once.Do(c.load)
	if c.err != nil {
		return nil, fmt.Errorf("%s: %w", name, c.err)
	}
	var out []Extent
	blocks := ceil(c.size, c.blockSize)
	at := int64(0)
	for _, r := range c.runs {
		if at >= blocks {
			break
		}
		if r.logical != at || r.unwritten {
			return nil, unsupported("%s has a hole at byte %d", name, at*c.blockSize)
		}
		n := min(r.n, blocks-at)
		e := Extent{r.start * c.blockSize, n * c.blockSize}
		if last := len(out) - 1; last >= 0 && out[last].Offset+out[last].Length == e.Offset {
			out[last].Length += e.Length
		} else {
			out = append(out, e)
		}
		at += n
	}
	if at < blocks {
		return nil, unsupported("%s has a hole at byte %d", name, at*c.blockSize)
	}
	return out, nil
}

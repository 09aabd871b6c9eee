package fat

import (
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// walker builds the tree.
type walker struct {
	*reader
	fs       *FileSystem
	dirs     []int64 // the first clusters of all directories but the root
	paths    int
	dirBytes int64
}

// walk goes through the directories without recursion.
func (w *walker) walk() error {
	root, err := w.rootContent()
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	type dir struct {
		name    string
		content extent.Source
	}
	queue := []dir{{".", root}}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		entries, err := w.entries(d.content, d.name == ".")
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		files := make(map[int64]extent.Source) // by first cluster
		for _, e := range entries {
			name := path.Join(d.name, e.name)
			ino, content, err := w.inode(e, files)
			if err == nil {
				if err = w.fs.Tree.Add(name, ino); err != nil {
					err = fmt.Errorf("%w: %w", ErrCorrupt, err)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if ino.Mode.IsDir() {
				queue = append(queue, dir{name, content})
			}
		}
	}
	return nil
}

func (w *walker) rootContent() (extent.Source, error) {
	if w.bits == 32 {
		return w.chain(w.root, -1, maxDirBytes)
	}
	return extent.Section(w.src, w.rootAt, w.rootSize)
}

// inode returns what an entry stands for and what a directory consists of.
// Files has the files of the same directory that were met before.
func (w *walker) inode(e found, files map[int64]extent.Source) (*tree.Inode, extent.Source, error) {
	if w.paths++; w.paths > maxPaths {
		return nil, nil, corrupt("more than %d files", maxPaths)
	}
	if e.attr&attrDir != 0 {
		w.dirs = append(w.dirs, e.cluster)
		content, err := w.chain(e.cluster, -1, maxDirBytes)
		return &tree.Inode{Mode: fs.ModeDir | 0o755, ModTime: e.time}, content, err
	}
	ino := &tree.Inode{Mode: 0o644, ModTime: e.time}
	if e.attr&attrReadOnly != 0 {
		ino.Mode = 0o444
	}
	if e.cluster == 0 && e.size == 0 {
		return ino, nil, nil
	}
	// A rename that was cut leaves two names of one file, never more.
	if other := files[e.cluster]; other != nil && other.Size() == e.size {
		files[e.cluster] = nil
		ino.Content = other
		return ino, nil, nil
	}
	content, err := w.chain(e.cluster, e.size, 0)
	if err != nil {
		return nil, nil, err
	}
	files[e.cluster] = content
	if e.size > 0 {
		ino.Content = content
	}
	return ino, nil, nil
}

// entries returns what a directory holds, and sets the volume's label if it is
// in the root.
func (w *walker) entries(content extent.Source, isRoot bool) ([]found, error) {
	if w.dirBytes += content.Size(); w.dirBytes > maxDirsBytes {
		return nil, corrupt("directories of more than %d bytes", maxDirsBytes)
	}
	b := make([]byte, content.Size())
	if _, err := io.ReadFull(extent.Reader(content), b); err != nil && len(b) > 0 {
		if err == io.ErrUnexpectedEOF || err == io.EOF {
			return nil, corrupt("it is beyond the end of the image")
		}
		return nil, err
	}
	list, err := parseEntries(b, w.bits)
	if isRoot {
		w.fs.Label = list.label
	}
	return list.entries, err
}

package registry

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Sync makes a directory have these files, by their paths in it, and no others, and
// reports whether anything has changed. Each file is old or new at any time; perm
// is that of files. Directories are open to all if files are.
func Sync(dir string, files map[string][]byte, perm fs.FileMode) (changed bool, err error) {
	dirPerm := fs.FileMode(0o700)
	if perm&0o044 != 0 {
		dirPerm = 0o755
	}
	if err := os.MkdirAll(dir, dirPerm); err != nil {
		return false, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer root.Close()
	wanted := map[string]bool{".": true} // directories
	for name, data := range files {
		for parent := filepath.Dir(name); !wanted[parent]; parent = filepath.Dir(parent) {
			wanted[parent] = true
		}
		if old, err := root.ReadFile(name); err == nil && bytes.Equal(old, data) {
			continue
		}
		if err := write(root, name, data, perm, dirPerm); err != nil {
			return true, err
		}
		changed = true
	}
	var extra []string
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, ok := files[name]; ok || d.IsDir() && wanted[name] {
			return nil
		}
		extra = append(extra, name)
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	failed := []error{err}
	for _, name := range extra {
		failed = append(failed, root.RemoveAll(name))
	}
	return changed || len(extra) > 0, errors.Join(failed...)
}

// write replaces one file.
func write(root *os.Root, name string, data []byte, perm, dirPerm fs.FileMode) error {
	if err := root.MkdirAll(filepath.Dir(name), dirPerm); err != nil {
		return err
	}
	temporary := name + ".kiln-new"
	if err := root.RemoveAll(temporary); err != nil {
		return err
	}
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return errors.Join(err, root.Remove(temporary))
	}
	return root.Rename(temporary, name)
}

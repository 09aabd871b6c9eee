// Package store keeps the machine configuration on STATE: the one that is in
// force, and the one before it.
//
// The file config.yaml is replaced whole or not at all: a new one is written and
// synced under another name, the old one gets the name config.yaml.previous, and
// the new one its own. At every moment config.yaml is the old or the new one.
package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnhq/kiln/internal/atomicfile"
)

// Names of the files.
const (
	Name         = "config.yaml"
	PreviousName = Name + ".previous"
)

// MaxSize bounds a configuration, in bytes.
const MaxSize = 1 << 20

// ErrNone is wrapped by the errors of Load and Previous if nothing was saved.
var ErrNone = errors.New("no machine configuration was saved")

// A Store is the directory that STATE is mounted on.
type Store struct{ Dir string }

// Load returns the configuration that is in force.
func (s Store) Load() ([]byte, error) { return s.read(Name) }

// Previous returns the configuration that was in force before.
func (s Store) Previous() ([]byte, error) { return s.read(PreviousName) }

func (s Store) read(name string) ([]byte, error) {
	path := filepath.Join(s.Dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("STATE cannot be read: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("STATE cannot be read: %w", err)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s: found %s, want a regular file", path, fi.Mode().Type())
	case fi.Size() == 0:
		return nil, fmt.Errorf("%s is empty: it was damaged, for no empty one is saved", path)
	case fi.Size() > MaxSize:
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", path, fi.Size(), MaxSize)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize))
	if err != nil {
		return nil, fmt.Errorf("STATE cannot be read: %w", err)
	}
	return data, nil
}

// Save makes data the configuration that is in force, and the one there was the
// previous one. If it fails the configuration in force is the one there was, but
// for an error of the last sync, after which it is one of the two.
func (s Store) Save(data []byte) error {
	if len(data) == 0 {
		return errors.New("an empty machine configuration is not saved")
	}
	if len(data) > MaxSize {
		return fmt.Errorf("a machine configuration of %d bytes is not saved, at most %d are", len(data), MaxSize)
	}
	if err := s.save(data); err != nil {
		switch {
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return fmt.Errorf("STATE is full, the machine configuration was not saved and the one before is kept: %w", err)
		case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO), errors.Is(err, syscall.EUCLEAN):
			return fmt.Errorf("STATE cannot be written, the machine configuration was not saved; 'kiln.reset=state' makes STATE anew: %w", err)
		}
		return fmt.Errorf("the machine configuration was not saved: %w", err)
	}
	return nil
}

func (s Store) save(data []byte) error {
	current, previous := filepath.Join(s.Dir, Name), filepath.Join(s.Dir, PreviousName)
	// What a power cut left of an earlier one.
	left, err := filepath.Glob(filepath.Join(s.Dir, "."+Name+".tmp-*"))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	f, err := atomicfile.Create(current, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	// A damaged one does not take the place of a good previous one.
	if _, err := s.Load(); err == nil {
		if err := link(current, previous); err != nil {
			return err
		}
	}
	return f.Commit()
}

// link makes newname another name of the file oldname, in place of what it is.
func link(oldname, newname string) error {
	const suffix = ".link"
	if err := os.Remove(newname + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(oldname, newname+suffix); err != nil {
		return err
	}
	// rename(2) of two names of one file does nothing.
	if err := os.Rename(newname+suffix, newname); err != nil {
		return err
	}
	if err := os.Remove(newname + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Clear removes both.
func (s Store) Clear() error {
	for _, name := range []string{PreviousName, Name} {
		if err := os.Remove(filepath.Join(s.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

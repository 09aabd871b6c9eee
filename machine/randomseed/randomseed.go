//go:build linux

// Package randomseed carries randomness from one start of a machine to the next,
// in a file of 144 bytes:
//
//	offset  size
//	0       8     "kilnseed"
//	8       1     version, 1
//	9       1     1: the kernel's random numbers were good when it was written
//	10      6     zero
//	16      32    SHA-256 of what identifies the machine that wrote it
//	48      64    the seed
//	112     32    SHA-256 of all that is before
//
// A seed is used once. Before the kernel gets it, another is written in its place,
// made of the old one and of what the kernel has. The kernel always mixes it in,
// but takes it for entropy (RNDADDENTROPY, random(4)) only if its numbers were
// good when it was written, if this very machine wrote it, and if it has been
// replaced: not one that came with an image or the copy of a disk, and not one
// that may be used again. That is what systemd-random-seed(8) does too, where it
// is allowed to credit.
package randomseed

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Name is the file's name on STATE.
const Name = "random-seed"

const (
	magic    = "kilnseed"
	version  = 1
	seedSize = sha512.Size
	fileSize = 16 + sha256.Size + seedSize + sha256.Size
)

// credited is how much entropy, in bits, a seed is taken for: what the kernel's
// generator holds.
const credited = 256

// Errors that errors of Load wrap.
var (
	ErrFormat = errors.New("not a random seed")
	ErrOpen   = errors.New("not a file that only its owner reads and writes")
)

// Kernel is the kernel's random number generator.
type Kernel interface {
	// Random fills p. It reports whether the numbers are good, if it may not
	// wait for that.
	Random(p []byte, wait bool) (good bool, err error)
	// Add mixes p in, and takes it for so many bits of entropy.
	Add(p []byte, bits int) error
}

// A Store is the seed of a machine.
type Store struct {
	Dir     string // that STATE is mounted on
	Machine []byte // identifies the machine; empty: nothing does, and no seed is credited
	Kernel  Kernel
}

// Load gives the kernel the seed that was saved, if there is one, after another
// has taken its place. It reports whether the kernel took it for entropy. A file
// that cannot be used is replaced too.
func (s Store) Load() (credit bool, err error) {
	old, found, err := s.read()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if saved := s.save(old, false); saved != nil {
		err, found.good = errors.Join(err, saved), false
	}
	if len(old) == 0 {
		return false, err
	}
	bits := 0
	if credit = found.good && len(s.Machine) > 0 && found.machine == sha256.Sum256(s.Machine); credit {
		bits = credited
	}
	if e := s.Kernel.Add(old, bits); e != nil {
		return false, errors.Join(err, e)
	}
	return credit, err
}

// Save writes a new seed. With wait it does so when the kernel's random numbers
// are good, which may take a while on a machine that has just started.
func (s Store) Save(wait bool) error {
	old, _, err := s.read()
	if err != nil {
		old = nil // it is replaced by a good one
	}
	return s.save(old, wait)
}

// save makes a seed of the one before and of the kernel's random numbers: it is
// no worse than either.
func (s Store) save(old []byte, wait bool) error {
	fresh := make([]byte, seedSize)
	good, err := s.Kernel.Random(fresh, wait)
	if err != nil {
		return fmt.Errorf("random seed: %w", err)
	}
	h := sha512.New()
	h.Write([]byte("kiln random seed\x00"))
	h.Write(old)
	h.Write(fresh)
	data := encode(seed{good: good, machine: sha256.Sum256(s.Machine)}, h.Sum(nil))
	if err := replace(s.Dir, data); err != nil {
		return fmt.Errorf("random seed: %w", err)
	}
	return nil
}

// replace writes the file: whole, durably, under another name first. That name is
// always the same, so that a start that is cut short leaves no more than one.
func replace(dir string, data []byte) error {
	path, temporary := filepath.Join(dir, Name), filepath.Join(dir, Name+".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// seed is what a file says of its seed.
type seed struct {
	good    bool
	machine [sha256.Size]byte
}

// read returns the seed that was saved.
func (s Store) read() ([]byte, seed, error) {
	path := filepath.Join(s.Dir, Name)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, seed{}, fmt.Errorf("random seed: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, seed{}, fmt.Errorf("random seed: %w", err)
	}
	if fi.Mode() != 0o600 {
		return nil, seed{}, fmt.Errorf("%s: %w: mode %v", path, ErrOpen, fi.Mode())
	}
	data, err := io.ReadAll(io.LimitReader(f, fileSize+1))
	if err != nil {
		return nil, seed{}, fmt.Errorf("random seed: %w", err)
	}
	found, old, err := decode(data)
	if err != nil {
		return nil, seed{}, fmt.Errorf("%s: %w", path, err)
	}
	return old, found, nil
}

func encode(s seed, random []byte) []byte {
	data := append([]byte(magic), version, 0, 0, 0, 0, 0, 0, 0)
	if s.good {
		data[9] = 1
	}
	data = append(data, s.machine[:]...)
	data = append(data, random...)
	sum := sha256.Sum256(data)
	return append(data, sum[:]...)
}

func decode(data []byte) (s seed, random []byte, err error) {
	if len(data) != fileSize {
		return s, nil, fmt.Errorf("%w: %d bytes or more, want %d", ErrFormat, len(data), fileSize)
	}
	body := data[:fileSize-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		return s, nil, fmt.Errorf("%w: it is damaged", ErrFormat)
	}
	if string(data[:8]) != magic || data[8] != version || data[9] > 1 || !bytes.Equal(data[10:16], make([]byte, 6)) {
		return s, nil, fmt.Errorf("%w: begins with %q", ErrFormat, data[:16])
	}
	copy(s.machine[:], data[16:])
	s.good = data[9] == 1
	return s, data[48 : 48+seedSize], nil
}

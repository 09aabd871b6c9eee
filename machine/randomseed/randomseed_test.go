//go:build linux

package randomseed

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A generator is a kernel whose numbers are known.
type generator struct {
	t     *testing.T
	dir   string
	next  byte
	good  bool
	err   error
	added [][]byte
	bits  []int
}

func (g *generator) Random(p []byte, wait bool) (bool, error) {
	g.next++
	copy(p, bytes.Repeat([]byte{g.next}, len(p)))
	return g.good || wait, g.err
}

// Add wants the file not to hold what it gets.
func (g *generator) Add(p []byte, bits int) error {
	g.added, g.bits = append(g.added, bytes.Clone(p)), append(g.bits, bits)
	data, err := os.ReadFile(filepath.Join(g.dir, Name))
	if bits > 0 && (err != nil || bytes.Contains(data, p)) {
		g.t.Errorf("the seed is used before it has been replaced, %v", err)
	}
	return nil
}

func newStore(t *testing.T) (Store, *generator) {
	g := &generator{t: t, dir: t.TempDir(), good: true}
	return Store{Dir: g.dir, Machine: []byte("machine 1"), Kernel: g}, g
}

func (g *generator) file(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(g.dir, Name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 || fi.Size() != 144 {
		t.Errorf("%v, %v, want a file of 144 bytes with mode 0600", fi, err)
	}
	return data
}

// load wants the result of Load.
func (g *generator) load(t *testing.T, s Store, credit bool, text string) {
	t.Helper()
	n := len(g.added)
	got, err := s.Load()
	if got != credit || (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("credit %v, %v, want %v, %q", got, err, credit, text)
	}
	if want := map[bool]int{true: credited}[credit]; len(g.added) > n && g.bits[n] != want {
		t.Errorf("taken for %d bits, want %d", g.bits[n], want)
	}
}

func TestSeedsAreUsedOnce(t *testing.T) {
	s, g := newStore(t)
	g.load(t, s, false, "") // there is none
	if len(g.added) > 0 {
		t.Error("something was added")
	}
	if err := s.Save(true); err != nil {
		t.Fatal(err)
	}
	first := g.file(t)
	g.load(t, s, true, "")
	if second := g.file(t); bytes.Equal(first, second) {
		t.Error("the seed is still there")
	}
	g.load(t, s, true, "") // a start that was cut before it could save another
	if err := s.Save(false); err != nil {
		t.Fatal(err)
	}
	g.load(t, s, true, "")
	for i, a := range g.added {
		for _, b := range g.added[:i] {
			if bytes.Equal(a, b) {
				t.Errorf("seed %d was used before", i)
			}
		}
	}
	if len(g.added) != 3 || len(g.added[0]) != seedSize {
		t.Errorf("%d seeds were used", len(g.added))
	}
	if left, err := os.ReadDir(g.dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v, want the seed alone", left, err)
	}
}

// What is saved depends on the seed before, also if the kernel's numbers are the
// same as last time.
func TestSeedsAddUp(t *testing.T) {
	s, g := newStore(t)
	var files [][]byte
	for range 2 {
		g.next = 7
		if err := s.Save(true); err != nil {
			t.Fatal(err)
		}
		files = append(files, g.file(t))
	}
	if bytes.Equal(files[0], files[1]) {
		t.Error("the seed before counts for nothing")
	}
}

func TestNotCredited(t *testing.T) {
	other := func(s *Store, _ *generator) { s.Machine = []byte("machine 2") }
	for name, tc := range map[string]struct {
		before, between func(*Store, *generator)
		add             bool
		text            string
	}{
		"of another machine": {between: other, add: true},
		"machines that nothing identifies": {func(s *Store, _ *generator) { s.Machine = nil },
			nil, true, ""},
		"of a kernel that had just started": {func(_ *Store, g *generator) { g.good = false }, nil, true, ""},
		"that cannot be replaced": {between: func(_ *Store, g *generator) {
			if err := os.MkdirAll(filepath.Join(g.dir, Name+".new", "x"), 0o755); err != nil {
				g.t.Fatal(err)
			}
		}, add: true, text: "directory not empty"},
		"while the kernel gives none": {between: func(_ *Store, g *generator) { g.err = unix.ENOSYS }, add: true, text: "not implemented"},
		"that others can read": {between: func(_ *Store, g *generator) {
			if err := os.Chmod(filepath.Join(g.dir, Name), 0o644); err != nil {
				g.t.Fatal(err)
			}
		}, text: "not a file that only its owner reads and writes: mode -rw-r--r--"},
		"that is damaged": {between: func(_ *Store, g *generator) {
			data := g.file(g.t)
			data[60] ^= 1
			if err := os.WriteFile(filepath.Join(g.dir, Name), data, 0o600); err != nil {
				g.t.Fatal(err)
			}
		}, text: "not a random seed: it is damaged"},
		"that is cut": {between: func(_ *Store, g *generator) {
			if err := os.Truncate(filepath.Join(g.dir, Name), 100); err != nil {
				g.t.Fatal(err)
			}
		}, text: "100 bytes or more, want 144"},
	} {
		t.Run(name, func(t *testing.T) {
			s, g := newStore(t)
			if tc.before != nil {
				tc.before(&s, g)
			}
			if err := s.Save(false); err != nil {
				t.Fatal(err)
			}
			if tc.between != nil {
				tc.between(&s, g)
			}
			g.load(t, s, false, tc.text)
			if (len(g.added) > 0) != tc.add {
				t.Errorf("added %d times, want %v", len(g.added), tc.add)
			}
		})
	}
}

// A link is not followed, and what it leads to not replaced.
func TestLink(t *testing.T) {
	s, g := newStore(t)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(g.dir, Name)); err != nil {
		t.Fatal(err)
	}
	g.load(t, s, false, "too many levels of symbolic links")
	if data, err := os.ReadFile(target); err != nil || string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
	g.file(t)
}

func TestDecodeHeader(t *testing.T) {
	for i := range 16 {
		data := encode(seed{}, make([]byte, seedSize))
		data[i] ^= 0x80
		if _, _, err := decode(resum(data)); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "begins with") {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// resum makes the digest of a file right.
func resum(data []byte) []byte {
	body := bytes.Clone(data[:max(0, len(data)-sha256.Size)])
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(seed{good: true}, make([]byte, seedSize)))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range [][]byte{data, resum(data)} {
			s, random, err := decode(d)
			if err == nil && !bytes.Equal(encode(s, random), d) {
				t.Errorf("%x is decoded, but not what is encoded", d)
			}
		}
	})
}

// Only root may add entropy.
func TestDevice(t *testing.T) {
	p := make([]byte, seedSize)
	if good, err := (Device{}).Random(p, true); !good || err != nil || bytes.Equal(p, make([]byte, seedSize)) {
		t.Fatalf("%v, %v", good, err)
	}
	if good, err := (Device{}).Random(p, false); !good || err != nil {
		t.Fatalf("%v, %v", good, err)
	}
	err := Device{}.Add(p, 0)
	if os.Geteuid() != 0 {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, want it refused", err)
		}
		return
	}
	if err != nil {
		t.Error(err)
	}
}

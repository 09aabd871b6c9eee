package meta

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/powercut"
)

// long is a value of a few sectors.
func long(c byte) Values {
	return Values{MetalNetwork: bytes.Repeat([]byte{c}, 6*powercut.Sector), 0x80: {c}}
}

// bySector writes each sector that changes with a write of its own, so that the
// power may fail between any two.
type bySector struct{ *powercut.Disk }

func (d bySector) WriteAt(p []byte, off int64) (int, error) {
	old := make([]byte, powercut.Sector)
	for at := 0; at < len(p); at += powercut.Sector {
		sector := p[at : at+powercut.Sector]
		if _, err := d.ReadAt(old, off+int64(at)); err != nil {
			return at, err
		}
		if bytes.Equal(old, sector) {
			continue
		}
		if _, err := d.Disk.WriteAt(sector, off+int64(at)); err != nil {
			return at, err
		}
	}
	return len(p), nil
}

// states are all that META may be in before it is written, and what it says then.
func states(t testing.TB) map[string]struct {
	image []byte
	old   Values
} {
	blank, old, older := make([]byte, CopySize), encoded(t, long('o')), encoded(t, long('x'))
	bad, torn := bytes.Repeat([]byte{0xff}, CopySize), slices.Concat(older[:CopySize/2], make([]byte, CopySize/2))
	type state = struct {
		image []byte
		old   Values
	}
	return map[string]state{
		"blank":                  {slices.Concat(blank, blank), Values{}},
		"whole":                  {slices.Concat(old, old), long('o')},
		"second older":           {slices.Concat(old, older), long('o')},
		"first damaged":          {slices.Concat(bad, old), long('o')},
		"first torn":             {slices.Concat(torn, old), long('o')},
		"second damaged":         {slices.Concat(old, bad), long('o')},
		"first blank":            {slices.Concat(blank, old), long('o')},
		"second blank":           {slices.Concat(old, blank), long('o')},
		"first ever cut":         {slices.Concat(blank, torn), Values{}},
		"first ever cut, before": {slices.Concat(torn, blank), Values{}},
	}
}

// Wherever the power fails, and whatever sectors of those that were not flushed
// are on the medium, what is read is what was or what was written; and writing
// again makes it good.
func TestPowerCut(t *testing.T) {
	total := 0
	for name, state := range states(t) {
		want := long('n')
		disk := powercut.New(slices.Clone(state.image))
		if err := Write(bySector{disk}, want); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(disk.Bytes(), slices.Concat(encoded(t, want), encoded(t, want))) {
			t.Errorf("%s: not the new values, twice", name)
		}
		seen := map[string]int{}
		n, err := disk.Cuts(1, 6, func(c powercut.Cut) error {
			got, err := Read(bytes.NewReader(c.Content), disk.Size())
			switch {
			case err != nil:
				return err
			case same(got.Values, state.old):
				seen["old"]++
			case same(got.Values, want):
				seen["new"]++
			default:
				return fmt.Errorf("neither the old values nor the new ones: %v", got.Values)
			}
			return nil
		})
		if err != nil || seen["old"] == 0 || seen["new"] == 0 {
			t.Errorf("%s: %v, %v", name, err, seen)
		}
		total += n
	}
	t.Logf("%d states that a power failure may leave, all with the old values or the new ones", total)
}

// Each sector alone, in any order, is covered by TestPowerCut only by chance; the
// two orders that are most different are covered here: all but the last sector of
// a copy, and all but the first.
func TestLostSector(t *testing.T) {
	for name, state := range states(t) {
		want := encoded(t, long('n'))
		disk := powercut.New(slices.Clone(state.image))
		var writes []int64
		if err := Write(spy{disk, func(off int64) { writes = append(writes, off) }}, long('n')); err != nil {
			t.Fatal(err)
		}
		if len(writes) != 2 {
			t.Fatalf("%s: %d writes, want one for each copy", name, len(writes))
		}
		for i, off := range writes {
			image := slices.Clone(state.image)
			for _, done := range writes[:i] {
				copy(image[done:], want)
			}
			for at := int64(0); at < CopySize; at += powercut.Sector {
				old, sector := image[off+at:off+at+powercut.Sector], want[at:at+powercut.Sector]
				if bytes.Equal(old, sector) {
					continue
				}
				for what, written := range map[string][]byte{
					"only":    slices.Concat(image[off:off+at], sector, image[off+at+powercut.Sector:off+CopySize]),
					"all but": slices.Concat(want[:at], old, want[at+powercut.Sector:]),
				} {
					torn := slices.Clone(image)
					copy(torn[off:], written)
					got, err := Read(bytes.NewReader(torn), int64(len(torn)))
					if err != nil || !same(got.Values, state.old) && !same(got.Values, long('n')) {
						t.Errorf("%s: write %d at %d, %s the sector at %d: %v, %v", name, i, off, what, at, got, err)
					}
				}
			}
		}
	}
}

type spy struct {
	*powercut.Disk
	wrote func(off int64)
}

func (s spy) WriteAt(p []byte, off int64) (int, error) {
	s.wrote(off)
	return s.Disk.WriteAt(p, off)
}

// What a program left in caches that was ended before it had flushed must not
// count as being on the medium.
func TestUnflushed(t *testing.T) {
	disk := powercut.New(slices.Concat(encoded(t, long('o')), encoded(t, long('o'))))
	killed := errors.New("killed")
	writes := 0
	dying := failing{bySector{disk}, func(op string) error {
		if op == "write" {
			writes++
		}
		if op == "sync" && writes == 2 {
			return killed
		}
		return nil
	}}
	if err := Write(dying, long('m')); !errors.Is(err, killed) {
		t.Fatalf("%v, want it to be killed at the last flush", err)
	}
	if err := Write(bySector{disk}, long('n')); err != nil {
		t.Fatal(err)
	}
	n, err := disk.Cuts(2, 20, func(c powercut.Cut) error {
		got, err := Read(bytes.NewReader(c.Content), disk.Size())
		if err != nil {
			return err
		}
		if !same(got.Values, long('o')) && !same(got.Values, long('m')) && !same(got.Values, long('n')) {
			return fmt.Errorf("values that never were: %v", got.Values)
		}
		return nil
	})
	if err != nil || n < 500 {
		t.Errorf("%d states: %v", n, err)
	}
}

// failing asks before each operation: sync, write or read.
type failing struct {
	Device
	fail func(op string) error
}

func (f failing) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fail("write"); err != nil {
		n, _ := f.Device.WriteAt(p[:len(p)/2], off) // some of it is there
		return n, err
	}
	return f.Device.WriteAt(p, off)
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fail("read"); err != nil {
		return 0, err
	}
	return f.Device.ReadAt(p, off)
}

func (f failing) Sync() error {
	if err := f.fail("sync"); err != nil {
		return err
	}
	return f.Device.Sync()
}

// Whatever fails, the error says what is there now, and it is.
func TestFaults(t *testing.T) {
	full := errors.New("no space left on device")
	messages := []string{
		"flush META before it is written: no space left on device; nothing was written", "", "",
		"write META: no space left on device; the values of before are still there",
		"write META: no space left on device; the values of before are still there",
		"write META: read back: no space left on device; the values of before are still there",
		"write META: no space left on device; the new values are there, in one copy only",
		"write META: no space left on device; the new values are there, in one copy only",
		"write META: read back: no space left on device; the new values are there, in one copy only",
	}
	for i, want := range messages {
		disk := powercut.New(slices.Concat(encoded(t, long('o')), encoded(t, long('o'))))
		n := -1
		err := Write(failing{disk, func(string) error {
			if n++; n == i {
				return full
			}
			return nil
		}}, long('n'))
		if want == "" && err != nil || want != "" && (!errors.Is(err, full) || err.Error() != want) {
			t.Errorf("operation %d: %v, want %q", i, err, want)
		}
		values := long('n')
		if strings.Contains(want, "before") {
			values = long('o')
		}
		if got, err := Read(disk, disk.Size()); err != nil || !same(got.Values, values) {
			t.Errorf("operation %d left %v, %v", i, got, err)
		}
	}
}

// deaf takes writes and keeps nothing.
type deaf struct{ *powercut.Disk }

func (deaf) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestVerify(t *testing.T) {
	disk := powercut.New(bytes.Repeat([]byte{0xff}, 2*CopySize))
	err := Write(deaf{disk}, long('n'))
	if want := "write META: the device does not give back what was written: 262144 bytes at 262144; it had no values that could be read"; !errors.Is(err, ErrVerify) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := Write(disk, long('n')); err != nil {
		t.Errorf("META that was damaged in both copies: %v", err)
	}
	if err := Write(disk, Values{1: make([]byte, MaxBytes)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too much: %v", err)
	}
	if got, err := Read(disk, disk.Size()); err != nil || !same(got.Values, long('n')) || got.Degraded != nil {
		t.Errorf("read as %v, %v", got, err)
	}
}

func TestSection(t *testing.T) {
	disk := powercut.New(make([]byte, 3*Size))
	part := Section(disk, Size, Size)
	if err := Write(part, long('n')); err != nil {
		t.Fatal(err)
	}
	both := slices.Concat(encoded(t, long('n')), encoded(t, long('n')))
	if want := slices.Concat(make([]byte, Size), both, make([]byte, 2*Size-len(both))); !bytes.Equal(disk.Bytes(), want) {
		t.Error("something else than the section was written")
	}
	for _, off := range []int64{-1, Size - 1, Size} {
		if _, err := part.WriteAt([]byte("ab"), off); err == nil {
			t.Errorf("2 bytes at %d of %d were written", off, Size)
		}
	}
}

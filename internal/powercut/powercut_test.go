package powercut

import (
	"bytes"
	"errors"
	"testing"
)

// A program that writes B and then the mark that B is there must flush in
// between: the disk shows what happens otherwise.
func TestCuts(t *testing.T) {
	broken := errors.New("marked, but not there")
	check := func(c Cut) error {
		if c.Content[0] == 1 && !bytes.Equal(c.Content[Sector:], bytes.Repeat([]byte{2}, 4*Sector)) {
			return broken
		}
		return nil
	}
	for _, flush := range []bool{true, false} {
		d := New(make([]byte, 5*Sector))
		if _, err := d.WriteAt(bytes.Repeat([]byte{2}, 4*Sector), Sector); err != nil {
			t.Fatal(err)
		}
		if flush {
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		n, err := d.Cuts(1, 20, check)
		if flush && (err != nil || n != 1+2*21) {
			t.Errorf("with a flush: %d states, %v; want %d without an error", n, err, 1+2*21)
		}
		if !flush && !errors.Is(err, broken) {
			t.Errorf("without a flush: %v, want %v", err, broken)
		}
	}
}

func TestFail(t *testing.T) {
	full := errors.New("full")
	d := New(make([]byte, 2*Sector))
	d.Fail = func(n int) error {
		if n == 1 {
			return full
		}
		return nil
	}
	if err := d.Zero(0, Sector); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); !errors.Is(err, full) {
		t.Errorf("second operation: %v, want %v", err, full)
	}
	if err := d.Zero(Sector, 2*Sector); !errors.Is(err, ErrBounds) {
		t.Errorf("beyond the end: %v", err)
	}
	if d.Operations() != 1 {
		t.Errorf("%d operations, want the one that worked", d.Operations())
	}
}

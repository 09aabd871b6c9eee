//go:build linux

package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/control"
)

func add(j *Journal, n int) {
	for range n {
		j.Add(time.Unix(1, 0), control.Event{Kind: "test"})
	}
}

func sent(t *testing.T, j *Journal, tail int) []uint64 {
	t.Helper()
	var got []uint64
	if err := j.Send(t.Context(), control.TailRequest{Tail: tail}, func(e control.Event) error {
		got = append(got, e.Sequence)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTail(t *testing.T) {
	j := New(3)
	if got := sent(t, j, -1); got != nil {
		t.Errorf("an empty journal sends %v", got)
	}
	for _, c := range []struct {
		add, tail int
		want      []uint64
	}{{2, -1, []uint64{1, 2}}, {0, 1, []uint64{2}}, {0, 0, nil}, {0, 9, []uint64{1, 2}}, {3, -1, []uint64{3, 4, 5}}, {0, 2, []uint64{4, 5}}, {0, 4, []uint64{3, 4, 5}}} {
		add(j, c.add)
		if got := sent(t, j, c.tail); !slices.Equal(got, c.want) {
			t.Errorf("the last %d: %v, want %v", c.tail, got, c.want)
		}
	}
}

func TestFollow(t *testing.T) {
	j := New(100)
	add(j, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var got []uint64
	err := j.Send(ctx, control.TailRequest{Tail: 1, Follow: true}, func(e control.Event) error {
		got = append(got, e.Sequence)
		if len(got) < 3 {
			add(j, 1)
		} else {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(got, []uint64{2, 3, 4}) {
		t.Errorf("got %v, %v", got, err)
	}
	enough := fmt.Errorf("enough")
	if err := j.Send(t.Context(), control.TailRequest{Tail: -1, Follow: true}, func(control.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}

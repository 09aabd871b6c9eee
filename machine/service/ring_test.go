package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func texts(lines []Line) string {
	var s strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&s, "%d:%s|", l.Number, l.Text)
	}
	return s.String()
}

func TestRing(t *testing.T) {
	r := NewRing(10 * (lineCost + 4))
	fmt.Fprint(r, "one\ntw")
	if got := texts(r.Tail(-1)); got != "1:one|" {
		t.Errorf("got %q", got)
	}
	fmt.Fprint(r, "o\r\n\nthree")
	r.Flush()
	r.Flush()
	if got := texts(r.Tail(-1)); got != "1:one|2:two|3:|4:three|" {
		t.Errorf("got %q", got)
	}
	if got := texts(r.Tail(2)); got != "3:|4:three|" {
		t.Errorf("got %q", got)
	}
	for i := range 1000 {
		fmt.Fprintf(r, "%04d\n", i)
	}
	if got := texts(r.Tail(-1)); got != "995:0990|996:0991|997:0992|998:0993|999:0994|1000:0995|1001:0996|1002:0997|1003:0998|1004:0999|" {
		t.Errorf("got %q", got)
	}
	long := NewRing(1 << 20)
	fmt.Fprintf(long, "%s\n", strings.Repeat("x", 2*maxLine+1))
	lines := long.Tail(-1)
	if len(lines) != 3 || len(lines[0].Text) != maxLine || lines[2].Text != "x" {
		t.Errorf("%d lines", len(lines))
	}
	exact := NewRing(1 << 20)
	fmt.Fprintf(exact, "%s\nend\n", strings.Repeat("x", maxLine))
	if lines := exact.Tail(-1); len(lines) != 2 || lines[1].Text != "end" {
		t.Errorf("a line of the greatest length: %d lines", len(lines))
	}
}

func TestFollow(t *testing.T) {
	r := NewRing(4 * (lineCost + 1))
	fmt.Fprint(r, "a\nb\n")
	enough := errors.New("enough")
	var got []Line
	go fmt.Fprint(r, "c\n")
	err := r.Follow(t.Context(), 1, func(l Line) error {
		got = append(got, l)
		if len(got) == 2 {
			return enough
		}
		return nil
	})
	if err != enough || texts(got) != "2:b|3:c|" {
		t.Errorf("got %q, %v", texts(got), err)
	}
	// One that has fallen behind goes on with the oldest there is.
	fmt.Fprint(r, "d\ne\nf\ng\nh\n")
	got = nil
	_ = r.Follow(t.Context(), 3, func(l Line) error {
		if got = append(got, l); l.Text == "h" {
			return enough
		}
		return nil
	})
	if texts(got) != "5:e|6:f|7:g|8:h|" {
		t.Errorf("got %q", texts(got))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if err := r.Follow(ctx, 8, nil); err != enough {
		t.Errorf("got %v", err)
	}
}

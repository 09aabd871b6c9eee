package service

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// maxLine is what a line of a log may have, in bytes. What is longer is cut, and
// goes on in the next line.
const maxLine = 8 << 10

// A Line is one line of a log, without its end.
type Line struct {
	Number int64 // from 1, without gaps: a reader that fell behind sees how much it missed
	Time   time.Time
	Text   string
}

// A Ring holds the latest lines of a log. It is an io.Writer that never fails and
// never waits for its readers.
type Ring struct {
	mu      sync.Mutex
	lines   []Line // oldest first
	size    int    // bytes in lines
	limit   int
	last    int64
	partial []byte
	grown   chan struct{} // closed and replaced with every line
}

// NewRing returns a Ring for limit bytes of text.
func NewRing(limit int) *Ring {
	return &Ring{limit: limit, grown: make(chan struct{})}
}

// Write takes over what p has of lines. What follows the last line's end stays
// until its line is complete.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		part := rest
		if i >= 0 {
			part = rest[:i]
		}
		part = part[:min(len(part), maxLine-len(r.partial))]
		r.partial = append(r.partial, part...)
		rest = rest[len(part):]
		ended := len(rest) > 0 && rest[0] == '\n'
		if ended {
			rest = rest[1:]
		}
		if ended || len(r.partial) == maxLine {
			r.add()
		}
	}
	return len(p), nil
}

// Flush ends a line that has no end.
func (r *Ring) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.partial) > 0 {
		r.add()
	}
}

func (r *Ring) add() {
	r.last++
	text := string(bytes.TrimSuffix(r.partial, []byte("\r")))
	r.partial = r.partial[:0]
	r.lines = append(r.lines, Line{Number: r.last, Time: time.Now(), Text: text})
	r.size += len(text) + lineCost
	for r.size > r.limit && len(r.lines) > 1 {
		r.size -= len(r.lines[0].Text) + lineCost
		r.lines[0] = Line{}
		r.lines = r.lines[1:]
	}
	close(r.grown)
	r.grown = make(chan struct{})
}

// lineCost is about what a line takes besides its text.
const lineCost = 48

// Tail returns the last n lines there are, oldest first; all for n below 0.
func (r *Ring) Tail(n int) []Line {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < 0 || n > len(r.lines) {
		n = len(r.lines)
	}
	return append([]Line(nil), r.lines[len(r.lines)-n:]...)
}

// Follow calls f with each line after the given number, as they come, until f or
// ctx ends it, and returns that error.
func (r *Ring) Follow(ctx context.Context, after int64, f func(Line) error) error {
	for {
		r.mu.Lock()
		var fresh []Line
		if n := r.last - after; n > 0 {
			fresh = append(fresh, r.lines[max(0, len(r.lines)-int(min(n, int64(len(r.lines))))):]...)
		}
		grown := r.grown
		r.mu.Unlock()
		for _, l := range fresh {
			if err := f(l); err != nil {
				return err
			}
			after = l.Number
		}
		if len(fresh) > 0 {
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

//go:build linux

// Package journal keeps the latest of what happened on a node, and tells those
// who follow what happens.
package journal

import (
	"context"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/control"
)

// A Journal keeps so many events. It may be used by many at a time.
type Journal struct {
	keep int

	mu     sync.Mutex
	events []control.Event
	next   uint64        // sequence number of the next
	more   chan struct{} // closed with the next
}

// New returns a journal that keeps the latest events.
func New(keep int) *Journal { return &Journal{keep: max(keep, 1), next: 1, more: make(chan struct{})} }

// Add adds an event. It gives it its number.
func (j *Journal) Add(now time.Time, e control.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Sequence, e.Time = j.next, now
	j.next++
	if len(j.events) == j.keep {
		j.events = append(j.events[:0:0], j.events[1:]...)
	}
	j.events = append(j.events, e)
	close(j.more)
	j.more = make(chan struct{})
}

// since returns the kept events from a number on, and what says that there are
// more.
func (j *Journal) since(sequence uint64) ([]control.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := len(j.events) - int(min(j.next-min(sequence, j.next), uint64(len(j.events))))
	return append([]control.Event(nil), j.events[i:]...), j.more
}

// Send sends the events that are asked for. Who is too slow sees a gap in their
// numbers.
func (j *Journal) Send(ctx context.Context, r control.TailRequest, send func(control.Event) error) error {
	j.mu.Lock()
	at := j.next
	j.mu.Unlock()
	if r.Tail < 0 {
		at = 1
	} else {
		at -= min(at-1, uint64(r.Tail))
	}
	for {
		events, more := j.since(at)
		for _, e := range events {
			if err := send(e); err != nil {
				return err
			}
			at = e.Sequence + 1
		}
		if !r.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}

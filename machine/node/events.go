//go:build linux

package node

import (
	"context"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/control"
)

// maxEvents is how many are kept.
const maxEvents = 1024

// events are the latest things that happened.
type events struct {
	mu    sync.Mutex
	list  []control.Event // oldest first
	last  uint64
	grown chan struct{} // closed and replaced with every event
}

func newEvents() *events { return &events{grown: make(chan struct{})} }

func (e *events) add(kind, subject, message string, fields map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	e.list = append(e.list, control.Event{Sequence: e.last, Time: time.Now(), Kind: kind, Subject: subject, Message: message, Fields: fields})
	if len(e.list) > maxEvents {
		e.list = append(e.list[:0], e.list[len(e.list)-maxEvents:]...)
	}
	close(e.grown)
	e.grown = make(chan struct{})
}

// follow sends the last events and, if asked for, those that come.
func (e *events) follow(ctx context.Context, r control.TailRequest, send func(control.Event) error) error {
	e.mu.Lock()
	after := e.last
	if r.Tail < 0 || uint64(r.Tail) > after {
		after = 0
	} else {
		after -= uint64(r.Tail)
	}
	e.mu.Unlock()
	for {
		e.mu.Lock()
		var fresh []control.Event
		for _, v := range e.list {
			if v.Sequence > after {
				fresh = append(fresh, v)
			}
		}
		grown := e.grown
		e.mu.Unlock()
		for _, v := range fresh {
			if err := send(v); err != nil {
				return err
			}
			after = v.Sequence
		}
		if !r.Follow {
			return nil
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

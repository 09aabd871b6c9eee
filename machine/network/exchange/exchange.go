// Package exchange is what clients of DHCPv4 and DHCPv6 have in common: waiting
// for the answer to a message, among messages for others, and saying how long
// nobody has answered.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// ErrTimeout says that no answer came in time.
var ErrTimeout = errors.New("no answer")

// A ConnError says that nothing can be received any more.
type ConnError struct{ Err error }

func (e *ConnError) Error() string { return e.Err.Error() }
func (e *ConnError) Unwrap() error { return e.Err }

// A Box is where messages arrive.
type Box[T any] struct {
	// Confirm cuts waiting short when it receives. It may be nil.
	Confirm <-chan struct{}
	// Restart is true after Confirm has cut Next short.
	Restart bool

	messages chan T
	failed   chan struct{} // closed when receive failed, with
	failure  error
	cancel   context.CancelFunc
	done     chan struct{}
}

// Open returns a Box for what receive returns and parse wants.
func Open[T any](ctx context.Context, confirm <-chan struct{}, receive func(context.Context) ([]byte, error), parse func([]byte) (T, bool)) *Box[T] {
	ctx, cancel := context.WithCancel(ctx)
	b := &Box[T]{Confirm: confirm, messages: make(chan T), failed: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		for {
			data, err := receive(ctx)
			if err != nil {
				b.failure = err
				close(b.failed)
				return
			}
			m, ok := parse(data)
			if !ok {
				continue // to another client, or noise
			}
			select {
			case b.messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return b
}

// Close ends receiving.
func (b *Box[T]) Close() {
	b.cancel()
	<-b.done
}

// Next returns the next good message, or ErrTimeout after some time or when
// Confirm receives.
func (b *Box[T]) Next(ctx context.Context, until <-chan time.Time, good func(T) bool) (none T, err error) {
	for {
		select {
		case m := <-b.messages:
			if good(m) {
				return m, nil
			}
		case <-b.failed:
			return none, &ConnError{b.failure}
		case <-b.Confirm:
			b.Restart = true
			return none, ErrTimeout
		case <-until:
			return none, ErrTimeout
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}

// Wait lets time pass, and says whether it was cut short by Confirm. Messages
// that come meanwhile are late, and dropped.
func (b *Box[T]) Wait(ctx context.Context, d time.Duration) (confirm bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-b.messages:
		case <-b.failed:
			return false, &ConnError{b.failure}
		case <-b.Confirm:
			return true, nil
		case <-timer.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// silence is after how long without any answer there is a report; then after
// twice that time, and so on.
const silence = 30 * time.Second

// Silence counts how long nobody has answered.
type Silence struct {
	since    time.Time
	reported time.Duration
}

// Broken says that somebody has answered, or that asking begins.
func (s *Silence) Broken() { s.since, s.reported = time.Now(), 0 }

// Report returns an error if it is time for one: that no server of a kind
// answers on an interface, and why the last message could not be sent.
func (s *Silence) Report(kind, name string, sent error) error {
	since, next := time.Since(s.since), max(silence, 2*s.reported)
	if since < next {
		return nil
	}
	for next*2 <= since {
		next *= 2
	}
	s.reported = next
	if sent != nil {
		return fmt.Errorf("no answer from any %s server on %s for %v: %w", kind, name, next, sent)
	}
	return fmt.Errorf("no answer from any %s server on %s for %v", kind, name, next)
}

// Random returns a number of r, or of math/rand/v2's own source if r is nil.
func Random(r *rand.Rand) uint32 {
	if r == nil {
		return rand.Uint32()
	}
	return r.Uint32()
}

// Jitter returns d and at most so much more or less.
func Jitter(r *rand.Rand, d, most time.Duration) time.Duration {
	return d - most + time.Duration(uint64(Random(r))*uint64(2*most)>>32)
}

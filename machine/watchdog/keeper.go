//go:build linux

package watchdog

import (
	"sync"
	"time"
)

// Timer is what a Keeper keeps alive: a Device.
type Timer interface {
	Identity() string
	Timeout() time.Duration
	KeepAlive() error
	Stop() error
}

// A Keeper keeps a watchdog alive while there is progress. Each Renew gives the
// program its patience again: that long it may take until the next. In between
// the Keeper winds the watchdog itself if its timeout is shorter than that, for
// the last time so that the machine is reset when patience ends.
//
// The methods of a nil Keeper do nothing.
type Keeper struct {
	timer    Timer
	patience time.Duration

	mu       sync.Mutex
	deadline time.Time   // when the machine is to be reset; zero when stopped
	next     *time.Timer // calls again
	last     bool        // there is no further Renew
}

// Keep returns a Keeper of t whose patience begins now. Patience that is less
// than the timeout is the timeout.
func Keep(t Timer, patience time.Duration) *Keeper {
	k := &Keeper{timer: t, patience: max(patience, t.Timeout())}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = time.AfterFunc(k.patience, k.again)
	k.grant(k.patience)
	return k
}

// Renew says that there is progress. That the watchdog could not be kept alive
// is not an error here: the machine will be reset.
func (k *Keeper) Renew() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.last {
		k.grant(k.patience)
	}
}

// Last gives the program a last time, for what it does before the machine turns
// off. Renew does nothing any more.
func (k *Keeper) Last(d time.Duration) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.last {
		k.last = true
		k.grant(d)
	}
}

func (k *Keeper) again() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.deadline.IsZero() {
		k.wind()
	}
}

func (k *Keeper) grant(d time.Duration) {
	k.deadline = time.Now().Add(d)
	k.wind()
}

// wind begins the timeout anew, and sees to the next time.
func (k *Keeper) wind() {
	_ = k.timer.KeepAlive()
	k.next.Stop()
	if left := time.Until(k.deadline) - k.timer.Timeout(); left > 0 {
		k.next.Reset(min(left, k.timer.Timeout()/4))
	}
}

// Interval is how often a program with nothing to do had better call Renew. It
// is negative for a nil Keeper: never.
func (k *Keeper) Interval() time.Duration {
	if k == nil {
		return -1
	}
	return k.patience / 4
}

// Stop stops the watchdog.
func (k *Keeper) Stop() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last {
		return nil
	}
	k.last, k.deadline = true, time.Time{}
	k.next.Stop()
	return k.timer.Stop()
}

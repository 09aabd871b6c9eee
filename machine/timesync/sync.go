// Package timesync keeps the machine's clock right: a client of the Simple
// Network Time Protocol, RFC 5905 section 14.
//
// Packets are UDP datagrams to port 123 and back, 48 bytes, numbers big-endian:
//
//	 0  leap indicator (2 bits), version (3), mode (3: client, 4: server)
//	 1  stratum  1: has a reference clock; 2: asks one of those …; 0: a refusal
//	 2  poll interval and 3 precision, powers of two of a second
//	 4  root delay, 8 root dispersion: seconds, 16 bits and 16 of fraction
//	12  reference, or the code of a refusal ("kiss o' death")
//	16  when the server's clock was set
//	24  transmit time of the request
//	32  when the request came, 40 when this was sent: seconds since 1900, 32 bits
//	    and 32 of fraction
//
// All servers are asked. Of those that agree the nearest is believed, if they
// are more than half. The first time steps the clock; after that it is slewed by
// the kernel, so that no program sees time go backwards. A clock that says less
// than when the image was made, as without a battery, is set to that before
// anything is asked: certificates are valid then, and names can be looked up.
package timesync

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	firstRetry = 2 * time.Second
	minPoll    = 64 * time.Second
	maxPoll    = 1024 * time.Second
	// againPoll is when an offset that is too great to slew is looked at again.
	againPoll = 16 * time.Second
	// maxSlew is the greatest offset that the kernel slews, MAXPHASE being
	// 0.5 s; it takes minutes.
	maxSlew = 400 * time.Millisecond
	// good is the offset below which the clock runs well.
	good = 5 * time.Millisecond
	// rtcEvery is how often the clock with the battery is set. The kernel does
	// it every 11 minutes too, if it is built to.
	rtcEvery = time.Hour
)

// A Clock is the machine's.
type Clock interface {
	Now() time.Time
	// Step adds to the clock, at once.
	Step(offset time.Duration) error
	// Slew adds to the clock little by little. Poll is when there will be the
	// next offset, distance by how much this one may be wrong.
	Slew(offset, poll, distance time.Duration) error
	// Save writes the time into the clock with the battery.
	Save() error
}

// A Config is what a Syncer needs to know.
type Config struct {
	Clock Clock
	// Earliest is before now for sure: when the image was made.
	Earliest time.Time
	// Report is called for every change, never at the same time twice; it must
	// not block for long. Nil: not.
	Report func(Status)
	// Dial is net.Dialer's DialContext if it is nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Status says how the clock is.
type Status struct {
	Synced  bool // once, at least
	Server  string
	Stratum int
	Offset  time.Duration // the last
	Delay   time.Duration
	At      time.Time // of the last
	Poll    time.Duration
	Stepped time.Duration // the sum of all steps
	Faults  []string      // for people
}

// A Syncer is a Config that runs.
type Syncer struct {
	config Config
	synced chan struct{}

	mu      sync.Mutex
	servers []string
	changed chan struct{} // has room for one
	status  Status

	// Of Run.
	notBefore map[string]time.Time // by server, because of RATE
	denied    map[string]bool
	big       bool // the last offset was too great to slew
	saved     time.Time
}

// New returns a Syncer that has no servers yet.
func New(c Config) *Syncer {
	if c.Report == nil {
		c.Report = func(Status) {}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	return &Syncer{config: c, synced: make(chan struct{}), changed: make(chan struct{}, 1),
		notBefore: map[string]time.Time{}, denied: map[string]bool{}}
}

// SetServers says whom to ask: names or addresses. They are asked at once if
// they are others than before.
func (s *Syncer) SetServers(servers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(servers, s.servers) {
		return
	}
	s.servers = slices.Clone(servers)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Synced is closed when the clock is right for the first time.
func (s *Syncer) Synced() <-chan struct{} { return s.synced }

// Status returns the last Status.
func (s *Syncer) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Syncer) publish(f func(*Status)) {
	s.mu.Lock()
	next := s.status
	f(&next)
	same := reflect.DeepEqual(next, s.status)
	s.status = next
	s.mu.Unlock()
	if !same {
		s.config.Report(next)
	}
}

func (s *Syncer) fault(faults ...string) { s.publish(func(st *Status) { st.Faults = faults }) }

// Run keeps the clock right until the context ends.
func (s *Syncer) Run(ctx context.Context) {
	if now := s.config.Clock.Now(); now.Before(s.config.Earliest) {
		if err := s.step(s.config.Earliest.Sub(now)); err != nil {
			s.fault(err.Error())
		}
	}
	select {
	case <-s.changed: // they are asked now in any case
	default:
	}
	poll, retry := minPoll, firstRetry
	for ctx.Err() == nil {
		best, err := s.ask(ctx)
		pause := retry
		if err == nil {
			retry = firstRetry
			poll, pause = s.apply(best, poll)
		} else {
			retry = min(2*retry, minPoll)
			if s.Status().Synced {
				pause = max(pause, minPoll/4)
			}
		}
		timer := time.NewTimer(pause - pause/16 + rand.N(pause/8))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.changed:
			poll, retry = minPoll, firstRetry
			clear(s.denied)
			clear(s.notBefore)
		}
		timer.Stop()
	}
}

// step steps the clock.
func (s *Syncer) step(offset time.Duration) error {
	if err := s.config.Clock.Step(offset); err != nil {
		return fmt.Errorf("the clock cannot be set: %w", err)
	}
	s.publish(func(st *Status) { st.Stepped += offset })
	return nil
}

var errNobody = errors.New("nobody to ask")

// ask asks all servers, and returns the sample to believe. If there is none the
// Status says why.
func (s *Syncer) ask(ctx context.Context) (sample, error) {
	s.mu.Lock()
	servers := s.servers
	s.mu.Unlock()
	if len(servers) == 0 {
		s.fault("there is no time server; configure one, or have DHCP name one")
		return sample{}, errNobody
	}
	samples, faults := s.askAll(ctx, servers)
	if ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	if len(samples) == 0 {
		if len(faults) > 0 {
			s.fault(faults...)
		}
		return sample{}, errNobody
	}
	best, err := choose(samples)
	if err != nil {
		faults = append(faults, err.Error())
	}
	s.fault(faults...)
	return best, err
}

// askAll asks all servers at the same time, but for those that do not want to be
// asked now.
func (s *Syncer) askAll(ctx context.Context, servers []string) (samples []sample, faults []string) {
	type result struct {
		sample
		err error
	}
	results := make([]result, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		switch {
		case s.denied[server]:
			results[i].err = &KissError{"DENY"}
		case time.Now().Before(s.notBefore[server]):
			results[i].err = &KissError{"RATE"}
		default:
			wg.Go(func() { results[i].sample, results[i].err = s.config.exchange(ctx, server) })
		}
	}
	wg.Wait()
	for i, r := range results {
		if r.err == nil {
			samples = append(samples, r.sample)
			continue
		}
		if kiss := (*KissError)(nil); errors.As(r.err, &kiss) {
			s.heed(servers[i], kiss.Code)
		}
		text := strings.TrimPrefix(r.err.Error(), "dial udp: ")
		faults = append(faults, fmt.Sprintf("time server %s: %s", servers[i], text))
	}
	return samples, faults
}

// heed does what a server wishes.
func (s *Syncer) heed(server, code string) {
	switch code {
	case "DENY", "RSTR":
		s.denied[server] = true
	case "RATE":
		if now := time.Now(); !now.Before(s.notBefore[server]) {
			s.notBefore[server] = now.Add(maxPoll)
		}
	}
}

// apply sets the clock, and returns the poll interval and how long to wait now.
func (s *Syncer) apply(best sample, poll time.Duration) (next, pause time.Duration) {
	st := s.Status()
	size := best.offset.Abs()
	var err error
	switch {
	case !st.Synced:
		err = s.step(best.offset)
		poll, pause = minPoll, againPoll
	case size > maxSlew && !s.big:
		// Somebody has set the clock, or it is the server that is wrong: look
		// twice.
		s.big = true
		return minPoll, againPoll
	case size > maxSlew:
		err = s.step(best.offset)
		poll, pause = minPoll, againPoll
	default:
		if size < good {
			poll = min(2*poll, maxPoll)
		} else {
			poll = max(poll/2, minPoll)
		}
		err, pause = s.config.Clock.Slew(best.offset, poll, best.distance), poll
	}
	s.big = false
	if err != nil {
		s.publish(func(st *Status) { st.Faults = append(slices.Clone(st.Faults), err.Error()) })
		return poll, max(pause, againPoll)
	}
	s.publish(func(st *Status) {
		st.Synced, st.Server, st.Stratum, st.Offset, st.Delay, st.Poll, st.At = true, best.server, best.stratum, best.offset, best.delay, poll, s.config.Clock.Now()
	})
	if !st.Synced {
		close(s.synced)
	}
	s.save()
	return poll, pause
}

// save writes the battery's clock now and then.
func (s *Syncer) save() {
	if !s.saved.IsZero() && time.Since(s.saved) < rtcEvery {
		return
	}
	s.saved = time.Now()
	if err := s.config.Clock.Save(); err != nil {
		s.publish(func(st *Status) {
			st.Faults = append(slices.Clone(st.Faults), fmt.Sprintf("the clock with the battery cannot be set: %v", err))
		})
	}
}

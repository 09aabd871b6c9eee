package dhcp6

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kilnhq/kiln/machine/network/exchange"
)

// Times of RFC 8415, section 7.6. The longest waits for a server are shorter
// than there: one hour without an address is long for a node.
var (
	solicitTimes = schedule{first: time.Second, most: 2 * time.Minute}
	requestTimes = schedule{first: time.Second, most: 30 * time.Second, times: 10}
	confirmTimes = schedule{first: time.Second, most: 4 * time.Second, during: 10 * time.Second}
	renewTimes   = schedule{first: 10 * time.Second, most: 10 * time.Minute}
	informTimes  = schedule{first: time.Second, most: 2 * time.Minute}
)

const (
	failDelay   = 10 * time.Second // after a refusal
	leastRenew  = 10 * time.Second // T1, whatever the server says
	leastInform = 10 * time.Minute
	informAgain = 24 * time.Hour
)

// A schedule says when a message is sent again: RFC 8415, section 15.
type schedule struct {
	first, most time.Duration
	times       int           // 0: without end
	during      time.Duration // 0: without end
}

// A Conn sends and receives on one interface.
type Conn interface {
	// Send sends a message to all servers of the link.
	Send(message []byte) error
	// Receive returns the next message to the client's port.
	Receive(ctx context.Context) ([]byte, error)
}

// A Config is what a client needs to know.
type Config struct {
	Interface string // its name, for reports
	DUID      []byte
	IAID      uint32 // number of the interface, always the same
	// Addresses says to ask for one, and not only for name servers.
	Addresses bool

	// Report is called for every change and every fault, never at the same time
	// twice, and must not block.
	Report func(Event)
	// Confirm asks, when it receives, whether the lease still holds: after the
	// carrier was away. Nil: never.
	Confirm <-chan struct{}
	// Rand makes transaction numbers and jitter; nil: math/rand/v2's own.
	Rand *rand.Rand
}

// An Event is what has become of the lease.
type Event struct {
	Lease *Lease // what we have now; nil: nothing
	Err   error  // why there is nothing, or why not more
}

// A Lease is what a server has given.
type Lease struct {
	Info
	Addresses []Address // none if only the rest was asked for
	Server    []byte    // DUID
	Acquired  time.Time
	RenewAt   time.Time // T1; zero: never
	RebindAt  time.Time // T2
	Expires   time.Time // of all addresses; zero: never
}

type client struct {
	Config
	conn Conn
	box  *exchange.Box[*answer]

	lease   *Lease
	xid     uint32
	silence exchange.Silence
}

// Run gets a lease and keeps it, until the context ends or the connection
// fails.
func (c Config) Run(ctx context.Context, conn Conn) error {
	box := exchange.Open(ctx, c.Confirm, conn.Receive, func(data []byte) (*answer, bool) {
		a, err := parse(data, c.IAID)
		return a, err == nil && bytes.Equal(a.client, c.DUID)
	})
	defer box.Close()
	return (&client{Config: c, conn: conn, box: box}).run(ctx)
}

func (c *client) run(ctx context.Context) error {
	c.silence.Broken()
	for {
		var err error
		if c.Addresses {
			if c.lease, err = c.acquire(ctx); err == nil {
				c.Report(Event{Lease: c.lease})
				err = c.hold(ctx)
				c.silence.Broken()
			}
		} else {
			err = c.inform(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fatal := (*exchange.ConnError)(nil); errors.As(err, &fatal) {
			return fatal.Err
		}
		held := c.lease != nil
		c.lease = nil
		c.Report(Event{Err: err})
		if !held {
			_, _ = c.box.Wait(ctx, failDelay) // acquire sees its errors too
		}
	}
}

// exchange sends a message, as often as the schedule says and until a time,
// until an answer is good. It returns exchange.ErrTimeout if there is none.
func (c *client) exchange(ctx context.Context, s schedule, kind byte, until time.Time, build func(*message), good func(*answer) bool) (*answer, error) {
	c.xid = exchange.Random(c.Rand) & 0xffffff
	began := time.Now()
	if s.during > 0 {
		until = began.Add(s.during)
	}
	wait := s.first
	for i := 0; s.times == 0 || i < s.times; i++ {
		if !until.IsZero() && !time.Now().Before(until) {
			break
		}
		m := newMessage(kind, c.xid)
		m.add(optClientID, c.DUID)
		m.add(optElapsed, binary.BigEndian.AppendUint16(nil, uint16(min(time.Since(began)/(10*time.Millisecond), 0xffff))))
		build(&m)
		m.add(optRequest, []byte{0, optDNS, 0, optSearch, 0, optSNTP, 0, optRefresh, 0, optNTP})
		// There may be no address to send from yet: then soon.
		sent := c.conn.Send(m)
		pause := c.jitter(wait)
		if sent != nil {
			pause = min(pause, s.first)
		} else {
			wait = min(2*wait, s.most)
		}
		if !until.IsZero() {
			pause = min(pause, time.Until(until))
		}
		a, err := c.box.Next(ctx, time.After(pause), func(a *answer) bool { return a.xid == c.xid && good(a) })
		if !errors.Is(err, exchange.ErrTimeout) {
			return a, err
		}
		if c.box.Restart {
			c.box.Restart, wait = false, s.first
		}
		if kind != solicit && kind != inform {
			continue
		}
		if err := c.silence.Report("DHCPv6", c.Interface, sent); err != nil {
			c.Report(Event{Lease: c.lease, Err: err})
		}
	}
	return nil, exchange.ErrTimeout
}

// has says whether an answer has addresses of ours.
func (a *answer) has() bool {
	return a.ia != nil && len(a.ia.addrs) > 0 && a.status.code == statusSuccess && a.ia.status.code == statusSuccess
}

// refusal is what a server says instead of addresses.
func (a *answer) refusal() error {
	switch {
	case a.status.code != statusSuccess:
		return a.status
	case a.ia != nil && a.ia.status.code != statusSuccess:
		return a.ia.status
	}
	return errors.New("the server gives no address")
}

// acquire gets a lease of the first server that offers one. RFC 8415 waits a
// second for others with a greater preference; few links have two servers.
func (c *client) acquire(ctx context.Context) (*Lease, error) {
	var refused error
	a, err := c.exchange(ctx, solicitTimes, solicit, time.Time{}, func(m *message) {
		m.addIA(c.IAID, nil)
		m.add(optRapidCommit, nil)
	}, func(a *answer) bool {
		if !a.has() {
			if refused == nil {
				refused = a.refusal()
				c.Report(Event{Err: fmt.Errorf("DHCPv6 on %s: %w", c.Interface, refused)})
			}
			return false
		}
		return a.kind == advertise || a.rapid
	})
	if err != nil {
		return nil, err
	}
	c.silence.Broken()
	if a.kind == reply {
		return c.newLease(a), nil
	}
	best := a
	a, err = c.exchange(ctx, requestTimes, request, time.Time{}, func(m *message) {
		m.add(optServerID, best.server)
		m.addIA(c.IAID, best.ia.addrs)
	}, c.replyOf(best.server))
	if errors.Is(err, exchange.ErrTimeout) {
		return nil, fmt.Errorf("DHCPv6 server %x offers %v on %s and does not confirm it", best.server, best.ia.addrs[0].Addr, c.Interface)
	}
	if err != nil {
		return nil, err
	}
	if !a.has() {
		return nil, fmt.Errorf("DHCPv6 on %s: %w", c.Interface, a.refusal())
	}
	return c.newLease(a), nil
}

// replyOf returns what says whether an answer is a REPLY, of a server or, if
// that is nil, of any.
func (c *client) replyOf(server []byte) func(*answer) bool {
	return func(a *answer) bool { return a.kind == reply && (server == nil || bytes.Equal(a.server, server)) }
}

// newLease returns the lease of an answer that has addresses.
func (c *client) newLease(a *answer) *Lease {
	l := &Lease{Info: a.info, Addresses: a.ia.addrs, Server: a.server, Acquired: time.Now()}
	valid, preferred := time.Duration(0), Forever
	for _, addr := range l.Addresses {
		valid, preferred = max(valid, addr.Valid), min(preferred, addr.Preferred)
	}
	if valid == Forever {
		return l
	}
	if preferred == 0 || preferred == Forever {
		preferred = valid
	}
	t1, t2 := a.ia.t1, a.ia.t2
	// The server leaves it to us with 0; RFC 8415, section 21.4.
	if t2 == 0 || t2 > valid {
		t2 = preferred / 5 * 4
	}
	if t1 == 0 || t1 > t2 {
		t1 = min(preferred/2, t2)
	}
	t1 = max(t1, leastRenew)
	t2 = max(t2, t1)
	l.RenewAt, l.RebindAt, l.Expires = l.Acquired.Add(t1), l.Acquired.Add(t2), l.Acquired.Add(max(valid, t2))
	return l
}

// hold renews the lease for as long as it can. It returns why it is lost.
func (c *client) hold(ctx context.Context) error {
	for {
		pause := 24 * time.Hour
		if !c.lease.RenewAt.IsZero() {
			pause = time.Until(c.lease.RenewAt)
		}
		confirm, err := c.box.Wait(ctx, pause)
		if err != nil {
			return err
		}
		switch {
		case confirm:
			err = c.confirm(ctx)
		case !c.lease.RenewAt.IsZero():
			err = c.renew(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (c *client) lost(err error) error {
	return fmt.Errorf("%s has lost %v: %w", c.Interface, c.lease.Addresses[0].Addr, err)
}

// confirm asks whether the addresses are right for the link. Without an answer
// they are.
func (c *client) confirm(ctx context.Context) error {
	a, err := c.exchange(ctx, confirmTimes, confirm, time.Time{}, func(m *message) { m.addIA(c.IAID, c.lease.Addresses) }, c.replyOf(nil))
	if errors.Is(err, exchange.ErrTimeout) {
		return nil
	}
	if err == nil && a.status.code == statusNotOnLink {
		err = c.lost(a.status)
	}
	return err
}

// renew asks the server of the lease, and from T2 on any, until the lease ends.
func (c *client) renew(ctx context.Context) error {
	l := c.lease
	for _, phase := range []struct {
		kind   byte
		server []byte
		until  time.Time
	}{{renew, l.Server, l.RebindAt}, {rebind, nil, l.Expires}} {
		a, err := c.exchange(ctx, renewTimes, phase.kind, phase.until, func(m *message) {
			if phase.server != nil {
				m.add(optServerID, phase.server)
			}
			m.addIA(c.IAID, l.Addresses)
		}, c.replyOf(phase.server))
		switch {
		case errors.Is(err, exchange.ErrTimeout):
			continue
		case err != nil:
			return err
		case !a.has():
			return c.lost(a.refusal())
		}
		c.lease = c.newLease(a)
		c.Report(Event{Lease: c.lease})
		return nil
	}
	return c.lost(errors.New("no DHCPv6 server answers, and the lease is over"))
}

// inform asks for what is no address, and again when that is old.
func (c *client) inform(ctx context.Context) error {
	for {
		a, err := c.exchange(ctx, informTimes, inform, time.Time{}, func(*message) {}, c.replyOf(nil))
		if err != nil {
			return err
		}
		c.lease = &Lease{Info: a.info, Server: a.server, Acquired: time.Now()}
		c.silence.Broken()
		c.Report(Event{Lease: c.lease})
		pause := informAgain
		if a.refresh != 0 {
			pause = min(max(a.refresh, leastInform), informAgain)
		}
		if _, err := c.box.Wait(ctx, pause); err != nil {
			return err
		}
		c.silence.Broken()
	}
}

// jitter returns d and a tenth more or less.
func (c *client) jitter(d time.Duration) time.Duration { return exchange.Jitter(c.Rand, d, d/10) }

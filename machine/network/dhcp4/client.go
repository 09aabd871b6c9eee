package dhcp4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/kilnhq/kiln/machine/network/domain"
	"github.com/kilnhq/kiln/machine/network/exchange"
)

const (
	// RFC 2131 proposes 4 s to 64 s on a 10 Mbit/s Ethernet. A node that starts
	// should not wait that long for the second try, nor a cable that somebody
	// has just moved.
	firstDelay = 2 * time.Second
	lastDelay  = 32 * time.Second

	// requests is how often a REQUEST is sent for one offer.
	requests = 4
	// confirms is how often it is sent for an address that we have: a minute,
	// for a switch may need half of that to let anything pass.
	confirms = 5
	// renewDelay is the least time between two renewals.
	renewDelay = time.Minute
	// declineDelay is the wait after a DECLINE, RFC 2131 section 3.1.
	declineDelay = 10 * time.Second
)

// A Conn sends and receives on one interface.
type Conn interface {
	// Broadcast sends a message to all servers. From is 0.0.0.0 without an
	// address.
	Broadcast(from netip.Addr, message []byte) error
	// Send sends a message to a server.
	Send(from, to netip.Addr, message []byte) error
	// Receive returns the next message of a server. Its error is that of the
	// context, or says that the interface is of no more use.
	Receive(ctx context.Context) ([]byte, error)
	// Claim asks the network for a host that has the address, and returns its
	// hardware address. If there is none, it says that we have it now.
	Claim(ctx context.Context, addr netip.Addr) (net.HardwareAddr, error)
}

// A Config is what a client needs to know.
type Config struct {
	Interface string           // its name, for reports
	Address   net.HardwareAddr // of the interface
	ClientID  []byte           // option 61; nil: 1 and the hardware address
	Hostname  string           // option 12, if not empty

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

// A client is a Config that runs.
type client struct {
	Config
	conn Conn
	mac  [6]byte
	box  *exchange.Box[*packet]

	lease   *Lease
	xid     uint32
	began   time.Time // of the exchange, for secs
	silence exchange.Silence
}

// Run gets a lease and keeps it, until the context ends or the connection
// fails. It does not release the lease: a node that starts again gets the same.
func (c Config) Run(ctx context.Context, conn Conn) error {
	mac, err := hardwareAddr(c.Address)
	if err != nil {
		return err
	}
	if c.ClientID == nil {
		c.ClientID = append([]byte{1}, mac[:]...)
	}
	box := exchange.Open(ctx, c.Confirm, conn.Receive, func(data []byte) (*packet, bool) {
		p, err := parse(data)
		return p, err == nil && p.op == opReply && p.chaddr == mac
	})
	defer box.Close()
	return (&client{Config: c, conn: conn, mac: mac, box: box}).run(ctx)
}

// run is the state machine of RFC 2131, figure 5.
func (c *client) run(ctx context.Context) error {
	c.silence.Broken()
	delay := firstDelay
	for {
		lease, err := c.acquire(ctx)
		held := err == nil
		if held {
			c.lease = lease
			c.Report(Event{Lease: lease})
			err = c.hold(ctx)
			c.lease = nil
			c.silence.Broken()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fatal := (*exchange.ConnError)(nil); errors.As(err, &fatal) {
			return fatal.Err
		}
		c.Report(Event{Err: err})
		if held {
			delay = firstDelay
			continue
		}
		pause := c.jitter(delay)
		if errors.Is(err, errInUse) {
			pause = max(pause, declineDelay)
		}
		if _, err := c.box.Wait(ctx, pause); err != nil {
			continue // acquire sees it too
		}
		delay = min(2*delay, lastDelay)
	}
}

// next returns the next packet of our transaction until a time.
func (c *client) next(ctx context.Context, until <-chan time.Time) (*packet, error) {
	return c.box.Next(ctx, until, func(p *packet) bool { return p.xid == c.xid })
}

// acquire gets a lease: of the address that we had, or by asking all servers.
func (c *client) acquire(ctx context.Context) (*Lease, error) {
	o, err := c.discover(ctx)
	if err != nil {
		return nil, err
	}
	c.silence.Broken()
	lease, err := c.request(ctx, o.yiaddr, o.server(), requests)
	if errors.Is(err, exchange.ErrTimeout) {
		return nil, fmt.Errorf("DHCP server %v offers %v on %s and does not confirm it", o.server(), o.yiaddr, c.Interface)
	}
	if err != nil {
		return nil, err
	}
	return lease, c.claim(ctx, lease)
}

// claim declines the lease if another host has its address.
func (c *client) claim(ctx context.Context, lease *Lease) error {
	addr := lease.Address.Addr()
	other, err := c.conn.Claim(ctx, addr)
	if err != nil || other == nil {
		return err
	}
	p := c.packet(decline)
	p.setAddr(optRequestedIP, addr)
	p.setAddr(optServerID, lease.Server)
	_ = c.conn.Broadcast(netip.IPv4Unspecified(), p.marshal()) // nobody answers it
	return fmt.Errorf("%v, which DHCP server %v gives to %s, %w by %v; find that machine, or take the address out of the server's pool",
		addr, lease.Server, c.Interface, errInUse, other)
}

var errInUse = errors.New("is in use")

// discover returns the first offer that can be used.
func (c *client) discover(ctx context.Context) (*packet, error) {
	c.begin()
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		p := c.packet(discover)
		p.parameters(c.Hostname)
		sent := c.conn.Broadcast(netip.IPv4Unspecified(), p.marshal())
		until := time.After(c.jitter(delay))
		for {
			p, err := c.next(ctx, until)
			if errors.Is(err, exchange.ErrTimeout) {
				break
			}
			if err != nil {
				return nil, err
			}
			if p.kind() != offer {
				continue
			}
			if _, err := newLease(p, time.Now()); err != nil {
				c.Report(Event{Err: fmt.Errorf("%s: %w", c.Interface, err)})
				continue
			}
			return p, nil
		}
		if err := c.silence.Report("DHCP", c.Interface, sent); err != nil {
			c.Report(Event{Err: err})
		}
		if c.box.Restart {
			c.box.Restart, delay = false, firstDelay/2
		}
	}
}

// request asks for an address, of a server that offered it or, if that is not
// valid, of all.
func (c *client) request(ctx context.Context, addr, server netip.Addr, times int) (*Lease, error) {
	for delay := firstDelay; times > 0; times, delay = times-1, min(2*delay, lastDelay) {
		p := c.packet(request)
		p.setAddr(optRequestedIP, addr)
		if server.IsValid() {
			p.setAddr(optServerID, server)
		}
		p.parameters(c.Hostname)
		// A link that takes nothing at this moment may at the next try.
		_ = c.conn.Broadcast(netip.IPv4Unspecified(), p.marshal())
		lease, err := c.answer(ctx, server, time.After(c.jitter(delay)))
		if !errors.Is(err, exchange.ErrTimeout) {
			return lease, err
		}
	}
	return nil, exchange.ErrTimeout
}

// errRefused is wrapped by what a NAK makes.
var errRefused = errors.New("refused")

// answer waits for the ACK or NAK of a server, or, if that is not valid, of any.
func (c *client) answer(ctx context.Context, server netip.Addr, until <-chan time.Time) (*Lease, error) {
	for {
		p, err := c.next(ctx, until)
		if err != nil {
			return nil, err
		}
		if server.IsValid() && p.server() != server {
			continue
		}
		switch p.kind() {
		case ack:
			if lease, err := newLease(p, time.Now()); err == nil {
				return lease, nil
			}
		case nak:
			return nil, fmt.Errorf("%w by DHCP server %v%s", errRefused, p.server(), said(p))
		}
	}
}

// said returns the text of a NAK, as far as it can be shown.
func said(p *packet) string {
	text := p.option(optMessage)
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(": %.80q", text)
}

// hold renews the lease for as long as it can. It returns why it is lost.
func (c *client) hold(ctx context.Context) error {
	for {
		pause := 24 * time.Hour
		if !c.lease.Expires.IsZero() {
			pause = time.Until(c.lease.RenewAt)
		}
		confirm, err := c.box.Wait(ctx, pause)
		if err != nil {
			return err
		}
		lease := c.lease
		switch {
		case confirm:
			lease, err = c.confirm(ctx)
		case !lease.Expires.IsZero():
			lease, err = c.renew(ctx)
		}
		if err != nil {
			return err
		}
		if lease != c.lease {
			c.lease = lease
			c.Report(Event{Lease: lease})
		}
	}
}

// confirm asks whether the lease holds in the network that the carrier came back
// with. Without an answer it is used until it ends, RFC 2131 section 3.2.
func (c *client) confirm(ctx context.Context) (*Lease, error) {
	c.begin()
	lease, err := c.request(ctx, c.lease.Address.Addr(), netip.Addr{}, confirms)
	switch {
	case errors.Is(err, exchange.ErrTimeout) && (c.lease.Expires.IsZero() || time.Now().Before(c.lease.RenewAt)):
		return c.lease, nil
	case errors.Is(err, exchange.ErrTimeout):
		return c.renew(ctx)
	case err != nil:
		return nil, fmt.Errorf("%s has lost %v: %w", c.Interface, c.lease.Address, err)
	}
	return lease, nil
}

// renew asks the server of the lease, and from T2 on any, until the lease ends.
func (c *client) renew(ctx context.Context) (*Lease, error) {
	l := c.lease
	addr := l.Address.Addr()
	c.begin()
	for {
		now := time.Now()
		if !now.Before(l.Expires) {
			return nil, fmt.Errorf("%s has lost %v: DHCP server %v has not answered for %v, nor has another, and the lease is over",
				c.Interface, l.Address, l.Server, now.Sub(l.Acquired).Round(time.Second))
		}
		p := c.packet(request)
		p.ciaddr = addr
		p.parameters(c.Hostname)
		end := l.Expires
		if now.Before(l.RebindAt) {
			end = l.RebindAt
			_ = c.conn.Send(addr, l.Server, p.marshal())
		} else {
			_ = c.conn.Broadcast(addr, p.marshal())
		}
		rest := end.Sub(now)
		lease, err := c.answer(ctx, netip.Addr{}, time.After(min(rest, max(rest/2, renewDelay))))
		switch {
		case err == nil:
			return lease, nil
		case errors.Is(err, errRefused):
			return nil, fmt.Errorf("%s has lost %v: %w", c.Interface, l.Address, err)
		case !errors.Is(err, exchange.ErrTimeout):
			return nil, err
		}
	}
}

// begin begins an exchange.
func (c *client) begin() {
	c.xid = exchange.Random(c.Rand)
	c.began = time.Now()
}

func (c *client) packet(t messageType) *packet {
	p := &packet{op: opRequest, xid: c.xid, secs: uint16(min(time.Since(c.began)/time.Second, 0xffff)), chaddr: c.mac}
	p.set(optMessageType, byte(t))
	p.set(optClientID, c.ClientID...)
	return p
}

// parameters appends what DISCOVER and REQUEST have.
func (p *packet) parameters(hostname string) {
	if domain.Valid(hostname) {
		p.set(optHostname, []byte(hostname)...)
	}
	p.set(optMaxSize, binary.BigEndian.AppendUint16(nil, maxSize)...)
	// RFC 3442 wants 121 before 3.
	p.set(optParameters, optSubnetMask, optClasslessRoutes, optRouter, optDNS, optHostname, optDomain, optMTU, optNTP, optSearch,
		optLeaseTime, optRenewalTime, optRebindingTime)
}

func (p *packet) setAddr(code byte, a netip.Addr) {
	v := a.As4()
	p.set(code, v[:]...)
}

// jitter returns d and a quarter more or less.
func (c *client) jitter(d time.Duration) time.Duration { return exchange.Jitter(c.Rand, d, d/4) }

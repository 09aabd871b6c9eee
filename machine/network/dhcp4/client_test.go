package dhcp4

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	testMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	server  = netip.MustParseAddr("10.0.0.1")
	leased  = netip.MustParseAddr("10.0.0.50")
)

// A sent message, with the time since the start.
type sent struct {
	at   time.Duration
	p    *packet
	from netip.Addr
	to   netip.Addr // broadcast or the server
}

// fake is a Conn to a server that answer plays.
type fake struct {
	start   time.Time
	log     []sent
	events  []Event
	answer  func(s sent) [][]byte
	inbox   chan []byte
	broken  error
	claimed func() net.HardwareAddr
}

func (f *fake) send(from, to netip.Addr, m []byte) error {
	p, err := parse(slices.Clone(m))
	if err != nil {
		return err
	}
	s := sent{time.Since(f.start), p, from, to}
	f.log = append(f.log, s)
	if f.answer != nil {
		for _, a := range f.answer(s) {
			f.inbox <- a
		}
	}
	return nil
}

func (f *fake) Broadcast(from netip.Addr, m []byte) error { return f.send(from, broadcast, m) }
func (f *fake) Send(from, to netip.Addr, m []byte) error  { return f.send(from, to, m) }

func (f *fake) Receive(ctx context.Context) ([]byte, error) {
	select {
	case m, ok := <-f.inbox:
		if !ok {
			return nil, f.broken
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fake) Claim(context.Context, netip.Addr) (net.HardwareAddr, error) {
	if f.claimed == nil {
		return nil, nil
	}
	return f.claimed(), nil
}

// kinds returns the log as one line.
func (f *fake) kinds() string {
	var list []string
	for _, s := range f.log {
		list = append(list, s.p.kind().String())
	}
	return strings.Join(list, " ")
}

// errs returns the errors reported.
func (f *fake) errs() string {
	var list []string
	for _, e := range f.events {
		if e.Err != nil {
			list = append(list, e.Err.Error())
		}
	}
	return strings.Join(list, "\n")
}

// reply makes a server's message.
func reply(to *packet, kind messageType, lease uint32) *packet {
	p := &packet{op: opReply, xid: to.xid, chaddr: to.chaddr, yiaddr: leased}
	p.set(optMessageType, byte(kind))
	p.setAddr(optServerID, server)
	if kind != nak {
		p.set(optSubnetMask, 255, 255, 255, 0)
		p.setAddr(optRouter, server)
		p.set(optLeaseTime, byte(lease>>24), byte(lease>>16), byte(lease>>8), byte(lease))
	}
	return p
}

// good answers as a server does that has all leases for so many seconds.
func good(lease uint32) func(sent) [][]byte {
	return func(s sent) [][]byte {
		kind := ack
		if s.p.kind() == discover {
			kind = offer
		}
		return [][]byte{reply(s.p, kind, lease).marshal()}
	}
}

// run runs a client for some time, in a bubble whose clock does not wait.
func run(t *testing.T, d time.Duration, f *fake, with func(*Config)) {
	t.Helper()
	f.start, f.inbox = time.Now(), make(chan []byte, 16)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	c := Config{Interface: "eth0", Address: testMAC, Hostname: "node-1", Rand: rand.New(rand.NewPCG(1, 2)),
		Report: func(e Event) { f.events = append(f.events, e) }}
	if with != nil {
		with(&c)
	}
	if err := c.Run(ctx, f); !errors.Is(err, context.DeadlineExceeded) && f.broken == nil {
		t.Errorf("Run: %v", err)
	}
}

func TestLeaseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: good(3600)}
		run(t, 110*time.Minute, f, nil)
		if got, want := f.kinds(), "DISCOVER REQUEST REQUEST REQUEST REQUEST"; got != want {
			t.Fatalf("sent %s, want %s", got, want)
		}
		if r := f.log[1]; r.to != broadcast || r.p.server() != server || netip.AddrFrom4([4]byte(r.p.option(optRequestedIP))) != leased || !r.p.ciaddr.IsUnspecified() {
			t.Errorf("REQUEST %+v", r)
		}
		for i, at := range []time.Duration{0, 0, 30 * time.Minute, time.Hour, 90 * time.Minute} {
			if f.log[i].at != at {
				t.Errorf("message %d at %v, want %v", i, f.log[i].at, at)
			}
		}
		if r := f.log[2]; r.to != server || r.from != leased || r.p.ciaddr != leased || r.p.option(optServerID) != nil || r.p.option(optRequestedIP) != nil {
			t.Errorf("renewal %+v", r)
		}
		if len(f.events) != 4 || f.events[0].Lease == nil || f.events[0].Lease.Address != netip.MustParsePrefix("10.0.0.50/24") || f.errs() != "" {
			t.Errorf("events %+v", f.events)
		}
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		run(t, 10*time.Minute, f, nil)
		base := firstDelay
		for i := 1; i < len(f.log); i++ {
			if d := f.log[i].at - f.log[i-1].at; d < base*3/4 || d > base*5/4 || f.log[i].p.kind() != discover {
				t.Errorf("message %d, %v, after %v, want about %v", i, f.log[i].p.kind(), d, base)
			}
			base = min(2*base, lastDelay)
		}
		const silent = "no answer from any DHCP server on eth0 for "
		if want := silent + "30s\n" + silent + "1m0s\n" + silent + "2m0s\n" + silent + "4m0s\n" + silent + "8m0s"; f.errs() != want {
			t.Errorf("reported %s", f.errs())
		}
		if secs := f.log[3].p.secs; secs != uint16(f.log[3].at/time.Second) {
			t.Errorf("secs %d at %v", secs, f.log[3].at)
		}
	})
}

// Every second message is lost, and the rest comes with noise around it.
func TestLossAndNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			other := reply(s.p, offer, 3600)
			other.xid++
			stranger := reply(s.p, ack, 3600)
			stranger.chaddr[5]++
			echo := reply(s.p, offer, 3600)
			echo.op = opRequest
			huge := reply(s.p, offer, 3600)
			huge.set(224, make([]byte, 60000)...)
			nameless := reply(s.p, offer, 3600)
			nameless.options = nameless.options[:1]
			noise := [][]byte{nil, {1}, make([]byte, 1500), other.marshal(), stranger.marshal(), echo.marshal(), huge.marshal()[:9000], nameless.marshal()}
			if n++; n%2 == 1 {
				return noise
			}
			return append(noise, good(600)(s)...)
		}
		run(t, time.Minute, f, nil)
		if got, want := f.kinds(), "DISCOVER DISCOVER REQUEST REQUEST"; got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
		if last := f.events[len(f.events)-1]; last.Lease == nil {
			t.Errorf("last event %+v", last)
		}
		if !strings.Contains(f.errs(), "eth0: not a lease: the server does not say who it is") {
			t.Errorf("reported %s", f.errs())
		}
	})
}

// The server of the lease goes away. Another one knows it.
func TestRebind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := netip.MustParseAddr("10.0.0.2")
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			if s.at == 0 {
				return good(3600)(s)
			}
			if s.to == server {
				return nil
			}
			p := reply(s.p, ack, 3600)
			for i, o := range p.options {
				if o.code == optServerID {
					p.options[i].data = second.AsSlice()
				}
			}
			return [][]byte{p.marshal()}
		}
		run(t, time.Hour, f, nil)
		last := f.events[len(f.events)-1]
		if last.Lease == nil || last.Lease.Server != second || len(f.events) != 2 {
			t.Errorf("events %+v", f.events)
		}
		var at []string
		for _, s := range f.log[2:] {
			at = append(at, fmt.Sprint(s.at, " ", s.to))
		}
		// T1 30m0s, T2 52m30s: half of the rest, but at least a minute.
		want := "30m0s 10.0.0.1, 41m15s 10.0.0.1, 46m52.5s 10.0.0.1, 49m41.25s 10.0.0.1, 51m5.625s 10.0.0.1, 52m5.625s 10.0.0.1, 52m30s 255.255.255.255"
		if got := strings.Join(at, ", "); got != want {
			t.Errorf("renewals %s", got)
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			if s.at == 0 {
				return good(600)(s)
			}
			return nil
		}
		run(t, 11*time.Minute, f, nil)
		want := "eth0 has lost 10.0.0.50/24: DHCP server 10.0.0.1 has not answered for 10m0s, nor has another, and the lease is over\n" +
			"no answer from any DHCP server on eth0 for 30s"
		if f.errs() != want || f.events[1].Lease != nil {
			t.Errorf("reported %s", f.errs())
		}
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			if s.at == 0 || s.p.kind() == discover {
				return good(600)(s)
			}
			p := reply(s.p, nak, 0)
			p.set(optMessage, []byte("wrong \x1b[2Jnetwork")...)
			return [][]byte{p.marshal()}
		}
		run(t, 6*time.Minute, f, nil)
		const said = `refused by DHCP server 10.0.0.1: "wrong \x1b[2Jnetwork"`
		lines := strings.Split(f.errs(), "\n")
		if lines[0] != "eth0 has lost 10.0.0.50/24: "+said || lines[1] != said {
			t.Errorf("reported %s", f.errs())
		}
		if n := strings.Count(f.kinds(), "DISCOVER"); n < 6 || n > 9 {
			t.Errorf("%d DISCOVERs in a minute of refusals: %s", n, f.kinds())
		}
	})
}

func TestAddressInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		f := &fake{answer: good(600)}
		f.claimed = func() net.HardwareAddr {
			if tries++; tries == 1 {
				return net.HardwareAddr{2, 0, 0, 0, 0, 9}
			}
			return nil
		}
		run(t, time.Minute, f, nil)
		if got, want := f.kinds(), "DISCOVER REQUEST DECLINE DISCOVER REQUEST"; got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
		if d := f.log[2].p; d.server() != server || netip.AddrFrom4([4]byte(d.option(optRequestedIP))) != leased {
			t.Errorf("DECLINE %+v", d)
		}
		if at := f.log[3].at; at != declineDelay {
			t.Errorf("next DISCOVER at %v", at)
		}
		const want = "10.0.0.50, which DHCP server 10.0.0.1 gives to eth0, is in use by 02:00:00:00:00:09; find that machine, or take the address out of the server's pool"
		if f.errs() != want {
			t.Errorf("reported %s", f.errs())
		}
	})
}

func TestConfirm(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer messageType // 0: none
		kinds  string
		events int
		at     time.Duration // of the message after the confirmation
	}{
		{"holds", ack, "DISCOVER REQUEST REQUEST REQUEST", 3, 35 * time.Minute},
		{"silence", 0, "DISCOVER REQUEST REQUEST REQUEST REQUEST REQUEST REQUEST REQUEST", 2, 30 * time.Minute},
		{"moved", nak, "DISCOVER REQUEST REQUEST DISCOVER REQUEST", 3, 5 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{}
				f.answer = func(s sent) [][]byte {
					if s.p.option(optRequestedIP) == nil || s.p.option(optServerID) != nil || s.p.kind() == discover {
						return good(3600)(s)
					}
					if c.answer == 0 {
						return nil
					}
					return [][]byte{reply(s.p, c.answer, 3600).marshal()}
				}
				confirm := make(chan struct{}, 1)
				time.AfterFunc(5*time.Minute, func() { confirm <- struct{}{} })
				d := 40 * time.Minute
				if c.answer == nak {
					d = 30 * time.Minute
				}
				run(t, d, f, func(k *Config) { k.Confirm = confirm })
				if f.kinds() != c.kinds || len(f.events) != c.events {
					t.Fatalf("sent %s, %d events; want %s, %d", f.kinds(), len(f.events), c.kinds, c.events)
				}
				if r := f.log[2]; r.at != 5*time.Minute || r.p.option(optServerID) != nil || !r.p.ciaddr.IsUnspecified() {
					t.Errorf("confirmation %+v", r)
				}
				next := f.log[3]
				if c.answer == 0 {
					next = f.log[2+confirms]
				}
				if next.at != c.at {
					t.Errorf("next message at %v, want %v", next.at, c.at)
				}
			})
		})
	}
}

// The carrier comes back while nobody answers: no waiting for the rest of 32 s.
func TestConfirmRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		confirm := make(chan struct{}, 1)
		const back = 5 * time.Minute
		time.AfterFunc(back, func() { confirm <- struct{}{} })
		run(t, back+3*time.Second, f, func(k *Config) { k.Confirm = confirm })
		n := len(f.log)
		if first, second := f.log[n-2].at, f.log[n-1].at-back; first != back || second > 2500*time.Millisecond {
			t.Errorf("messages at %v and %v later", first, second)
		}
	})
}

func TestNoConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			if s.p.kind() == discover {
				return good(600)(s)
			}
			return nil
		}
		run(t, 2*time.Minute, f, nil)
		if got, want := f.kinds(), "DISCOVER REQUEST REQUEST REQUEST REQUEST DISCOVER"; !strings.HasPrefix(got, want) {
			t.Errorf("sent %s, want %s", got, want)
		}
		if want := "DHCP server 10.0.0.1 offers 10.0.0.50 on eth0 and does not confirm it"; !strings.HasPrefix(f.errs(), want) {
			t.Errorf("reported %s", f.errs())
		}
	})
}

func TestInfiniteLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: good(infinite)}
		run(t, 1000*time.Hour, f, nil)
		if len(f.log) != 2 || len(f.events) != 1 || !f.events[0].Lease.Expires.IsZero() {
			t.Errorf("sent %s", f.kinds())
		}
	})
}

func TestBrokenConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{broken: errors.New("receive on eth0: no such device"), inbox: make(chan []byte)}
		f.start = time.Now()
		close(f.inbox)
		err := Config{Interface: "eth0", Address: testMAC, Report: func(Event) {}}.Run(t.Context(), f)
		if !errors.Is(err, f.broken) {
			t.Errorf("Run: %v", err)
		}
		err = Config{Interface: "ib0", Address: make(net.HardwareAddr, 20)}.Run(t.Context(), f)
		if err == nil || !strings.HasPrefix(err.Error(), "DHCP needs an Ethernet address of 6 bytes, not ") {
			t.Errorf("Run: %v", err)
		}
	})
}

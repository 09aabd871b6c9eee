//go:build linux

package network

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/kilnhq/kiln/machine/network/dhcp4"
	"github.com/kilnhq/kiln/machine/network/dhcp6"
	"github.com/kilnhq/kiln/machine/network/ndp"
)

// retry is the wait after a client's socket failed.
const retry = 5 * time.Second

// A lane is a link with the clients that run on it.
type lane struct {
	name  string
	index int
	mac   net.HardwareAddr
	ctx   context.Context
	stop  context.CancelFunc

	v4, v6, ra *task // nil: does not run
	inform     bool  // v6 asks for no address

	lease4       *dhcp4.Lease
	lease6       *dhcp6.Lease
	advertised   map[netip.Addr]ndp.Advertisement // by router
	at           map[netip.Addr]time.Time
	fault4       error
	fault6       error
	faultRA      error
	rank         int // order in which links got leases, from 0; -1: none
	carrier      bool
	carriers     string              // how often there was one
	claimed      map[netip.Addr]bool // static addresses that were asked for
	claimedByOne map[netip.Addr]net.HardwareAddr
}

// A task is a client that runs.
type task struct {
	cancel  context.CancelFunc
	confirm chan struct{}
}

// again tells a task that the carrier came back.
func (t *task) again() {
	if t == nil {
		return
	}
	select {
	case t.confirm <- struct{}{}:
	default:
	}
}

func (t *task) end() {
	if t != nil {
		t.cancel()
	}
}

// spawn runs f until it ends by itself or the task does, and again when it
// failed. Failures go to fail.
func (n *Network) spawn(parent context.Context, f func(ctx context.Context, confirm <-chan struct{}) error, fail func(error)) *task {
	ctx, cancel := context.WithCancel(parent)
	t := &task{cancel, make(chan struct{}, 1)}
	n.tasks.Go(func() {
		for {
			err := f(ctx, t.confirm)
			if ctx.Err() != nil {
				return
			}
			n.post(ctx, func() { fail(err) })
			select {
			case <-time.After(retry):
			case <-ctx.Done():
				return
			}
		}
	})
	return t
}

// post has the loop call f, unless the context ends before.
func (n *Network) post(ctx context.Context, f func()) {
	select {
	case n.events <- func() {
		if ctx.Err() == nil {
			f()
		}
	}:
	case <-ctx.Done():
	}
}

func (n *Network) startDHCP4(l *lane, d DHCP) {
	var id []byte
	if d.DUID {
		// RFC 4361: 255, the IAID, the DUID.
		id = append([]byte{255}, iaid(l.mac)...)
		id = append(id, n.duid(l)...)
	}
	name := ""
	if d.SendHostname {
		name = n.spec.Hostname
	}
	l.v4 = n.spawn(l.ctx, func(ctx context.Context, confirm <-chan struct{}) error {
		s, err := dhcp4.OpenSocket(l.name, l.index, l.mac)
		if err != nil {
			return err
		}
		defer s.Close()
		return dhcp4.Config{Interface: l.name, Address: l.mac, ClientID: id, Hostname: name, Confirm: confirm, Report: func(e dhcp4.Event) {
			n.post(ctx, func() { l.lease4, l.fault4 = e.Lease, e.Err })
		}}.Run(ctx, s)
	}, func(err error) { l.lease4, l.fault4 = nil, err })
}

func (n *Network) startDHCP6(l *lane, addresses bool) {
	l.inform = !addresses
	l.v6 = n.spawn(l.ctx, func(ctx context.Context, confirm <-chan struct{}) error {
		s, err := dhcp6.OpenSocket(ctx, l.name)
		if err != nil {
			return err
		}
		defer s.Close()
		return dhcp6.Config{Interface: l.name, DUID: n.duid(l), IAID: iaidNumber(l.mac), Addresses: addresses, Confirm: confirm, Report: func(e dhcp6.Event) {
			n.post(ctx, func() { l.lease6, l.fault6 = e.Lease, e.Err })
		}}.Run(ctx, s)
	}, func(err error) { l.lease6, l.fault6 = nil, err })
}

func (n *Network) startRA(l *lane) {
	l.ra = n.spawn(l.ctx, func(ctx context.Context, confirm <-chan struct{}) error {
		s, err := ndp.OpenSocket(l.name, l.index)
		if err != nil {
			return err
		}
		defer s.Close()
		return ndp.Watch(ctx, s, confirm, func(a ndp.Advertisement) {
			n.post(ctx, func() {
				l.advertised[a.Router], l.at[a.Router] = a, time.Now()
				l.faultRA = nil
			})
		})
	}, func(err error) { l.faultRA = err })
}

func (n *Network) duid(l *lane) []byte {
	if n.options.MachineID != [16]byte{} {
		return dhcp6.DUIDFromUUID(n.options.MachineID)
	}
	return dhcp6.DUIDFromMAC(l.mac)
}

// iaid returns the number of an interface that is the same after every start.
func iaid(mac net.HardwareAddr) []byte { return append(bytes.Clone(mac[:0:0]), mac[len(mac)-4:]...) }

func iaidNumber(mac net.HardwareAddr) uint32 {
	b := iaid(mac)
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// claim asks once for every static IPv4 address of a link whether another
// machine has it. The address is used all the same: somebody wanted it so.
func (n *Network) claim(l *lane, addr netip.Addr) {
	if l.claimed[addr] || len(l.mac) != 6 {
		return
	}
	l.claimed[addr] = true
	ctx := l.ctx
	n.tasks.Go(func() {
		other, err := dhcp4.Claim(ctx, l.name, l.index, l.mac, addr)
		n.post(ctx, func() {
			if err == nil && other != nil {
				l.claimedByOne[addr] = other
			}
		})
	})
}

// Package ndp reads what routers say about a network with IPv6: RFC 4861 and,
// for the name servers, RFC 8106.
//
// A router advertisement is an ICMPv6 message from a link-local address with a
// hop limit of 255, which shows that no router has passed it on:
//
//	 0  type 134, code 0, check sum (2 bytes)
//	 4  current hop limit
//	 5  flags     0x80 addresses are managed: ask DHCPv6 for one
//	              0x40 other configuration: ask DHCPv6 for name servers
//	 6  lifetime of the default route in seconds, 2 bytes; 0: not a default router
//	 8  reachable time, 12 retransmission time, in milliseconds
//	16  options   a byte of type, a byte of length in units of 8 bytes
//
// Option 25 has name servers (2 bytes reserved, 4 of lifetime in seconds,
// addresses), option 31 search domains (likewise, then names as in package
// domain). Numbers are big-endian.
//
// Linux itself makes the addresses and routes that routers advertise. Watch is
// for the rest.
package ndp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/kilnhq/kiln/machine/network/domain"
)

const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	optRDNSS = 25
	optDNSSL = 31

	headerSize = 16
	maxServers = 8
)

// An Advertisement is what a router says.
type Advertisement struct {
	Router  netip.Addr // link-local
	Managed bool       // DHCPv6 gives addresses
	Other   bool       // DHCPv6 gives the rest
	// Lifetime is how long the router can be the default one; 0: it is none.
	Lifetime time.Duration

	DNS       []netip.Addr
	DNSFor    time.Duration // 0: not any more
	Search    []string
	SearchFor time.Duration
}

// Forever is a lifetime that does not end.
const Forever = time.Duration(1<<63 - 1)

func lifetime(seconds uint32) time.Duration {
	if seconds == 0xffffffff {
		return Forever
	}
	return time.Duration(seconds) * time.Second
}

// parse reads an ICMPv6 message. Options that it does not know, and what makes
// no sense in those that it knows, is passed over.
func parse(data []byte) (Advertisement, error) {
	if len(data) < headerSize || data[0] != typeAdvertisement || data[1] != 0 {
		return Advertisement{}, fmt.Errorf("%d bytes are no router advertisement", len(data))
	}
	a := Advertisement{Managed: data[5]&0x80 != 0, Other: data[5]&0x40 != 0,
		Lifetime: time.Duration(binary.BigEndian.Uint16(data[6:])) * time.Second}
	for data = data[headerSize:]; len(data) > 0; {
		if len(data) < 2 || data[1] == 0 || len(data) < int(data[1])*8 {
			return Advertisement{}, errors.New("router advertisement ends within an option")
		}
		size := int(data[1]) * 8
		option := data[:size]
		data = data[size:]
		switch option[0] {
		case optRDNSS:
			if size >= 24 {
				a.DNSFor = lifetime(binary.BigEndian.Uint32(option[4:]))
				a.addServers(option[8:])
			}
		case optDNSSL:
			if names, err := domain.Parse(option[8:], false); err == nil && len(names) > 0 {
				a.SearchFor = lifetime(binary.BigEndian.Uint32(option[4:]))
				a.Search = append(a.Search, names...)
			}
		}
	}
	return a, nil
}

func (a *Advertisement) addServers(data []byte) {
	for ; len(data) >= 16 && len(a.DNS) < maxServers; data = data[16:] {
		s := netip.AddrFrom16([16]byte(data))
		if !s.IsUnspecified() && !s.IsMulticast() && !s.Is4In6() && !slices.Contains(a.DNS, s) {
			a.DNS = append(a.DNS, s)
		}
	}
}

// solicitation asks routers to advertise. It has no option with the hardware
// address: it may be sent before there is an address to send from.
func solicitation() []byte { return []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0} }

// A Conn sends and receives ICMPv6 on one interface.
type Conn interface {
	// Solicit sends a message to all routers.
	Solicit(message []byte) error
	// Receive returns the next message of a router, and its address.
	Receive(ctx context.Context) ([]byte, netip.Addr, error)
}

const (
	firstDelay = 4 * time.Second // RTR_SOLICITATION_INTERVAL
	lastDelay  = time.Hour       // RFC 7559
	// noAddress is the wait for the link-local address, which is not usable
	// before it is known to be nobody else's.
	noAddress = 500 * time.Millisecond
)

// Watch asks for advertisements until one comes, and reports each, until the
// context ends or the connection fails. When it receives from again, it asks
// again.
func Watch(ctx context.Context, c Conn, again <-chan struct{}, report func(Advertisement)) error {
	ctx, cancel := context.WithCancel(ctx)
	heard := make(chan Advertisement)
	failed := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed <- listen(ctx, c, heard)
	}()
	defer func() {
		cancel()
		<-done
	}()
	delay := firstDelay
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if c.Solicit(solicitation()) != nil {
				timer.Reset(noAddress)
				continue
			}
			timer.Reset(delay - delay/10 + rand.N(delay/5))
			delay = min(2*delay, lastDelay)
		case <-again:
			delay = firstDelay
			timer.Reset(0)
		case a := <-heard:
			if a.Lifetime > 0 {
				timer.Stop()
			}
			report(a)
		case err := <-failed:
			return err
		}
	}
}

func listen(ctx context.Context, c Conn, heard chan<- Advertisement) error {
	for {
		data, from, err := c.Receive(ctx)
		if err != nil {
			return err
		}
		a, err := parse(data)
		if err != nil || !from.IsLinkLocalUnicast() {
			continue
		}
		a.Router = from.WithZone("")
		select {
		case heard <- a:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

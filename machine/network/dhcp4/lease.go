package dhcp4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/network/domain"
)

const (
	// minMTU is what every host must be able to receive, RFC 791. A server that
	// says less is mistaken, or wants to hurt.
	minMTU = 576
	// minLease keeps a server from making us ask without end.
	minLease = 20 * time.Second
	// defaultLease is for servers that do not say.
	defaultLease = time.Hour

	infinite   = 0xffffffff // seconds
	maxServers = 8          // of each kind that we take
	maxRoutes  = 256

	maxWarnings = 16
)

// A Lease is what a server gives to a client. What the server says that cannot
// be is left out, and a sentence about it is in Warnings.
type Lease struct {
	Address  netip.Prefix
	Server   netip.Addr
	Routers  []netip.Addr // of the default route, best first; none if there are Routes
	Routes   []Route      // option 121; when there are any, they hold the default route too
	DNS      []netip.Addr
	NTP      []netip.Addr
	Hostname string
	Domain   string
	Search   []string
	MTU      int // 0: not said
	Duration time.Duration
	Acquired time.Time
	RenewAt  time.Time // T1
	RebindAt time.Time // T2
	Expires  time.Time // zero: never
	Warnings []string
}

// A Route leads to a network through a router, or, when the router is
// unspecified, says that the network is on the link.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// errNoLease says that an OFFER or ACK is not one.
var errNoLease = errors.New("not a lease")

// newLease reads an OFFER or ACK that arrived at a time.
func newLease(p *packet, now time.Time) (*Lease, error) {
	l := &Lease{Server: p.server(), Acquired: now}
	if !l.Server.IsValid() {
		return nil, fmt.Errorf("%w: the server does not say who it is", errNoLease)
	}
	if !unicast(p.yiaddr) {
		return nil, fmt.Errorf("%w: DHCP server %v gives %v, which is no address of a host", errNoLease, l.Server, p.yiaddr)
	}
	l.Address = netip.PrefixFrom(p.yiaddr, l.mask(p))
	l.times(p)
	l.Routers = l.addresses(p, optRouter, "router", func(a netip.Addr) bool { return unicast(a) && a != p.yiaddr })
	l.DNS = l.addresses(p, optDNS, "DNS server", func(a netip.Addr) bool { return unicast(a) || a.IsLoopback() })
	l.NTP = l.addresses(p, optNTP, "NTP server", unicast)
	l.routes(p)
	l.names(p)
	if d := p.option(optMTU); len(d) == 2 {
		if mtu := int(binary.BigEndian.Uint16(d)); mtu >= minMTU {
			l.MTU = mtu
		} else {
			l.warn("an MTU of %d; it is ignored, at least %d is wanted", mtu, minMTU)
		}
	}
	return l, nil
}

func (l *Lease) warn(format string, args ...any) {
	if len(l.Warnings) == maxWarnings {
		return
	}
	l.Warnings = append(l.Warnings, fmt.Sprintf("DHCP server %v says "+format, append([]any{l.Server}, args...)...))
}

// mask returns the length of the network's prefix. With a mask that cannot be,
// nothing but the router is on the link: that works wherever there is a router.
func (l *Lease) mask(p *packet) int {
	d := p.option(optSubnetMask)
	if len(d) != 4 {
		l.warn("no mask of the network; /32 is taken")
		return 32
	}
	m := binary.BigEndian.Uint32(d)
	ones := bits.LeadingZeros32(^m)
	if ones == 0 || m<<ones != 0 {
		l.warn("the mask %d.%d.%d.%d; /32 is taken", d[0], d[1], d[2], d[3])
		return 32
	}
	return ones
}

func (l *Lease) times(p *packet) {
	seconds := func(code byte) (time.Duration, bool) {
		d := p.option(code)
		if len(d) != 4 {
			return 0, false
		}
		return time.Duration(binary.BigEndian.Uint32(d)) * time.Second, true
	}
	var ok bool
	if l.Duration, ok = seconds(optLeaseTime); !ok {
		l.warn("nothing about how long the lease lasts; %v is taken", defaultLease)
		l.Duration = defaultLease
	}
	if l.Duration == infinite*time.Second {
		l.Duration = 0
		return
	}
	if l.Duration < minLease {
		l.warn("a lease of %v; %v is taken", l.Duration, minLease)
		l.Duration = minLease
	}
	t1, ok1 := seconds(optRenewalTime)
	t2, ok2 := seconds(optRebindingTime)
	if !ok2 || t2 <= 0 || t2 >= l.Duration {
		t2 = l.Duration / 8 * 7
	}
	if !ok1 || t1 < minLease/2 || t1 >= t2 {
		t1 = min(l.Duration/2, t2)
	}
	l.RenewAt, l.RebindAt, l.Expires = l.Acquired.Add(t1), l.Acquired.Add(t2), l.Acquired.Add(l.Duration)
}

// addresses reads a list of addresses.
func (l *Lease) addresses(p *packet, code byte, what string, good func(netip.Addr) bool) []netip.Addr {
	d := p.option(code)
	if len(d)%4 != 0 {
		l.warn("a list of %ss of %d bytes; it is ignored", what, len(d))
		return nil
	}
	var list []netip.Addr
	for ; len(d) > 0 && len(list) < maxServers; d = d[4:] {
		if a := netip.AddrFrom4([4]byte(d)); good(a) {
			list = append(list, a)
		} else {
			l.warn("the %s %v; it is ignored", what, a)
		}
	}
	return list
}

// routes reads option 121, which replaces option 3 (RFC 3442).
func (l *Lease) routes(p *packet) {
	d := p.option(optClasslessRoutes)
	if len(d) == 0 {
		return
	}
	var routes []Route
	for len(d) > 0 {
		width := int(d[0])
		size := (width + 7) / 8
		if width > 32 || len(d) < 1+size+4 || len(routes) == maxRoutes {
			l.warn("classless routes that cannot be; they are ignored")
			return
		}
		var to [4]byte
		copy(to[:], d[1:1+size])
		via := netip.AddrFrom4([4]byte(d[1+size:]))
		d = d[1+size+4:]
		dst := netip.PrefixFrom(netip.AddrFrom4(to), width).Masked()
		if !via.IsUnspecified() && !unicast(via) || via == p.yiaddr {
			l.warn("the route to %v through %v; it is ignored", dst, via)
			continue
		}
		routes = append(routes, Route{dst, via})
	}
	l.Routes, l.Routers = routes, nil
}

func (l *Lease) names(p *packet) {
	name := func(code byte, what string) string {
		s := strings.TrimRight(string(p.option(code)), "\x00")
		s = strings.TrimSuffix(s, ".")
		if s != "" && !domain.Valid(s) {
			l.warn("the %s %.80q; it is ignored", what, s)
			return ""
		}
		return s
	}
	l.Hostname = name(optHostname, "host name")
	l.Domain = name(optDomain, "domain")
	search, err := domain.Parse(p.option(optSearch), true)
	if err != nil {
		l.warn("search domains that cannot be read (%v); they are ignored", err)
	}
	l.Search = search
}

// unicast says whether a can be the address of a host.
func unicast(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsLoopback() && a.As4()[0] != 0 && a.As4()[0] < 224
}

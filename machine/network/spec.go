package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/network/domain"
)

// DefaultMetric is the metric of routes from DHCP and router advertisements.
const DefaultMetric = 1024

// A Spec is what the network is to be. Without any Links it is every Ethernet
// interface that has a carrier, with whatever DHCP and router advertisements
// give it.
type Spec struct {
	Hostname  string       // empty: what DHCP says
	Resolvers []netip.Addr // empty: those of DHCP and router advertisements
	Search    []string     // likewise
	Links     []Link
}

// A Link is one interface: one that is there or, with Bond, VLAN, Bridge or
// Dummy, one that is made.
type Link struct {
	Name      string
	Match     *Match           // nil: the one with the name
	MAC       net.HardwareAddr // nil: as it is
	MTU       int              // 0: what DHCP says, of a VLAN that of the link below, or as it is
	Optional  bool             // the network is ready without it
	Addresses []netip.Prefix
	Routes    []Route
	DHCP4     bool
	DHCP6     bool // even if no router says so
	AcceptRA  bool // addresses and routes of router advertisements, and DHCPv6 as they say
	DHCP      DHCP
	Bond      *Bond
	VLAN      *VLAN
	Bridge    *Bridge
	Dummy     bool
}

// A Match finds an interface, which then gets the name of the Link. What is not
// empty must be true for it; Driver and Path may have the wildcards of
// path.Match.
type Match struct {
	MAC    net.HardwareAddr // the permanent one
	Driver string
	Path   string // of its device: 0000:00:03.0
}

// A Route leads to a network. Without Via it is on the link.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr
	Source netip.Addr
	Metric uint32 // 0: 0 for IPv4, 1024 for IPv6
	MTU    int
	OnLink bool // Via is on the link even if no address says so
}

// DHCP says what to tell servers and what of theirs to take.
type DHCP struct {
	// Metric is that of routes; 0: DefaultMetric. If two links have a route to
	// the same network, that of the second to get it has one more.
	Metric       uint32
	DUID         bool // option 61 is the DUID (RFC 4361), not the hardware address
	SendHostname bool
	UseDNS       bool
	UseNTP       bool
	UseHostname  bool
	UseRoutes    bool
}

// all takes everything.
func (DHCP) all() DHCP {
	return DHCP{SendHostname: true, UseDNS: true, UseNTP: true, UseHostname: true, UseRoutes: true}
}

// A Bond makes one link of several, as the kernel's
// Documentation/networking/bonding.rst says; so are the words.
type Bond struct {
	Members      []string
	Mode         string        // "active-backup", "802.3ad", …
	Primary      string        // one of Members, or empty
	MIIMonitor   time.Duration // 0: 100 ms
	UpDelay      time.Duration
	DownDelay    time.Duration
	MinLinks     int    // for 802.3ad
	LACPRate     string // for 802.3ad: "slow" (also if empty) or "fast"
	TransmitHash string // "layer2" (also if empty), "layer3+4", …
	Select       string // for 802.3ad: "stable" (also if empty), "bandwidth" or "count"
}

// A VLAN is the frames of a link that have a tag.
type VLAN struct {
	Link     string
	ID       int  // 1 to 4094
	Provider bool // 802.1ad instead of 802.1Q
}

// A Bridge connects links.
type Bridge struct {
	Members []string
	STP     bool
}

const (
	maxName = 15 // bytes of a name of an interface, IFNAMSIZ without the zero
	minMTU6 = 1280
)

// Check says what is wrong with s, without a look at the machine.
func (s *Spec) Check() error {
	var errs []error
	seen := map[string]bool{}
	if s.Hostname != "" && !domain.Valid(s.Hostname) {
		errs = append(errs, fmt.Errorf("host name %q is no name: letters, digits and hyphens are wanted", s.Hostname))
	}
	for _, d := range s.Search {
		if !domain.Valid(d) {
			errs = append(errs, fmt.Errorf("search domain %q is no domain name", d))
		}
	}
	for i := range s.Links {
		l := &s.Links[i]
		if seen[l.Name] {
			errs = append(errs, fmt.Errorf("link %s: there are two of this name", l.Name))
		}
		seen[l.Name] = true
		for _, err := range l.check() {
			errs = append(errs, fmt.Errorf("link %s: %w", l.Name, err))
		}
	}
	owner := map[string]string{}
	for _, l := range s.Links {
		for _, m := range l.members() {
			if !seen[m] {
				errs = append(errs, fmt.Errorf("link %s: its member %s is no link here; add one of that name", l.Name, m))
			}
			if owner[m] != "" {
				errs = append(errs, fmt.Errorf("link %s: its member %s is one of %s too", l.Name, m, owner[m]))
			}
			owner[m] = l.Name
		}
		if l.VLAN != nil && !seen[l.VLAN.Link] {
			errs = append(errs, fmt.Errorf("link %s: %s, which it is a VLAN of, is no link here; add one of that name", l.Name, l.VLAN.Link))
		}
	}
	for _, l := range s.Links {
		if s.circular(l.Name, len(s.Links)) {
			errs = append(errs, fmt.Errorf("link %s: is made of itself", l.Name))
		}
	}
	return errors.Join(errs...)
}

func (l *Link) check() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if l.Name == "" || len(l.Name) > maxName || l.Name == "." || l.Name == ".." || strings.ContainsAny(l.Name, "/: \t\n%") {
		bad("a name of 1 to %d bytes without space, / and : is wanted", maxName)
	}
	if n := l.kinds(); n > 1 {
		bad("it is a bond, a VLAN, a bridge or a dummy, not %d of them", n)
	} else if n == 1 && l.Match != nil {
		bad("it is made, and cannot be matched")
	}
	if m := l.Match; m != nil {
		if m.MAC == nil && m.Driver == "" && m.Path == "" {
			bad("match is empty")
		}
		for _, pattern := range []string{m.Driver, m.Path} {
			if _, err := path.Match(pattern, ""); err != nil {
				bad("%q is no pattern", pattern)
			}
		}
	}
	for _, a := range l.Addresses {
		if !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Is4In6() || a.Bits() == 0 {
			bad("%v is no address of a host with the length of its network's prefix", a)
		} else if a.Addr().Is6() && l.MTU != 0 && l.MTU < minMTU6 {
			bad("an MTU of %d is too small for %v, %d is the least for IPv6", l.MTU, a, minMTU6)
		}
	}
	for _, r := range l.Routes {
		if !r.To.IsValid() || r.To != r.To.Masked() {
			bad("route to %v, where a network is wanted; the bits behind its prefix must be 0", r.To)
		} else if r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4() || r.Source.IsValid() && r.Source.Is4() != r.To.Addr().Is4() {
			bad("route to %v through %v from %v mixes IPv4 and IPv6", r.To, r.Via, r.Source)
		}
	}
	if v := l.VLAN; v != nil && (v.ID < 1 || v.ID > 4094) {
		bad("VLAN %d, where 1 to 4094 are wanted", v.ID)
	}
	if b := l.Bond; b != nil {
		if _, err := b.params(); err != nil {
			errs = append(errs, err)
		}
		if b.Primary != "" && !slices.Contains(b.Members, b.Primary) {
			bad("its primary %s is not one of its members", b.Primary)
		}
	}
	return errs
}

// kinds counts what the link is at the same time.
func (l *Link) kinds() int {
	n := 0
	for _, is := range []bool{l.Bond != nil, l.VLAN != nil, l.Bridge != nil, l.Dummy} {
		if is {
			n++
		}
	}
	return n
}

// members returns the names of the links in a bond or bridge.
func (l *Link) members() []string {
	switch {
	case l.Bond != nil:
		return l.Bond.Members
	case l.Bridge != nil:
		return l.Bridge.Members
	}
	return nil
}

// lower returns the name of the link that a VLAN is of, and else nothing.
func (l *Link) lower() string {
	if l.VLAN == nil {
		return ""
	}
	return l.VLAN.Link
}

// below returns the names of the links that this one is made of.
func (l *Link) below() []string {
	if l.VLAN != nil {
		return []string{l.VLAN.Link}
	}
	return l.members()
}

func (s *Spec) link(name string) *Link {
	for i := range s.Links {
		if s.Links[i].Name == name {
			return &s.Links[i]
		}
	}
	return nil
}

// circular says whether a way down from a link is longer than there are links.
func (s *Spec) circular(name string, depth int) bool {
	if depth < 0 {
		return true
	}
	l := s.link(name)
	if l == nil {
		return false
	}
	for _, b := range l.below() {
		if s.circular(b, depth-1) {
			return true
		}
	}
	return false
}

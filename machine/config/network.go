package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

// maxLinkName is IFNAMSIZ without the zero byte.
const maxLinkName = 15

// minMTU6 is the least MTU of IPv6 (RFC 8200, section 5).
const minMTU6 = 1280

// NewLink returns a link with a name of which all else is as if not said.
func NewLink(name string) Link {
	return Link{Name: name, AcceptRA: true, DHCP: DHCP{RouteMetric: 1024, ClientID: ClientIDMAC,
		SendHostname: true, UseDNS: true, UseNTP: true, UseHostname: true, UseRoutes: true}}
}

// isLinkName reports whether the kernel takes s as the name of an interface, and
// not as a template for one.
func isLinkName(s string) bool {
	return s != "" && len(s) <= maxLinkName && s != "." && s != ".." && s != "all" && s != "default" &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) })
}

func (l *Link) check(doc *strictyaml.Document) {
	if !isLinkName(l.Name) {
		doc.Add("name", "%q, want the name of an interface: 1 to %d bytes without '/', ':', '%%' and spaces, not all or default", l.Name, maxLinkName)
	}
	made := l.made()
	if len(made) > 1 {
		doc.Add("name", "more than one of bond, vlan, bridge and dummy, want one")
	}
	if m := l.Match; m != nil {
		switch {
		case *m == LinkMatch{}:
			doc.Add("match", "empty, want mac, driver or path")
		case len(made) > 0:
			doc.Add("match", "next to %s, want it for interfaces that are there only", made[0])
		}
		if !isPrintable(m.Driver) || !isPrintable(m.Path) {
			doc.Add("match", "control characters in driver or path, want none")
		}
	}
	if l.MAC != "" && isGroupMAC(l.MAC) {
		doc.Add("mac", "%q is the address of a group, want that of one interface", l.MAC)
	}
	l.checkAddresses(doc)
	for i := range l.Routes {
		l.checkRoute(doc, item("routes", i), &l.Routes[i])
	}
	if l.Bond != nil {
		l.Bond.check(doc)
	}
	if l.VLAN != nil && l.VLAN.Link == l.Name {
		doc.Add("vlan.link", "the link itself, want the one below")
	}
}

// made returns what the link is, unless it is an interface that is there.
func (l *Link) made() (what []string) {
	for _, kind := range []struct {
		name string
		is   bool
	}{{"bond", l.Bond != nil}, {"vlan", l.VLAN != nil}, {"bridge", l.Bridge != nil}, {"dummy", l.Dummy}} {
		if kind.is {
			what = append(what, kind.name)
		}
	}
	return what
}

func isGroupMAC(a HardwareAddr) bool {
	return strings.ContainsAny(string(a[1]), "13579bdf")
}

func (l *Link) checkAddresses(doc *strictyaml.Document) {
	for i, p := range l.Addresses {
		where := item("addresses", i)
		switch {
		case !isUnicast(p.Addr()):
			doc.Add(where, "%v, want an address that a machine can have", p)
		case p.Bits() == 0:
			doc.Add(where, "%v, want a prefix length of at least 1", p)
		case p.Addr().Is4() && p.Bits() < 31 && p.Masked() == p:
			doc.Add(where, "%v is the network, want the address of the node in it", p)
		case p.Addr().Is4() && p.Bits() < 31 && isBroadcast(p):
			doc.Add(where, "%v is the broadcast address, want that of the node", p)
		case p.Addr().Is6() && l.MTU != 0 && l.MTU < minMTU6:
			doc.Add("mtu", "%d, want at least %d for IPv6", l.MTU, minMTU6)
		}
	}
}

// isBroadcast reports whether all bits of the host are set.
func isBroadcast(p netip.Prefix) bool {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		if a[i/8]&(0x80>>(i%8)) == 0 {
			return false
		}
	}
	return true
}

func (l *Link) checkRoute(doc *strictyaml.Document, where string, r *Route) {
	switch {
	case !r.To.IsValid() && !r.Via.IsValid():
		doc.Add(where, "neither to nor via, want a destination, a gateway or both")
		return
	case r.To.IsValid() && r.To != r.To.Masked():
		doc.Add(where+".to", "%v has bits of a host, want %v", r.To, r.To.Masked())
	case r.To.IsValid() && (r.To.Addr().Is4In6() || r.To.Addr().IsMulticast()):
		doc.Add(where+".to", "%v, want a network of IPv4 or IPv6", r.To)
	}
	to := r.Destination()
	if r.Source.IsValid() && (!isUnicast(r.Source) || r.Source.Zone() != "") {
		doc.Add(where+".source", "%v, want an address of the node", r.Source)
	} else if r.Source.IsValid() && r.Source.Is4() != to.Addr().Is4() {
		doc.Add(where+".source", "%v is %s, the destination %v %s; want one family", r.Source, family(r.Source), to, family(to.Addr()))
	}
	if r.MTU != 0 && r.MTU < minMTU6 && to.Addr().Is6() {
		doc.Add(where+".mtu", "%d, want at least %d for IPv6", r.MTU, minMTU6)
	}
	if !r.Via.IsValid() {
		return
	}
	switch {
	case !isUnicast(r.Via) || r.Via.Zone() != "":
		doc.Add(where+".via", "%v, want the address of a gateway, without zone", r.Via)
	case r.To.IsValid() && r.To.Addr().Is4() != r.Via.Is4():
		doc.Add(where+".via", "%v is %s, the destination %v %s; want one family", r.Via, family(r.Via), r.To, family(r.To.Addr()))
	case l.has(r.Via):
		doc.Add(where+".via", "%v is an address of the link itself, want that of a gateway", r.Via)
	case !r.OnLink && !l.mayReach(r.Via) && !doc.Bad("addresses"):
		doc.Add(where+".via", "%v is in no network of the link's addresses, want one that is, or onLink: true", r.Via)
	}
}

// Destination returns To, or the default route of the gateway's family.
func (r *Route) Destination() netip.Prefix {
	switch {
	case r.To.IsValid():
		return r.To
	case r.Via.Is4():
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func (l *Link) has(a netip.Addr) bool {
	for _, p := range l.Addresses {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

// mayReach reports whether a is in a network that the link has, or may learn of.
func (l *Link) mayReach(a netip.Addr) bool {
	if a.Is4() && l.DHCP4 || a.Is6() && (l.DHCP6 || l.AcceptRA || a.IsLinkLocalUnicast()) {
		return true
	}
	for _, p := range l.Addresses {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func (b *Bond) check(doc *strictyaml.Document) {
	in := map[string]bool{}
	for i, m := range b.Members {
		if in[m] {
			doc.Add(item("bond.members", i), "%q again", m)
		}
		in[m] = true
	}
	within(doc, "bond.miiMonitor", b.MIIMonitor, time.Millisecond, time.Minute)
	for _, d := range []struct {
		key   string
		value Duration
	}{{"upDelay", b.UpDelay}, {"downDelay", b.DownDelay}} {
		within(doc, "bond."+d.key, d.value, 0, time.Hour)
		if b.MIIMonitor > 0 && d.value%b.MIIMonitor != 0 {
			doc.Add("bond."+d.key, "%v, want a multiple of miiMonitor, %v", d.value, b.MIIMonitor)
		}
	}
	only := func(key string, set bool, modes ...BondMode) {
		names := make([]string, len(modes))
		for i, m := range modes {
			names[i] = string(m)
			set = set && m != b.Mode
		}
		if set {
			doc.Add("bond."+key, "mode is %s, want it for %s only", b.Mode, strings.Join(names, ", "))
		}
	}
	only("primary", b.Primary != "", ActiveBackup, BalanceTLB, BalanceALB)
	only("minLinks", b.MinLinks != 0, LACP)
	only("lacpRate", b.LACPRate != LACPSlow, LACP)
	only("aggregatorSelect", b.AggregatorSelect != SelectStable, LACP)
	only("transmitHashPolicy", b.TransmitHash != HashLayer2, BalanceXOR, LACP, BalanceTLB)
	if b.Primary != "" && !in[b.Primary] {
		doc.Add("bond.primary", "%q is no member%s", b.Primary, spelling.Hint(b.Primary, b.Members))
	}
	if b.MinLinks > len(b.Members) {
		doc.Add("bond.minLinks", "%d of %d members", b.MinLinks, len(b.Members))
	}
}

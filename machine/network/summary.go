//go:build linux

package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/network/ndp"
)

// summary returns the Status after a pass.
func (n *Network) summary(addresses []address, routes []route) Status {
	managed := map[string]Link{}
	list := n.managed(n.r.links)
	for _, l := range list {
		managed[l.Name] = l
	}
	s := Status{Faults: slices.Clone(n.r.faults)}
	for _, k := range n.r.links {
		w, ok := managed[k.name]
		if !ok && (k.kind.typ != "" || !k.ethernet) {
			continue
		}
		l := LinkStatus{Name: k.name, Index: k.index, Kind: k.kind.typ, MAC: k.mac, Permanent: k.permanent, MTU: k.mtu,
			Managed: ok, Up: k.up, Carrier: k.carrier}
		for _, a := range addresses {
			if a.index == k.index {
				l.Addresses = append(l.Addresses, Address{a.prefix, a.tentative && !a.duplicate, a.duplicate})
			}
		}
		slices.SortFunc(l.Addresses, func(a, b Address) int { return a.Prefix.Compare(b.Prefix) })
		if lane := n.lanes[k.index]; lane != nil {
			l.DHCP4, l.DHCP6 = lane.lease4, lane.lease6
			s.Faults = append(s.Faults, n.faults(lane, l, w)...)
		}
		s.Links = append(s.Links, l)
	}
	slices.SortFunc(s.Links, func(a, b LinkStatus) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range routes {
		if r.To.Bits() == 0 {
			s.Defaults = append(s.Defaults, DefaultRoute{r.Via, n.r.name(r.index), r.Metric})
		}
	}
	slices.SortFunc(s.Defaults, func(a, b DefaultRoute) int {
		return cmp.Or(cmp.Compare(a.Via.BitLen(), b.Via.BitLen()), cmp.Compare(a.Metric, b.Metric), strings.Compare(a.Link, b.Link), a.Via.Compare(b.Via))
	})
	if n.spec != nil {
		n.ready(&s, list)
		n.names(&s, managed)
	}
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return strings.Compare(a.Link, b.Link) })
	return s
}

// faults returns what is wrong with a link.
func (n *Network) faults(l *lane, s LinkStatus, w Link) (faults []Fault) {
	add := func(text string) { faults = append(faults, Fault{l.name, text}) }
	if !l.carrier && !w.Optional && time.Since(n.since) >= carrierWait {
		add(l.name + ": no carrier; is the cable in, and the other end up?")
	}
	for _, err := range []error{l.fault4, l.fault6, l.faultRA} {
		if err != nil {
			add(err.Error())
		}
	}
	if l.lease4 != nil {
		for _, warning := range l.lease4.Warnings {
			add(l.name + ": " + warning)
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(l.claimedByOne), netip.Addr.Compare) {
		if !slices.ContainsFunc(w.Addresses, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			continue
		}
		add(fmt.Sprintf("%s: %v is in use by %v too; find that machine, or take another address", l.name, addr, l.claimedByOne[addr]))
	}
	for _, a := range s.Addresses {
		wanted := slices.Contains(w.Addresses, a.Prefix) // layer3 says so already
		if a.Duplicate && !wanted {
			add(fmt.Sprintf("%s: %v is in use by another machine", l.name, a.Prefix.Addr()))
		}
	}
	return faults
}

// ready says whether all is there that is needed.
func (n *Network) ready(s *Status, list []Link) {
	usable := map[string]bool{}
	carrier := false
	for _, l := range s.Links {
		carrier = carrier || l.Carrier
		for _, a := range l.Addresses {
			usable[l.Name] = usable[l.Name] || l.Managed && a.usable()
		}
	}
	if len(n.spec.Links) == 0 {
		s.Ready = len(usable) > 0 && slices.Contains(slices.Collect(maps.Values(usable)), true)
		switch late := time.Since(n.since) >= carrierWait; {
		case len(list) == 0 && late:
			s.Faults = append(s.Faults, Fault{Text: "there is no Ethernet interface; is the driver of the network card in the image?"})
		case !carrier && late:
			s.Faults = append(s.Faults, Fault{Text: "no Ethernet interface has a carrier; is a cable in, and its other end up?"})
		}
		return
	}
	s.Ready = true
	for _, l := range list {
		addressed := len(l.Addresses) > 0 || l.DHCP4 || l.DHCP6
		if !l.Optional && addressed && !usable[l.Name] {
			s.Ready = false
		}
	}
}

// names gathers what is not of one link: the Spec's, or that which the links
// have got, in the order in which they got it.
func (n *Network) names(s *Status, managed map[string]Link) {
	s.Hostname, s.Resolvers, s.Search = n.spec.Hostname, slices.Clone(n.spec.Resolvers), slices.Clone(n.spec.Search)
	resolvers, search := len(s.Resolvers) == 0, len(s.Resolvers) == 0 && len(s.Search) == 0
	for _, l := range n.ordered() {
		d := managed[l.name].DHCP
		dns, domains := l.resolvers()
		if d.UseDNS && resolvers {
			s.Resolvers = appendNew(s.Resolvers, dns...)
		}
		if d.UseDNS && search {
			s.Search = appendNew(s.Search, domains...)
		}
		if l.lease4 != nil && d.UseNTP {
			s.NTP = appendNew(s.NTP, l.lease4.NTP...)
		}
		if l.lease6 != nil && d.UseNTP {
			s.NTP = appendNew(s.NTP, l.lease6.NTP...)
		}
		if l.lease4 != nil && d.UseHostname && s.Hostname == "" {
			s.Hostname = l.lease4.Hostname
		}
	}
}

func appendNew[T comparable](list []T, more ...T) []T {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// resolvers returns the name servers and domains that a link has got.
func (l *lane) resolvers() (dns []netip.Addr, domains []string) {
	if l4 := l.lease4; l4 != nil {
		dns = append(dns, l4.DNS...)
		domains = append(domains, l4.Search...)
		if len(l4.Search) == 0 && l4.Domain != "" {
			domains = append(domains, l4.Domain)
		}
	}
	if l6 := l.lease6; l6 != nil {
		dns = append(dns, l6.DNS...)
		domains = append(domains, l6.Search...)
	}
	for _, router := range slices.SortedFunc(maps.Keys(l.advertised), netip.Addr.Compare) {
		a, age := l.advertised[router], time.Since(l.at[router])
		if a.DNSFor == ndp.Forever || age < a.DNSFor {
			dns = append(dns, a.DNS...)
		}
		if a.SearchFor == ndp.Forever || age < a.SearchFor {
			domains = append(domains, a.Search...)
		}
	}
	for i, a := range dns {
		if a.IsLinkLocalUnicast() && a.Is6() {
			dns[i] = a.WithZone(l.name)
		}
	}
	return dns, domains
}

// ordered returns the links in the order in which they got a lease; those
// without one come last.
func (n *Network) ordered() []*lane {
	return slices.SortedFunc(maps.Values(n.lanes), func(a, b *lane) int {
		return cmp.Or(cmp.Compare(uint(a.rank), uint(b.rank)), strings.Compare(a.name, b.name))
	})
}

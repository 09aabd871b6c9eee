package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/machine/network/dhcp4"
	"github.com/kilnhq/kiln/machine/network/dhcp6"
)

// A Status is what has become of a Spec.
type Status struct {
	// Ready says that every link that is not optional has what it needs; with
	// no links in the Spec, that one has an address.
	Ready     bool
	Hostname  string // empty: nobody has said
	Resolvers []netip.Addr
	Search    []string
	NTP       []netip.Addr // as DHCP says
	Links     []LinkStatus // those of the Spec and every Ethernet device, by name
	Defaults  []DefaultRoute
	Faults    []Fault
}

// A LinkStatus is what has become of a Link.
type LinkStatus struct {
	Name      string
	Index     int
	Kind      string // "", "bond", "vlan", "bridge", "dummy"
	MAC       net.HardwareAddr
	Permanent net.HardwareAddr // nil for those that are made
	MTU       int
	Managed   bool // the Spec says something about it
	Up        bool
	Carrier   bool
	Addresses []Address
	DHCP4     *dhcp4.Lease // nil: none
	DHCP6     *dhcp6.Lease
}

// An Address is one that the kernel uses.
type Address struct {
	Prefix    netip.Prefix
	Tentative bool // not yet
	Duplicate bool // not ever: somebody else has it
}

// A DefaultRoute is how other networks are reached.
type DefaultRoute struct {
	Via    netip.Addr // not valid: directly
	Link   string
	Metric uint32
}

// Addresses returns all that can be reached from other machines, IPv4 first and
// in the order of the links.
func (s *Status) Addresses() []netip.Addr {
	var list []netip.Addr
	for _, l := range s.Links {
		for _, a := range l.Addresses {
			if l.Managed && a.usable() {
				list = append(list, a.Prefix.Addr())
			}
		}
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return list
}

func (a Address) usable() bool {
	ip := a.Prefix.Addr()
	return !a.Tentative && !a.Duplicate && ip.IsGlobalUnicast()
}

const (
	maxResolvers = 3 // of libc
	fileMark     = "# Written by kiln from the machine configuration and DHCP.\n"
)

// ResolvConf returns the text of /etc/resolv.conf, resolv.conf(5).
func (s *Status) ResolvConf() []byte {
	var b strings.Builder
	b.WriteString(fileMark)
	for _, a := range s.Resolvers[:min(len(s.Resolvers), maxResolvers)] {
		fmt.Fprintf(&b, "nameserver %v\n", a)
	}
	if len(s.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.Search, " "))
	}
	return []byte(b.String())
}

// A Host is a line of /etc/hosts.
type Host struct {
	Addr  netip.Addr
	Names []string
}

// Hosts returns the text of /etc/hosts, hosts(5). The node's own name leads to
// its first address, so that it is reached as others reach it.
func (s *Status) Hosts(more []Host) []byte {
	list := []Host{
		{netip.AddrFrom4([4]byte{127, 0, 0, 1}), []string{"localhost"}},
		{netip.IPv6Loopback(), []string{"localhost", "ip6-localhost", "ip6-loopback"}},
		{netip.IPv6LinkLocalAllNodes(), []string{"ip6-allnodes"}},
		{netip.IPv6LinkLocalAllRouters(), []string{"ip6-allrouters"}},
	}
	if s.Hostname != "" {
		own := netip.AddrFrom4([4]byte{127, 0, 1, 1})
		if a := s.Addresses(); len(a) > 0 {
			own = a[0]
		}
		names := []string{s.Hostname}
		if short, _, ok := strings.Cut(s.Hostname, "."); ok {
			names = append(names, short)
		}
		list = append(list, Host{own, names})
	}
	var b strings.Builder
	b.WriteString(fileMark)
	for _, h := range append(list, more...) {
		fmt.Fprintf(&b, "%v %s\n", h.Addr, strings.Join(h.Names, " "))
	}
	return []byte(b.String())
}

// HostnameFile returns the text of /etc/hostname.
func (s *Status) HostnameFile() []byte {
	name, _, _ := strings.Cut(s.Hostname, ".")
	return []byte(cmp.Or(name, "localhost") + "\n")
}

package netdata

import (
	"net/netip"
	"strings"

	"github.com/kilnhq/kiln/machine/network"
)

// A one is an entry of version 1.
type one struct {
	Type    string   `yaml:"type"`
	Name    string   `yaml:"name"`
	MAC     string   `yaml:"mac_address"`
	MTU     int      `yaml:"mtu"`
	Subnets []subnet `yaml:"subnets"`
	// Of a VLAN, a bond, a name server.
	VLANLink string         `yaml:"vlan_link"`
	VLANID   int            `yaml:"vlan_id"`
	Members  words          `yaml:"bond_interfaces"`
	Params   map[string]any `yaml:"params"`
	Address  words          `yaml:"address"`
	Search   words          `yaml:"search"`
}

type subnet struct {
	Type    string `yaml:"type"`
	Address string `yaml:"address"`
	Mask    string `yaml:"netmask"`
	Gateway string `yaml:"gateway"`
	DNS     words  `yaml:"dns_nameservers"`
	Search  words  `yaml:"dns_search"`
	Routes  []struct {
		Network     string `yaml:"network"`
		Destination string `yaml:"destination"`
		Mask        string `yaml:"netmask"`
		Prefix      string `yaml:"prefix"`
		Gateway     string `yaml:"gateway"`
		Metric      uint32 `yaml:"metric"`
	} `yaml:"routes"`
}

// or returns the first text that is not empty.
func or(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func (b *builder) one(entries []one) {
	for _, e := range entries {
		var l *network.Link
		switch e.Type {
		case "physical":
			l = b.link(e.Name, e.Name, e.MAC, e.MTU)
		case "vlan":
			l = b.link(e.Name, "", "", e.MTU)
			l.VLAN = &network.VLAN{Link: b.named([]string{e.VLANLink})[0], ID: e.VLANID}
		case "bond":
			l = b.link(e.Name, "", "", e.MTU)
			mode, _ := e.Params["bond-mode"].(string)
			l.Bond = &network.Bond{Members: b.named(e.Members), Mode: or(mode, "active-backup")}
		case "nameserver":
			b.resolvers(e.Address)
			b.search(e.Search)
			continue
		default:
			continue
		}
		for _, s := range e.Subnets {
			b.subnet(l, s)
		}
	}
}

func (b *builder) subnet(l *network.Link, s subnet) {
	switch s.Type {
	case "dhcp", "dhcp4":
		l.DHCP4 = true
	case "dhcp6", "ipv6_dhcpv6-stateful":
		l.DHCP6 = true
	case "static", "static6":
		b.address(l, s.Address, s.Mask)
		if s.Gateway != "" {
			b.route(l, "default", "", s.Gateway, 0, false)
		}
	}
	for _, r := range s.Routes {
		b.route(l, or(r.Network, r.Destination), or(r.Mask, r.Prefix), r.Gateway, r.Metric, false)
	}
	b.resolvers(s.DNS)
	b.search(s.Search)
}

// A twoLink is a link of version 2, which has a name there.
type twoLink struct {
	Match struct {
		MAC    string `yaml:"macaddress"`
		Driver string `yaml:"driver"`
	} `yaml:"match"`
	SetName   string   `yaml:"set-name"`
	DHCP4     bool     `yaml:"dhcp4"`
	DHCP6     bool     `yaml:"dhcp6"`
	AcceptRA  *bool    `yaml:"accept-ra"`
	Optional  bool     `yaml:"optional"`
	MTU       int      `yaml:"mtu"`
	Addresses []string `yaml:"addresses"`
	Gateway4  string   `yaml:"gateway4"`
	Gateway6  string   `yaml:"gateway6"`
	Routes    []struct {
		To     string `yaml:"to"`
		Via    string `yaml:"via"`
		Metric uint32 `yaml:"metric"`
		OnLink bool   `yaml:"on-link"`
	} `yaml:"routes"`
	Nameservers struct {
		Addresses words `yaml:"addresses"`
		Search    words `yaml:"search"`
	} `yaml:"nameservers"`
	ID         int      `yaml:"id"`
	Link       string   `yaml:"link"`
	Interfaces []string `yaml:"interfaces"`
	Parameters struct {
		Mode string `yaml:"mode"`
	} `yaml:"parameters"`
}

func (b *builder) two(ethernets, bonds, vlans map[string]twoLink) {
	for _, id := range sorted(ethernets) {
		e := ethernets[id]
		l := b.link(id, e.SetName, e.Match.MAC, e.MTU)
		if e.Match.MAC == "" && e.Match.Driver != "" {
			l.Match = &network.Match{Driver: e.Match.Driver}
			l.Name = or(e.SetName, l.Name)
			b.names[id] = l.Name
		}
		b.fill(l, e)
	}
	for _, id := range sorted(bonds) {
		e := bonds[id]
		l := b.link(id, "", "", e.MTU)
		l.Bond = &network.Bond{Members: b.named(e.Interfaces), Mode: or(e.Parameters.Mode, "balance-rr")}
		b.fill(l, e)
	}
	for _, id := range sorted(vlans) {
		e := vlans[id]
		l := b.link(id, "", "", e.MTU)
		l.VLAN = &network.VLAN{Link: b.named([]string{e.Link})[0], ID: e.ID}
		b.fill(l, e)
	}
}

func (b *builder) fill(l *network.Link, e twoLink) {
	l.DHCP4, l.DHCP6, l.Optional = e.DHCP4, e.DHCP6, e.Optional
	if e.AcceptRA != nil {
		l.AcceptRA = *e.AcceptRA
	}
	for _, a := range e.Addresses {
		b.address(l, a, "")
	}
	for _, g := range []string{e.Gateway4, e.Gateway6} {
		if g != "" {
			b.route(l, "default", "", g, 0, false)
		}
	}
	for _, r := range e.Routes {
		b.route(l, r.To, "", r.Via, r.Metric, r.OnLink)
	}
	b.resolvers(e.Nameservers.Addresses)
	b.search(e.Nameservers.Search)
}

// A stackLink is a link of network_data.json, a stackNet what is on one.
type stackLink struct {
	ID       string   `yaml:"id"`
	Type     string   `yaml:"type"`
	MAC      string   `yaml:"ethernet_mac_address"`
	MTU      int      `yaml:"mtu"`
	Members  []string `yaml:"bond_links"`
	Mode     string   `yaml:"bond_mode"`
	VLANLink string   `yaml:"vlan_link"`
	VLANID   int      `yaml:"vlan_id"`
}

type stackNet struct {
	Link    string `yaml:"link"`
	Type    string `yaml:"type"`
	Address string `yaml:"ip_address"`
	Mask    string `yaml:"netmask"`
	Routes  []struct {
		Network string `yaml:"network"`
		Mask    string `yaml:"netmask"`
		Gateway string `yaml:"gateway"`
	} `yaml:"routes"`
	Services []service `yaml:"services"`
}

type service struct {
	Type    string `yaml:"type"`
	Address string `yaml:"address"`
}

func (b *builder) stack(links []stackLink, nets []stackNet, services []service) {
	for _, s := range links {
		switch s.Type {
		case "bond":
			l := b.link(s.ID, "", "", s.MTU)
			l.Bond = &network.Bond{Members: b.named(s.Members), Mode: or(s.Mode, "active-backup")}
		case "vlan":
			l := b.link(s.ID, "", "", s.MTU)
			l.VLAN = &network.VLAN{Link: b.named([]string{s.VLANLink})[0], ID: s.VLANID}
		default: // phy, and what the hypervisor has made of its own end of it
			b.link(s.ID, "", s.MAC, s.MTU)
		}
	}
	for _, n := range nets {
		var l *network.Link
		for i := range b.spec.Links {
			if b.spec.Links[i].Name == b.names[n.Link] {
				l = &b.spec.Links[i]
			}
		}
		if l == nil {
			b.bad("a network is on the link %q, which is none", n.Link)
			continue
		}
		switch n.Type {
		case "ipv4_dhcp":
			l.DHCP4 = true
		case "ipv6_dhcp", "ipv6_dhcpv6-stateful":
			l.DHCP6 = true
		case "ipv4", "ipv6":
			b.address(l, n.Address, n.Mask)
		}
		for _, r := range n.Routes {
			b.route(l, r.Network, r.Mask, r.Gateway, 0, false)
		}
		services = append(services, n.Services...)
	}
	for _, s := range services {
		if _, err := netip.ParseAddr(s.Address); strings.EqualFold(s.Type, "dns") && err == nil {
			b.resolvers([]string{s.Address})
		}
	}
}

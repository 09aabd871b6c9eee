package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/kilnhq/kiln/machine/config"
)

// FromConfig returns what a machine configuration says about the network. Its
// documents have been checked.
func FromConfig(c *config.Config) (Spec, error) {
	var s Spec
	if c.Hostname != nil {
		s.Hostname = c.Hostname.Hostname
	}
	if c.Resolver != nil {
		s.Resolvers, s.Search = c.Resolver.Nameservers, c.Resolver.Search
	}
	var errs []error
	for i := range c.Links {
		l, err := fromLink(&c.Links[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", c.Links[i].Name, err))
		}
		s.Links = append(s.Links, l)
	}
	return s, errors.Join(errs...)
}

// HostsOf returns the lines that a machine configuration adds to /etc/hosts.
func HostsOf(c *config.Config) (hosts []Host) {
	if c.Hosts != nil {
		for _, h := range c.Hosts.Entries {
			hosts = append(hosts, Host{h.Address, h.Names})
		}
	}
	return hosts
}

func fromLink(c *config.Link) (Link, error) {
	l := Link{Name: c.Name, MTU: c.MTU, Optional: c.Optional, Addresses: c.Addresses, DHCP4: c.DHCP4, DHCP6: c.DHCP6, AcceptRA: c.AcceptRA, Dummy: c.Dummy,
		DHCP: DHCP{Metric: uint32(c.DHCP.RouteMetric), DUID: c.DHCP.ClientID == config.ClientIDDUID, SendHostname: c.DHCP.SendHostname,
			UseDNS: c.DHCP.UseDNS, UseNTP: c.DHCP.UseNTP, UseHostname: c.DHCP.UseHostname, UseRoutes: c.DHCP.UseRoutes}}
	var err, err2 error
	l.MAC, err = parseMAC(c.MAC)
	if m := c.Match; m != nil {
		l.Match = &Match{Driver: m.Driver, Path: m.Path}
		l.Match.MAC, err2 = parseMAC(m.MAC)
	}
	for _, r := range c.Routes {
		l.Routes = append(l.Routes, fromRoute(r))
	}
	switch {
	case c.Bond != nil:
		b := c.Bond
		l.Bond = &Bond{Members: b.Members, Mode: string(b.Mode), Primary: b.Primary, MIIMonitor: time.Duration(b.MIIMonitor), UpDelay: time.Duration(b.UpDelay),
			DownDelay: time.Duration(b.DownDelay), MinLinks: b.MinLinks, LACPRate: string(b.LACPRate), TransmitHash: string(b.TransmitHash), Select: string(b.AggregatorSelect)}
	case c.VLAN != nil:
		l.VLAN = &VLAN{Link: c.VLAN.Link, ID: c.VLAN.ID, Provider: c.VLAN.Protocol == config.Tag8021AD}
	case c.Bridge != nil:
		l.Bridge = &Bridge{Members: c.Bridge.Members, STP: c.Bridge.STP}
	}
	return l, errors.Join(err, err2)
}

func parseMAC(a config.HardwareAddr) (net.HardwareAddr, error) {
	if a == "" {
		return nil, nil
	}
	return net.ParseMAC(string(a))
}

// fromRoute returns a route. Without a destination it is the default route, of
// its gateway's family, and so is that of one without a gateway IPv4's.
func fromRoute(r config.Route) Route {
	to := r.To
	if !to.IsValid() {
		to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Via.Is6() || r.Source.Is6() {
			to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	return Route{To: to, Via: r.Via, Source: r.Source, Metric: uint32(r.Metric), MTU: r.MTU, OnLink: r.OnLink}
}

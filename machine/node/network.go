//go:build linux

package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/network"
)

// etcDir is where the files are that are bind-mounted over those of the same names
// in /etc, which cannot be written to.
const etcDir = "/run/kiln/etc"

// etcFiles are the names; the root file system has all of them.
func etcFiles() []string { return []string{"hostname", "hosts"} }

// resolvConf is what /etc/resolv.conf is a link to.
const resolvConf = "/run/resolv.conf"

// startNetwork brings up the network that there is without a configuration.
func (n *Node) startNetwork() error {
	if err := bindEtc(); err != nil {
		n.remark("etc", "%v", err)
	}
	net, err := network.Start(network.Options{Report: n.reportNetwork, Log: func(text string) { n.event("network", "", text, nil) }})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.network = net
	n.mu.Unlock()
	return net.Apply(context.Background(), network.Spec{})
}

// bindEtc makes files of etcDir appear in /etc.
func bindEtc() error {
	if err := os.MkdirAll(etcDir, 0o755); err != nil {
		return err
	}
	for _, name := range etcFiles() {
		from, to := filepath.Join(etcDir, name), filepath.Join("/etc", name)
		data, err := os.ReadFile(to)
		if err != nil {
			return err
		}
		if err := os.WriteFile(from, data, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", from, to, err)
		}
	}
	return nil
}

// reportNetwork takes over a new state of the network.
func (n *Node) reportNetwork(s network.Status) {
	n.mu.Lock()
	old := n.status
	n.status = s
	cfg := n.config
	n.mu.Unlock()
	if s.Hostname != "" && s.Hostname != old.Hostname {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			n.remark("hostname", "%s: %v", s.Hostname, err)
		}
	}
	var more []network.Host
	if cfg != nil && cfg.Hosts != nil {
		for _, h := range cfg.Hosts.Entries {
			more = append(more, network.Host{Addr: h.Address, Names: h.Names})
		}
	}
	for name, text := range map[string][]byte{
		filepath.Join(etcDir, "hostname"): s.HostnameFile(), filepath.Join(etcDir, "hosts"): s.Hosts(more), resolvConf: s.ResolvConf(),
	} {
		// In place: these are the files that are mounted over others.
		if err := os.WriteFile(name, text, 0o644); err != nil {
			n.remark("etc", "%v", err)
		}
	}
	for _, f := range s.Faults {
		if !slices.Contains(old.Faults, f) {
			n.remark("network", "%s", f.Text)
		}
	}
	if now := s.Addresses(); !slices.Equal(now, old.Addresses()) {
		n.event("network", "addresses", fmt.Sprint(now), nil)
		n.options.Console.Note(fmt.Sprintf("network: addresses %v", now))
		if err := n.issue(); err != nil {
			n.remark("api", "%v", err)
		}
	}
	n.clock.servers()
}

// addresses returns the node's own, without loopback.
func (n *Node) addresses() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status.Addresses()
}

// awaitNetwork waits a while for an address.
func (n *Node) awaitNetwork(ctx context.Context, patience time.Duration) {
	for end := time.Now().Add(patience); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if len(n.addresses()) > 0 {
			return
		}
	}
}

// specOf is the network that a configuration wants.
func specOf(c *config.Config) network.Spec {
	var s network.Spec
	if c.Hostname != nil {
		s.Hostname = c.Hostname.Hostname
	}
	if c.Resolver != nil {
		s.Resolvers, s.Search = c.Resolver.Nameservers, c.Resolver.Search
	}
	for _, l := range c.Links {
		s.Links = append(s.Links, linkOf(l))
	}
	return s
}

func linkOf(l config.Link) network.Link {
	out := network.Link{
		Name: l.Name, MAC: hardware(l.MAC), MTU: l.MTU, Optional: l.Optional, Addresses: l.Addresses,
		DHCP4: l.DHCP4, DHCP6: l.DHCP6, AcceptRA: l.AcceptRA, Dummy: l.Dummy,
		DHCP: network.DHCP{
			Metric: uint32(l.DHCP.RouteMetric), DUID: l.DHCP.ClientID == config.ClientIDDUID, SendHostname: l.DHCP.SendHostname,
			UseDNS: l.DHCP.UseDNS, UseNTP: l.DHCP.UseNTP, UseHostname: l.DHCP.UseHostname, UseRoutes: l.DHCP.UseRoutes,
		},
	}
	if m := l.Match; m != nil {
		out.Match = &network.Match{MAC: hardware(m.MAC), Driver: m.Driver, Path: m.Path}
	}
	for _, r := range l.Routes {
		out.Routes = append(out.Routes, network.Route{To: r.To, Via: r.Via, Source: r.Source, Metric: uint32(r.Metric), MTU: r.MTU, OnLink: r.OnLink})
	}
	if b := l.Bond; b != nil {
		out.Bond = &network.Bond{
			Members: b.Members, Mode: string(b.Mode), Primary: b.Primary, MIIMonitor: time.Duration(b.MIIMonitor),
			UpDelay: time.Duration(b.UpDelay), DownDelay: time.Duration(b.DownDelay), MinLinks: b.MinLinks,
			LACPRate: string(b.LACPRate), TransmitHash: string(b.TransmitHash), Select: string(b.AggregatorSelect),
		}
	}
	if v := l.VLAN; v != nil {
		out.VLAN = &network.VLAN{ID: v.ID, Link: v.Link, Provider: v.Protocol == config.Tag8021AD}
	}
	if b := l.Bridge; b != nil {
		out.Bridge = &network.Bridge{Members: b.Members, STP: b.STP}
	}
	return out
}

// hardware returns the address, which the configuration has checked; nil for none.
func hardware(a config.HardwareAddr) net.HardwareAddr {
	mac, _ := net.ParseMAC(string(a))
	return mac
}

//go:build linux

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// has waits until a link has exactly these addresses.
func (n *node) has(link, addresses string) {
	n.t.Helper()
	eventually(n.t, link+" has "+addresses, func() error {
		if got := shown(n.t)[link].global(); got != addresses {
			return fmt.Errorf("%s has %q; faults %v", link, got, n.Status().Faults)
		}
		return nil
	})
}

// routed waits until the routes of a family are these.
func (n *node) routed(family, routes string) {
	n.t.Helper()
	eventually(n.t, "routes "+routes, func() error {
		if got := routesShown(n.t, family); got != routes {
			return fmt.Errorf("routes\n%s", got)
		}
		return nil
	})
}

// With no configuration, all links ask; the first that gets an answer has the
// default route.
func TestDHCP4(t *testing.T) {
	if !nested(t) {
		return
	}
	p := newPeer(t)
	p.cable("eth0", "srv0", "10.9.0.1/24")
	p.cable("eth1", "srv1", "10.8.0.1/24")
	first := p.dnsmasq("--interface=srv1", "--bind-interfaces", "--dhcp-range=10.8.0.50,10.8.0.60,255.255.255.0,1h", "--dhcp-option=option:ntp-server,10.8.0.123",
		"--dhcp-option=option:dns-server,10.8.0.53,10.8.0.54", "--dhcp-option=option:domain-name,example.org", "--dhcp-option=option:mtu,1400",
		"--dhcp-host=*:*:*:*:*:*,node-7", "--dhcp-option=58,10")
	n := start(t)
	n.apply(Spec{})
	eventually(t, "eth1 is ready", func() error {
		if s := n.Status(); !s.Ready {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	second := p.dnsmasq("--interface=srv0", "--bind-interfaces", "--dhcp-range=10.9.0.50,10.9.0.50,255.255.255.0,1h", "--dhcp-option=option:dns-server,10.9.0.53",
		"--dhcp-option=option:domain-search,a.example.org,b.example.org",
		"--dhcp-option=option:classless-static-route,0.0.0.0/0,10.9.0.1,10.77.0.0/16,10.9.0.77,10.78.0.0/16,0.0.0.0")
	n.has("eth0", "10.9.0.50/24")
	own := shown(t)["eth1"].global()
	src, _, _ := strings.Cut(own, "/")
	n.routed("-4", "10.77.0.0/16 via 10.9.0.77 dev eth0 proto 75 src 10.9.0.50 metric 1025\n"+
		"10.78.0.0/16 dev eth0 proto 75 scope link src 10.9.0.50 metric 1025\n"+
		"default via 10.8.0.1 dev eth1 proto 75 src "+src+" metric 1024\n"+
		"default via 10.9.0.1 dev eth0 proto 75 src 10.9.0.50 metric 1025")
	s := n.Status()
	if got := fmt.Sprint(s.Resolvers, s.Search, s.NTP, s.Hostname, s.Faults); got != "[10.8.0.53 10.8.0.54 10.9.0.53] [example.org a.example.org b.example.org] [10.8.0.123]node-7[]" {
		t.Error(got)
	}
	if shown(t)["eth1"].MTU != 1400 {
		t.Errorf("eth1 %+v", shown(t)["eth1"])
	}
	if len(s.Defaults) != 2 || s.Defaults[0] != (DefaultRoute{netip.MustParseAddr("10.8.0.1"), "eth1", 1024}) {
		t.Errorf("%+v", s.Defaults)
	}

	// Renewal at T1, 10 s, changes nothing.
	n.changes()
	before := strings.Count(first.text(), "DHCPACK(srv1)")
	eventually(t, "renewal", func() error {
		if strings.Count(first.text(), "DHCPACK(srv1)") == before {
			return errors.New("none")
		}
		return nil
	})
	if c := n.changes(); len(c) != 0 || strings.Contains(first.text(), "DHCPNAK") {
		t.Errorf("renewal changed %q", c)
	}

	// The cable moves to another network: the old lease is refused.
	second.stop()
	p.ip("link set srv0 down")
	p.ip("addr flush dev srv0")
	p.ip("addr add 10.7.0.1/24 dev srv0")
	p.ip("link set srv0 up")
	third := p.dnsmasq("--interface=srv0", "--bind-interfaces", "--dhcp-sequential-ip", "--dhcp-range=10.7.0.50,10.7.0.51,255.255.255.0,1h", "--dhcp-option=3")
	third.wait("DHCPNAK(srv0) 10.9.0.50")
	n.has("eth0", "10.7.0.50/24")
	n.routed("-4", "default via 10.8.0.1 dev eth1 proto 75 src "+src+" metric 1024")

	// A host name is told, when there is one; nothing is left without DHCP.
	n.apply(Spec{Hostname: "node-1", Links: []Link{{Name: "eth0"}, {Name: "eth1"}}})
	n.has("eth0", "")
	n.has("eth1", "")
	n.routed("-4", "")
	n.apply(Spec{Hostname: "node-1", Links: []Link{{Name: "eth0", DHCP4: true, DHCP: DHCP{SendHostname: true, DUID: true}}}})
	n.has("eth0", "10.7.0.51/24") // to the server it is another client
	third.wait("client provides name: node-1")
	if s := n.Status(); s.Hostname != "node-1" || !s.Ready {
		t.Errorf("%+v", s)
	}
}

// What servers should not say, and an address that is taken.
func TestDHCP4Faults(t *testing.T) {
	if !nested(t) {
		return
	}
	p := newPeer(t)
	p.cable("eth0", "srv0")
	other := newPeer(t)
	p.ip("link add other type veth peer name eth0 netns " + other.pid)
	for _, command := range []string{"link add br0 type bridge", "link set br0 up", "link set srv0 master br0", "link set other master br0", "link set other up", "addr add 10.9.0.1/24 dev br0"} {
		p.ip(command)
	}
	other.ip("link set eth0 up")
	other.ip("addr add 10.9.0.50/24 dev eth0")
	d := p.dnsmasq("--interface=br0", "--bind-interfaces", "--dhcp-sequential-ip", "--dhcp-range=10.9.0.50,10.9.0.51,255.255.255.0,1h",
		"--dhcp-option-force=option:mtu,68", "--dhcp-option=option:router,172.31.0.1")
	n := start(t)
	n.apply(Spec{})
	d.wait("DHCPDECLINE(br0) 10.9.0.50")
	eventually(t, "fault", func() error {
		f := n.Status().Faults
		if len(f) != 1 || !strings.HasPrefix(f[0].Text, "10.9.0.50, which DHCP server 10.9.0.1 gives to eth0, is in use by ") {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
	n.has("eth0", "10.9.0.51/24")
	n.routed("-4", "default via 172.31.0.1 dev eth0 proto 75 src 10.9.0.51 metric 1024 onlink")
	var texts []string
	for _, f := range n.Status().Faults {
		texts = append(texts, f.Text)
	}
	want := []string{"eth0: DHCP server 10.9.0.1 says an MTU of 68; it is ignored, at least 576 is wanted"}
	if !slices.Equal(texts, want) || shown(t)["eth0"].MTU != 1500 {
		t.Errorf("%q, %+v", texts, shown(t)["eth0"])
	}
}

func TestRouterAdvertisements(t *testing.T) {
	if !nested(t) {
		return
	}
	p := newPeer(t)
	p.cable("eth0", "srv0", "fd00:9::1/64")
	p.cable("eth1", "srv1", "fd00:8::1/64")
	stateful := p.dnsmasq("--interface=srv0", "--bind-interfaces", "--enable-ra", "--dhcp-range=fd00:9::100,fd00:9::1ff,64,10m", "--dhcp-option=option6:dns-server,[fd00:9::53]",
		"--dhcp-option=option6:domain-search,a.example.org", "--dhcp-option=option6:ntp-server,[fd00:9::123]")
	n := start(t)
	n.apply(Spec{Links: []Link{{Name: "eth0", DHCP4: true, AcceptRA: true, DHCP: DHCP{}.all()}}})
	eventually(t, "address of DHCPv6", func() error {
		if l := shown(t)["eth0"]; !strings.Contains(l.global(), "fd00:9::1") || !strings.Contains(l.global(), "/128") {
			return fmt.Errorf("%s; %+v", l.global(), n.Status())
		}
		return nil
	})
	stateful.wait("DHCPREPLY(srv0)")
	router := ""
	eventually(t, "status", func() error {
		s := n.Status()
		if got := fmt.Sprint(s.Resolvers, s.Search, s.NTP); got != "[fd00:9::53] [a.example.org] [fd00:9::123]" || !s.Ready || len(s.Defaults) != 1 {
			return fmt.Errorf("%s %+v", got, s)
		}
		router = s.Defaults[0].Via.String()
		return nil
	})
	// The default route is the kernel's.
	if got := routesShown(t, "-6"); !strings.Contains(got, "default via "+router+" dev eth0 proto ra metric 1024") {
		t.Errorf("routes %s", got)
	}
	// The identifier is that of the machine.
	stateful.wait("00:04:01:02:03:00")

	// Addresses of the kernel, the rest of DHCPv6.
	stateless := p.dnsmasq("--interface=srv1", "--bind-interfaces", "--enable-ra", "--dhcp-range=fd00:8::,ra-stateless,64,10m", "--dhcp-option=option6:dns-server,[fd00:8::53]",
		"--dhcp-option=option6:ntp-server,[fd00:8::123]")
	n.apply(Spec{Links: []Link{{Name: "eth1", AcceptRA: true, DHCP: DHCP{Metric: 77, UseDNS: true, UseNTP: true, UseRoutes: true}}}})
	stateless.wait("DHCPINFORMATION-REQUEST(srv1)")
	eventually(t, "address of the kernel", func() error {
		s := n.Status()
		if got := fmt.Sprint(s.Resolvers, s.NTP); got != "[fd00:8::53] [fd00:8::123]" || !s.Ready {
			return fmt.Errorf("%s %+v", got, s)
		}
		return nil
	})
	if got := shown(t)["eth1"].global(); !strings.HasPrefix(got, "fd00:8::") || !strings.HasSuffix(got, "/64") || strings.Contains(got, " ") {
		t.Errorf("eth1 has %s", got)
	}
	if got := routesShown(t, "-6"); !strings.Contains(got, "dev eth1 proto ra metric 77 ") {
		t.Errorf("routes %s", got)
	}
	if got := shown(t)["eth0"].global(); strings.Contains(got, "/128") {
		t.Errorf("eth0 has %s", got)
	}

	// Without advertisements, what they brought goes.
	n.apply(Spec{Links: []Link{{Name: "eth1", Addresses: prefixes("fd00:8::5/64")}}})
	n.has("eth1", "fd00:8::5/64")
	if got := routesShown(t, "-6"); strings.Contains(got, "dev eth1") {
		t.Errorf("routes %s", got)
	}
}

//go:build linux

package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func TestStatic(t *testing.T) {
	if !nested(t) {
		return
	}
	p := newPeer(t)
	p.cable("eth0", "srv0", "10.9.0.1/24", "10.9.0.66/24")
	p.cable("eth1", "srv1")
	p.cable("eth2", "srv2")
	n := start(t)
	addr := netip.MustParseAddr
	spec := Spec{
		Hostname:  "node-1.example.org",
		Resolvers: []netip.Addr{addr("10.9.0.1")},
		Search:    []string{"example.org"},
		Links: []Link{
			{Name: "eth0", MTU: 1400, Addresses: prefixes("10.9.0.5/24", "10.9.0.66/24", "fd00:9::5/64"), Routes: []Route{
				{To: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("10.9.0.1"), Metric: 100},
				{To: netip.MustParsePrefix("10.20.0.0/16"), Via: addr("172.31.0.1"), OnLink: true, Source: addr("10.9.0.5"), MTU: 1300},
				{To: netip.MustParsePrefix("10.30.0.0/16")},
				{To: netip.MustParsePrefix("::/0"), Via: addr("fe80::1")},
				{To: netip.MustParsePrefix("fd00:30::/32"), Via: addr("fd00:9::1"), Source: addr("fd00:9::5"), Metric: 7},
			}},
			{Name: "eth1"},
			{Name: "br0", Bridge: &Bridge{Members: []string{"eth1"}, STP: true}, Addresses: prefixes("10.10.0.5/24")},
			{Name: "eth9", Addresses: prefixes("10.11.0.5/24")},
		},
	}
	n.apply(spec)
	eventually(t, "addresses are usable", func() error {
		if s := n.Status(); len(s.Addresses()) != 4 {
			return fmt.Errorf("%v", s.Addresses())
		}
		return nil
	})
	check := func() {
		t.Helper()
		links := shown(t)
		if l := links["eth0"]; l.MTU != 1400 || l.global() != "10.9.0.5/24 10.9.0.66/24 fd00:9::5/64" {
			t.Errorf("eth0 %+v", l)
		}
		if l := links["br0"]; l.global() != "10.10.0.5/24" || links["eth1"].Master != "br0" || !slices.Contains(l.Flags, "UP") {
			t.Errorf("br0 %+v, eth1 %+v", l, links["eth1"])
		}
		if !slices.Contains(links["lo"].Flags, "UP") || slices.Contains(links["eth2"].Flags, "UP") {
			t.Errorf("lo %v, eth2 %v", links["lo"].Flags, links["eth2"].Flags)
		}
		want := "10.20.0.0/16 via 172.31.0.1 dev eth0 proto 75 src 10.9.0.5 onlink mtu 1300\n" +
			"10.30.0.0/16 dev eth0 proto 75 scope link\ndefault via 10.9.0.1 dev eth0 proto 75 metric 100"
		if got := routesShown(t, "-4"); got != want {
			t.Errorf("routes\n%s\nwant\n%s", got, want)
		}
		want = "default via fe80::1 dev eth0 proto 75 metric 1024 pref medium\n" +
			"fd00:30::/32 via fd00:9::1 dev eth0 proto 75 src fd00:9::5 metric 7 pref medium"
		if got := routesShown(t, "-6"); got != want {
			t.Errorf("routes\n%s\nwant\n%s", got, want)
		}
	}
	eventually(t, "the route from an address that was tentative", func() error {
		if got := routesShown(t, "-6"); !strings.Contains(got, "fd00:30::/32") {
			return fmt.Errorf("routes\n%s", got)
		}
		return nil
	})
	check()
	if d := ip(t, "-d link show br0"); !strings.Contains(d, "stp_state 1") {
		t.Errorf("br0 %s", d)
	}

	// Nothing to do is nothing done.
	n.changes()
	n.apply(spec)
	if c := n.changes(); len(c) != 0 {
		t.Errorf("the same again changes %q", c)
	}

	// What is broken is mended, what others make is left alone.
	ip(t, "addr add 10.9.0.77/24 dev eth0")
	ip(t, "route add 10.40.0.0/16 via 10.9.0.1")
	ip(t, "addr del 10.9.0.5/24 dev eth0")
	ip(t, "link set eth0 mtu 1500")
	ip(t, "link del br0")
	eventually(t, "mended", func() error {
		if l := shown(t); l["eth0"].MTU != 1400 || !strings.Contains(l["eth0"].global(), "10.9.0.5/24") || l["eth1"].Master != "br0" {
			return fmt.Errorf("%+v", l)
		}
		return nil
	})
	ip(t, "addr del 10.9.0.77/24 dev eth0")
	ip(t, "route del 10.40.0.0/16")
	eventually(t, "routes again", func() error {
		if got := routesShown(t, "-4"); strings.Count(got, "\n") != 2 {
			return fmt.Errorf("routes\n%s", got)
		}
		return nil
	})
	check()

	// The duplicate is known, the missing link too.
	eventually(t, "faults", func() error {
		s := n.Status()
		if s.Ready || len(s.Faults) != 2 || !strings.HasPrefix(s.Faults[0].Text, "eth0: 10.9.0.66 is in use by ") ||
			!strings.HasPrefix(s.Faults[1].Text, "eth9: there is no such link; there are [") {
			return fmt.Errorf("ready %v, faults %+v", s.Ready, s.Faults)
		}
		return nil
	})

	// A link comes later, and goes.
	p.cable("eth9", "srv9")
	eventually(t, "eth9", func() error {
		if l := shown(t)["eth9"]; l.global() != "10.11.0.5/24" || !n.Status().Ready {
			return fmt.Errorf("%+v, %v", l, n.Status().Faults)
		}
		return nil
	})
	ip(t, "link del eth9")
	eventually(t, "not ready", func() error {
		if n.Status().Ready {
			return fmt.Errorf("%+v", n.Status())
		}
		return nil
	})

	// Less.
	spec.Links = []Link{{Name: "eth0", Addresses: prefixes("10.9.0.6/24")}}
	n.apply(spec)
	links := shown(t)
	if l := links["eth0"]; l.global() != "10.9.0.6/24" {
		t.Errorf("eth0 %+v", l)
	}
	if _, ok := links["br0"]; ok {
		t.Error("br0 is still there")
	}
	if got := routesShown(t, "-4") + routesShown(t, "-6"); got != "" {
		t.Errorf("routes %s", got)
	}
	if s := n.Status(); !s.Ready || s.Hostname != "node-1.example.org" || len(s.Faults) != 0 || len(s.Links) != 1 {
		t.Errorf("status %+v", s)
	}
}

// Without a carrier for long there is a fault that says so.
func TestNoCarrier(t *testing.T) {
	if !nested(t) {
		return
	}
	p := newPeer(t)
	p.cable("eth0", "srv0")
	p.ip("link set srv0 down")
	n := start(t)
	n.apply(Spec{Links: []Link{{Name: "eth0", DHCP4: true}}})
	n.events <- func() { n.since = time.Now().Add(-carrierWait) }
	eventually(t, "fault", func() error {
		if f := n.Status().Faults; len(f) != 1 || f[0] != (Fault{"eth0", "eth0: no carrier; is the cable in, and the other end up?"}) {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
	n.apply(Spec{})
	eventually(t, "fault of all", func() error {
		if f := n.Status().Faults; len(f) != 1 || f[0].Text != "no Ethernet interface has a carrier; is a cable in, and its other end up?" {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
}

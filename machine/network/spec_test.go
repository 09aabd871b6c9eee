//go:build linux

package network

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	addr, net4 := netip.MustParseAddr, netip.MustParsePrefix
	for _, c := range []struct {
		spec Spec
		want string // joined by "; ", empty: none
	}{
		{Spec{}, ""},
		{Spec{Hostname: "node-1.example.org", Links: []Link{{Name: "eth0.5", Addresses: prefixes("10.0.0.1/24"), MTU: 1300}}}, ""},
		{Spec{Hostname: "a b", Search: []string{"x y"}}, `host name "a b" is no name: letters, digits and hyphens are wanted; search domain "x y" is no domain name`},
		{Spec{Links: []Link{{Name: "a"}, {Name: "a"}}}, "link a: there are two of this name"},
		{Spec{Links: []Link{{Name: "../a"}, {Name: strings.Repeat("a", 16)}}}, "link ../a: a name of 1 to 15 bytes without space, / and : is wanted; link aaaaaaaaaaaaaaaa: a name of 1 to 15 bytes without space, / and : is wanted"},
		{Spec{Links: []Link{{Name: "a", Dummy: true, Bridge: &Bridge{}}}}, "link a: it is a bond, a VLAN, a bridge or a dummy, not 2 of them"},
		{Spec{Links: []Link{{Name: "a", Dummy: true, Match: &Match{MAC: net.HardwareAddr{1}}}, {Name: "b", Match: &Match{}}, {Name: "c", Match: &Match{Path: "["}}}},
			"link a: it is made, and cannot be matched; link b: match is empty; link c: \"[\" is no pattern"},
		{Spec{Links: []Link{{Name: "a", Addresses: []netip.Prefix{{}, net4("0.0.0.0/24"), net4("10.0.0.1/0"), net4("ff02::1/64")}}}},
			"link a: invalid Prefix is no address of a host with the length of its network's prefix; link a: 0.0.0.0/24 is no address of a host with the length of its network's prefix; " +
				"link a: 10.0.0.1/0 is no address of a host with the length of its network's prefix; link a: ff02::1/64 is no address of a host with the length of its network's prefix"},
		{Spec{Links: []Link{{Name: "a", MTU: 1000, Addresses: prefixes("fd00::1/64")}}}, "link a: an MTU of 1000 is too small for fd00::1/64, 1280 is the least for IPv6"},
		{Spec{Links: []Link{{Name: "a", Routes: []Route{{To: net4("10.0.0.1/8")}, {To: net4("::/0"), Via: addr("10.0.0.1")}}}}},
			"link a: route to 10.0.0.1/8, where a network is wanted; the bits behind its prefix must be 0; link a: route to ::/0 through 10.0.0.1 from invalid IP mixes IPv4 and IPv6"},
		{Spec{Links: []Link{{Name: "a", VLAN: &VLAN{Link: "b", ID: 4095}}}}, "link a: VLAN 4095, where 1 to 4094 are wanted; link a: b, which it is a VLAN of, is no link here; add one of that name"},
		{Spec{Links: []Link{{Name: "a", Bond: &Bond{Members: []string{"b"}, Mode: "fast", LACPRate: "never", Primary: "c"}}}},
			`link a: bond mode "fast", where one of balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb is wanted; bond LACP rate "never", where one of slow, fast is wanted; ` +
				"link a: its primary c is not one of its members; link a: its member b is no link here; add one of that name"},
		{Spec{Links: []Link{{Name: "a", Bond: &Bond{Members: []string{"c"}}}, {Name: "b", Bridge: &Bridge{Members: []string{"c"}}}, {Name: "c"}}}, "link b: its member c is one of a too"},
		{Spec{Links: []Link{{Name: "a", VLAN: &VLAN{Link: "b", ID: 1}}, {Name: "b", Bridge: &Bridge{Members: []string{"a"}}}}}, "link a: is made of itself; link b: is made of itself"},
	} {
		got := ""
		if err := c.spec.Check(); err != nil {
			got = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		expect(t, "check", got, c.want)
	}
}

func TestFiles(t *testing.T) {
	addr := netip.MustParseAddr
	s := Status{
		Hostname:  "node-1.example.org",
		Resolvers: []netip.Addr{addr("10.0.0.53"), addr("fe80::1%eth0"), addr("fd00::53"), addr("10.0.0.54")},
		Search:    []string{"example.org", "example.net"},
		Links: []LinkStatus{
			{Name: "eth0", Managed: true, Addresses: []Address{{Prefix: netip.MustParsePrefix("fd00::5/64")}, {Prefix: netip.MustParsePrefix("fe80::5/64")}, {Prefix: netip.MustParsePrefix("10.0.0.9/24"), Duplicate: true}}},
			{Name: "eth1", Managed: true, Addresses: []Address{{Prefix: netip.MustParsePrefix("10.1.0.5/24")}}},
			{Name: "eth2", Addresses: []Address{{Prefix: netip.MustParsePrefix("10.2.0.5/24")}}},
		},
	}
	const mark = "# Written by kiln from the machine configuration and DHCP.\n"
	expect(t, "resolv.conf", string(s.ResolvConf()), mark+"nameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver fd00::53\nsearch example.org example.net\n")
	expect(t, "hostname", string(s.HostnameFile()), "node-1\n")
	const always = mark + "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
	expect(t, "hosts", string(s.Hosts([]Host{{addr("10.3.0.1"), []string{"registry.local", "registry"}}})),
		always+"10.1.0.5 node-1.example.org node-1\n10.3.0.1 registry.local registry\n")
	s = Status{}
	expect(t, "empty resolv.conf", string(s.ResolvConf()), mark)
	expect(t, "empty hostname", string(s.HostnameFile()), "localhost\n")
	expect(t, "empty hosts", string(s.Hosts(nil)), always)
	s.Hostname = "node-1"
	expect(t, "hosts without an address", string(s.Hosts(nil)), always+"127.0.1.1 node-1\n")
}

package netdata

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/network"
)

func nameOf(a net.HardwareAddr) string {
	return map[string]string{"52:54:00:00:00:01": "eth0", "52:54:00:00:00:02": "ens4"}[a.String()]
}

// describe is a Spec in a few words.
func describe(s network.Spec) string {
	var b strings.Builder
	for _, l := range s.Links {
		b.WriteString(l.Name)
		if l.Match != nil {
			fmt.Fprintf(&b, "(%v%s)", l.Match.MAC, l.Match.Driver)
		}
		for _, f := range []struct {
			is   bool
			word string
		}{{l.DHCP4, "dhcp4"}, {l.DHCP6, "dhcp6"}, {!l.AcceptRA, "no-ra"}, {l.MTU > 0, fmt.Sprintf("mtu=%d", l.MTU)}} {
			if f.is {
				b.WriteString(" " + f.word)
			}
		}
		if l.VLAN != nil {
			fmt.Fprintf(&b, " vlan=%d@%s", l.VLAN.ID, l.VLAN.Link)
		}
		if l.Bond != nil {
			fmt.Fprintf(&b, " bond=%s%v", l.Bond.Mode, l.Bond.Members)
		}
		for _, a := range l.Addresses {
			fmt.Fprintf(&b, " %v", a)
		}
		for _, r := range l.Routes {
			fmt.Fprintf(&b, " %v>%v/%d", r.To, r.Via, r.Metric)
		}
		b.WriteString("\n")
	}
	fmt.Fprint(&b, s.Resolvers, s.Search)
	return b.String()
}

const versionOne = `version: 1
config:
  - type: physical
    name: eth0
    mac_address: 52:54:00:00:00:01
    mtu: 1450
    subnets:
      - {type: static, address: 192.0.2.10, netmask: 255.255.255.0, gateway: 192.0.2.1, dns_nameservers: [192.0.2.53], dns_search: example.com,
         routes: [{network: 198.51.100.0, netmask: 255.255.255.0, gateway: 192.0.2.2, metric: 3}]}
      - {type: static6, address: 2001:db8::10/64, gateway: "2001:db8::1"}
  - {type: physical, name: lan, mac_address: "52:54:00:00:00:09", subnets: [{type: dhcp}]}
  - {type: vlan, name: eth0.7, vlan_link: eth0, vlan_id: 7, subnets: [{type: static, address: 203.0.113.5/24}]}
  - {type: loopback, name: lo}
  - {type: nameserver, address: [192.0.2.54, "2001:db8::53"], search: [lab.example.com]}
`

const versionTwo = `network:
  version: 2
  ethernets:
    first: {match: {macaddress: "52:54:00:00:00:02"}, addresses: [192.0.2.10/24, "2001:db8::10/64"], gateway4: 192.0.2.1, accept-ra: false,
      routes: [{to: default, via: "2001:db8::1", metric: 5}, {to: 198.51.100.0/24, via: 192.0.2.2}], nameservers: {addresses: [192.0.2.53], search: [example.com]}}
    eth7: {dhcp4: true, dhcp6: true, mtu: 9000}
    named: {match: {macaddress: "52:54:00:00:00:01"}, set-name: wan0, dhcp4: true}
    v: {match: {driver: virtio_net}, set-name: v0}
  bonds: {bond0: {interfaces: [eth7, named], parameters: {mode: 802.3ad}}}
  vlans: {vlan9: {id: 9, link: first, addresses: [203.0.113.5/24]}}
`

const stackData = `{"links": [
  {"id": "tap1", "type": "ovs", "ethernet_mac_address": "52:54:00:00:00:01", "mtu": 1450},
  {"id": "i2", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:09", "mtu": null},
  {"id": "v", "type": "vlan", "vlan_link": "i2", "vlan_id": 12, "vlan_mac_address": "52:54:00:00:00:09"}],
 "networks": [
  {"id": "n0", "link": "tap1", "type": "ipv4", "ip_address": "192.0.2.10", "netmask": "255.255.255.0", "network_id": "x",
   "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.0.2.1"}], "services": [{"type": "dns", "address": "192.0.2.53"}]},
  {"id": "n1", "link": "tap1", "type": "ipv6", "ip_address": "2001:db8::10", "netmask": "ffff:ffff:ffff:ffff::", "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}]},
  {"id": "n2", "link": "i2", "type": "ipv4_dhcp"}],
 "services": [{"type": "dns", "address": "192.0.2.54"}]}`

func TestParse(t *testing.T) {
	for name, c := range map[string]struct{ data, want string }{
		"version 1": {versionOne, `eth0 mtu=1450 192.0.2.10/24 2001:db8::10/64 0.0.0.0/0>192.0.2.1/0 198.51.100.0/24>192.0.2.2/3 ::/0>2001:db8::1/0
lan(52:54:00:00:00:09) dhcp4
eth0.7 vlan=7@eth0 203.0.113.5/24
[192.0.2.53 192.0.2.54 2001:db8::53] [example.com lab.example.com]`},
		"version 2": {versionTwo, `eth7 dhcp4 dhcp6 mtu=9000
ens4 no-ra 192.0.2.10/24 2001:db8::10/64 0.0.0.0/0>192.0.2.1/0 ::/0>2001:db8::1/5 198.51.100.0/24>192.0.2.2/0
wan0(52:54:00:00:00:01) dhcp4
v0(virtio_net)
bond0 bond=802.3ad[eth7 wan0]
vlan9 vlan=9@ens4 203.0.113.5/24
[192.0.2.53] [example.com]`},
		"OpenStack": {stackData, `eth0 mtu=1450 192.0.2.10/24 2001:db8::10/64 0.0.0.0/0>192.0.2.1/0 ::/0>2001:db8::1/0
net1(52:54:00:00:00:09) dhcp4
v vlan=12@net1
[192.0.2.54 192.0.2.53] []`},
	} {
		got, err := Parse([]byte(c.data), nameOf)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if g := describe(got); g != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, g, c.want)
		}
	}
}

func TestParseFaults(t *testing.T) {
	for data, want := range map[string]string{
		"":                         ErrNone.Error(),
		"{}":                       ErrNone.Error(),
		`{"links": []}`:            ErrNone.Error(),
		"version: 2\n":             ErrNone.Error(),
		"version: 3\n":             "the network's description: found version 3, want 1 or 2",
		"version: [":               "the network's description: ",
		strings.Repeat(" ", 2<<20): "2097152 bytes about the network, want at most 1048576",
		"version: 1\nconfig: [{type: physical, name: a, mac_address: x}]":                                                      `link a: "x" is no hardware address`,
		"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 192.0.2.1, netmask: 255.0.255.0}]}]": `link a: address: "255.0.255.0" is no mask of 192.0.2.1`,
		"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: x}]}]":                               "link a: address: ",
		"version: 1\nconfig: [{type: vlan, name: a, vlan_link: b, vlan_id: 5}]":                                                "link a: b, which it is a VLAN of, is no link here",
		"version: 2\nethernets: {a: {routes: [{to: 192.0.2.0/24, via: x}]}}":                                                   "link a: route: ",
		"version: 2\nethernets: {" + strings.Repeat("x", 20) + ": {}}":                                                         "a name of 1 to 15 bytes",
		`{"links": [{"id": "a", "type": "phy"}], "networks": [{"link": "b", "type": "ipv4_dhcp"}]}`:                            `a network is on the link "b", which is none`,
		"version: 2\nethernets: {a: {nameservers: {addresses: [x]}}}":                                                          `name server "x" is no address`,
	} {
		_, err := Parse([]byte(data), nameOf)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrNone) != (want == ErrNone.Error()) {
			t.Errorf("%.80q: %v, want %s", data, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{versionOne, versionTwo, stackData} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data, nameOf)
		if err == nil && s.Check() != nil {
			t.Errorf("%q is accepted and wrong", data)
		}
		if err == nil && slices.ContainsFunc(s.Links, func(l network.Link) bool { return l.Name == "" }) {
			t.Errorf("%q has a link without a name", data)
		}
	})
}

//go:build linux

package network

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/config"
)

func TestFromConfig(t *testing.T) {
	c, err := config.Parse("machine.yaml", []byte(`apiVersion: v1alpha1
kind: Hostname
hostname: node-1
---
apiVersion: v1alpha1
kind: Resolver
nameservers: [10.0.0.53]
search: [example.org]
---
apiVersion: v1alpha1
kind: Hosts
entries: [{address: 10.0.0.9, names: [registry]}]
---
apiVersion: v1alpha1
kind: Link
name: lan0
match: {mac: 52:54:00:12:34:56}
mtu: 9000
addresses: [10.0.0.5/24, "fd00::5/64"]
routes: [{via: 10.0.0.1}, {via: "fd00::1", metric: 7}]
acceptRA: false
---
apiVersion: v1alpha1
kind: Link
name: eth1
optional: true
---
apiVersion: v1alpha1
kind: Link
name: bond0
bond: {members: [eth1], mode: 802.3ad, lacpRate: fast, miiMonitor: 50ms}
---
apiVersion: v1alpha1
kind: Link
name: storage
vlan: {link: bond0, id: 5, protocol: 802.1ad}
dhcp4: true
dhcp: {clientID: duid, useDNS: false, routeMetric: 50}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
	addr := netip.MustParseAddr
	all := DHCP{}.all()
	all.Metric = DefaultMetric
	storage := all
	storage.DUID, storage.UseDNS, storage.Metric = true, false, 50
	want := Spec{Hostname: "node-1", Resolvers: []netip.Addr{addr("10.0.0.53")}, Search: []string{"example.org"}, Links: []Link{
		{Name: "bond0", AcceptRA: true, DHCP: all, Bond: &Bond{Members: []string{"eth1"}, Mode: "802.3ad", MIIMonitor: 50 * time.Millisecond, LACPRate: "fast", TransmitHash: "layer2", Select: "stable"}},
		{Name: "eth1", AcceptRA: true, DHCP: all, Optional: true},
		{Name: "lan0", DHCP: all, MTU: 9000, Match: &Match{MAC: net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}}, Addresses: prefixes("10.0.0.5/24", "fd00::5/64"),
			Routes: []Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("10.0.0.1")}, {To: netip.MustParsePrefix("::/0"), Via: addr("fd00::1"), Metric: 7}}},
		{Name: "storage", AcceptRA: true, DHCP4: true, DHCP: storage, VLAN: &VLAN{Link: "bond0", ID: 5, Provider: true}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if h := HostsOf(c); !reflect.DeepEqual(h, []Host{{addr("10.0.0.9"), []string{"registry"}}}) {
		t.Errorf("hosts %v", h)
	}
}

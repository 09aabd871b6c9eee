// Package netdata reads what platforms write about the network of a machine, for those
// without DHCP: the network-config of cloud-init in its versions 1 and 2, of which
// netplan's is the second, and the network_data.json of OpenStack.
//
// Read are interfaces, VLANs and bonds with their addresses, routes and name servers.
// What else there may be, Wi-Fi for example, is left out. Interfaces are told by their
// hardware address.
package netdata

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/machine/network"
)

// MaxSize bounds a description, in bytes, and maxLinks how many links it may have.
const (
	MaxSize  = 1 << 20
	maxLinks = 256
)

// ErrNone is returned for a description that says nothing.
var ErrNone = errors.New("no network is described")

// words are a list in YAML, or one that is written as a text.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*w = strings.Fields(strings.ReplaceAll(n.Value, ",", " "))
		return nil
	}
	var list []string
	err := n.Decode(&list)
	*w = list
	return err
}

// A description is one in any of the forms.
type description struct {
	Version   int                `yaml:"version"`
	Links     []stackLink        `yaml:"links"`
	Networks  []stackNet         `yaml:"networks"`
	Services  []service          `yaml:"services"`
	Config    []one              `yaml:"config"`
	Ethernets map[string]twoLink `yaml:"ethernets"`
	VLANs     map[string]twoLink `yaml:"vlans"`
	Bonds     map[string]twoLink `yaml:"bonds"`
}

// Parse reads a description. nameOf returns the name of the interface with a hardware
// address, "" if there is none yet: that gets one.
func Parse(data []byte, nameOf func(net.HardwareAddr) string) (network.Spec, error) {
	if len(data) > MaxSize {
		return network.Spec{}, fmt.Errorf("%d bytes about the network, want at most %d", len(data), MaxSize)
	}
	var outer struct { // as netplan has it
		Network *description `yaml:"network"`
	}
	d := &description{}
	if len(bytes.TrimSpace(data)) == 0 {
		return network.Spec{}, ErrNone
	}
	err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&outer)
	if err == nil && outer.Network != nil {
		d = outer.Network
	} else if err == nil {
		err = yaml.NewDecoder(bytes.NewReader(data)).Decode(d)
	}
	if err != nil {
		return network.Spec{}, fmt.Errorf("the network's description: %w", err)
	}
	b := builder{nameOf: nameOf, names: map[string]string{}}
	switch {
	case d.Version == 1:
		b.one(d.Config)
	case d.Version == 2:
		b.two(d.Ethernets, d.Bonds, d.VLANs)
	case d.Version == 0 && len(d.Links) > 0:
		b.stack(d.Links, d.Networks, d.Services)
	case d.Version == 0:
		return network.Spec{}, ErrNone
	default:
		b.bad("found version %d, want 1 or 2", d.Version)
	}
	if len(b.spec.Links) > maxLinks {
		b.bad("found %d links, want at most %d", len(b.spec.Links), maxLinks)
	}
	if err := errors.Join(b.errs...); err != nil {
		return network.Spec{}, fmt.Errorf("the network's description: %w", err)
	}
	if len(b.spec.Links) == 0 && len(b.spec.Resolvers) == 0 {
		return network.Spec{}, ErrNone
	}
	if err := b.spec.Check(); err != nil {
		return network.Spec{}, fmt.Errorf("the network's description: %w", err)
	}
	return b.spec, nil
}

// A builder gathers a Spec, and what is wrong.
type builder struct {
	spec   network.Spec
	errs   []error
	nameOf func(net.HardwareAddr) string
	names  map[string]string // of links, by what the description calls them
}

func (b *builder) bad(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

// link adds a link that the description calls id. With a hardware address it is the
// interface that has it; want is the name that it is to have then, if any.
func (b *builder) link(id, want, mac string, mtu int) *network.Link {
	l := network.Link{Name: id, MTU: mtu, AcceptRA: true,
		DHCP: network.DHCP{SendHostname: true, UseDNS: true, UseNTP: true, UseHostname: true, UseRoutes: true}}
	if mac != "" {
		address, err := net.ParseMAC(mac)
		if err != nil {
			b.bad("link %s: %q is no hardware address", id, mac)
		}
		l.Name = b.nameOf(address)
		if l.Name == "" || want != "" && want != l.Name {
			l.Name, l.Match = want, &network.Match{MAC: address}
			if want == "" {
				l.Name = fmt.Sprintf("net%d", len(b.spec.Links))
			}
		}
	}
	b.names[id] = l.Name
	b.spec.Links = append(b.spec.Links, l)
	return &b.spec.Links[len(b.spec.Links)-1]
}

func (b *builder) named(ids []string) []string {
	var names []string
	for _, id := range ids {
		if name, ok := b.names[id]; ok {
			id = name
		}
		names = append(names, id)
	}
	return names
}

func (b *builder) resolvers(list []string) {
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err != nil {
			b.bad("name server %q is no address", text)
		} else if !slices.Contains(b.spec.Resolvers, a) {
			b.spec.Resolvers = append(b.spec.Resolvers, a)
		}
	}
}

func (b *builder) search(list []string) {
	for _, domain := range list {
		if !slices.Contains(b.spec.Search, domain) {
			b.spec.Search = append(b.spec.Search, domain)
		}
	}
}

// prefix reads an address with the length of its prefix, or with a mask beside it.
func prefix(address, mask string) (netip.Prefix, error) {
	if address == "default" {
		address, mask = "0.0.0.0", "0"
	}
	if strings.Contains(address, "/") || mask == "" && address != "" {
		if p, err := netip.ParsePrefix(address); err == nil {
			return p, nil
		}
		a, err := netip.ParseAddr(address)
		return netip.PrefixFrom(a, a.BitLen()), err
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := strconv.Atoi(mask)
	if err != nil {
		m, e := netip.ParseAddr(mask)
		if e != nil {
			return netip.Prefix{}, fmt.Errorf("%q is no mask", mask)
		}
		ones, size := net.IPMask(m.AsSlice()).Size()
		if size != a.BitLen() {
			return netip.Prefix{}, fmt.Errorf("%q is no mask of %s", mask, address)
		}
		bits = ones
	}
	p := netip.PrefixFrom(a, bits)
	if !p.IsValid() {
		return p, fmt.Errorf("%s/%s is no address with the length of its prefix", address, mask)
	}
	return p, nil
}

func (b *builder) address(l *network.Link, address, mask string) {
	p, err := prefix(address, mask)
	if err != nil {
		b.bad("link %s: address: %w", l.Name, err)
		return
	}
	l.Addresses = append(l.Addresses, p)
}

func (b *builder) route(l *network.Link, to, mask, via string, metric uint32, onLink bool) {
	r := network.Route{Metric: metric, OnLink: onLink}
	var err error
	if via != "" {
		if r.Via, err = netip.ParseAddr(via); err != nil {
			b.bad("link %s: route: %w", l.Name, err)
			return
		}
	}
	if to == "default" && r.Via.Is6() {
		to, mask = "::", "0"
	}
	p, err := prefix(to, mask)
	if err != nil {
		b.bad("link %s: route: %w", l.Name, err)
		return
	}
	r.To = p.Masked()
	l.Routes = append(l.Routes, r)
}

func sorted[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

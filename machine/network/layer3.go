//go:build linux

package network

import (
	"fmt"
)

// layer3 makes addresses and routes what is wanted. What goes goes first, for
// the kernel refuses two routes of one metric to the same network.
func (r *reconciler) layer3(list []wanted) error {
	have, err := r.k.addresses()
	if err != nil {
		return err
	}
	haveRoutes, err := r.k.routes()
	if err != nil {
		return err
	}
	var addresses []address
	var routes []route
	for _, w := range list {
		l, ok := r.found[w.Name]
		if !ok || l.master != 0 {
			continue
		}
		for _, a := range w.addresses {
			a.index = l.index
			addresses = append(addresses, a)
		}
		for _, n := range w.routes {
			n.index = l.index
			routes = append(routes, n)
		}
	}
	stale := map[int]bool{} // links that took what routers advertised, and do no more
	for _, w := range list {
		if l, ok := r.found[w.Name]; ok && !w.routers() {
			stale[l.index] = true
		}
	}
	r.removeRoutes(haveRoutes, routes, stale)
	r.removeAddresses(have, addresses, stale)
	r.addAddresses(have, addresses)
	return r.addRoutes(haveRoutes, routes)
}

func (r *reconciler) name(index int) string {
	for _, l := range r.links {
		if l.index == index {
			return l.name
		}
	}
	return fmt.Sprintf("link %d", index)
}

// routers says whether the kernel is to listen to routers.
func (l *Link) routers() bool { return l.AcceptRA || l.DHCP6 }

func (r *reconciler) removeRoutes(have, want []route, stale map[int]bool) {
	keep := map[route]bool{}
	for _, n := range want {
		keep[n.key()] = true
	}
	for _, h := range have {
		if h.ours && !keep[h.key()] || h.ra && stale[h.index] {
			r.did(r.name(h.index), "no route "+h.String(), r.k.removeRoute(h))
		}
	}
}

// id says which address of the kernel an address is.
func (a address) id() address { return address{index: a.index, prefix: a.prefix} }

func (r *reconciler) removeAddresses(have, want []address, stale map[int]bool) {
	keep := map[address]bool{}
	for _, a := range want {
		keep[a.id()] = true
	}
	there := map[address]bool{}
	for _, a := range have {
		there[a.id()] = true
		ip := a.prefix.Addr()
		ra := !a.permanent && ip.Is6() && !ip.IsLinkLocalUnicast() && stale[a.index]
		if (r.added[a.id()] || ra) && !keep[a.id()] && r.did(r.name(a.index), "no address "+a.prefix.String(), r.k.removeAddress(a)) {
			delete(r.added, a.id())
		}
	}
	for a := range r.added {
		if !there[a] {
			delete(r.added, a)
		}
	}
}

func (r *reconciler) addAddresses(have, want []address) {
	there := map[address]address{}
	for _, a := range have {
		there[a.id()] = a
	}
	for _, a := range want {
		h, ok := there[a.id()]
		if !ok && !r.did(r.name(a.index), "address "+a.prefix.String(), r.k.addAddress(a)) {
			continue
		}
		there[a.id()] = a
		r.added[a.id()] = true
		if h.duplicate {
			r.fault(r.name(a.index), "%v is in use by another machine; find it, or take another address", a.prefix.Addr())
		}
	}
}

// addRoutes adds routes. One from an address that the kernel does not use yet
// has to wait; when it does, there is another pass.
func (r *reconciler) addRoutes(have, want []route) error {
	there := map[route]bool{}
	for _, h := range have {
		there[h.key()] = true
	}
	var addresses []address
	for _, n := range want {
		if there[n.key()] {
			continue
		}
		if n.Source.Is6() {
			if addresses == nil {
				var err error
				if addresses, err = r.k.addresses(); err != nil {
					return err
				}
			}
			if !ready(addresses, n) {
				continue
			}
		}
		r.did(r.name(n.index), "route "+n.String(), r.k.addRoute(n))
		there[n.key()] = true
	}
	return nil
}

// ready says whether the source of a route can be used.
func ready(addresses []address, n route) bool {
	for _, a := range addresses {
		if a.prefix.Addr() == n.Source && a.tentative {
			return false
		}
	}
	return true
}

// String returns the route as ip-route(8) writes it.
func (r Route) String() string {
	s := r.To.String()
	if r.To.Bits() == 0 {
		s = "default"
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

//go:build linux

// Package network makes a node's network what its configuration says: links,
// bonds, VLANs and bridges, addresses, routes, and what DHCP and router
// advertisements give.
//
// A Spec says what is wanted. Network compares it with what the kernel has, over
// rtnetlink (rtnetlink(7), and the kernel's Documentation/userspace-api/netlink),
// and changes what is different: whenever the Spec, a lease or anything in the
// kernel changes. So links may come and go at any time, and in any order. It
// takes away only what it has made itself: routes with its own protocol number,
// addresses and links that it has made. What containers' networks do is theirs.
//
// Each link has its own clients: package dhcp4, package dhcp6 and, for router
// advertisements, package ndp. IPv6's addresses and routes of advertisements
// are made by the kernel. The first link that gets a lease has the default
// route.
//
// Status says how it is, and what to write into /etc; Network writes no file.
package network

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/network/dhcp4"
	"github.com/kilnhq/kiln/machine/network/ndp"
)

const (
	// settle is how long to wait for more changes before a pass.
	settle = 20 * time.Millisecond
	// again is when to make a pass although nothing has changed: lifetimes of
	// advertisements end without a message.
	again = time.Minute
	// carrierWait is how long links get to find their carrier before it is a
	// fault.
	carrierWait = 10 * time.Second
)

// Options say how a Network works. Its zero value will do.
type Options struct {
	// MachineID identifies the machine to DHCPv6 servers; zero: the hardware
	// address of the link does.
	MachineID [16]byte
	// Report is called with every new Status, never at the same time twice. It
	// must not block for long, and must not change what it gets.
	Report func(Status)
	// Log is called for everything that is changed in the kernel.
	Log func(string)

	// device says which links are configured when the Spec has none; nil:
	// Ethernet devices. Tests have none.
	device func(link) bool
}

// A Network is one that runs. Its methods may be called at any time.
type Network struct {
	options Options
	kernel  *rtnetlink
	r       *reconciler
	ctx     context.Context
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	events  chan func()
	changed chan struct{}

	// Of the loop.
	spec    *Spec // nil: none yet
	since   time.Time
	lanes   map[int]*lane // by index
	waiting []chan<- struct{}

	mu     sync.Mutex
	status Status
}

// Start begins to take care of the network namespace of the calling thread. It
// brings the loopback interface up, and waits for Apply with the rest.
func Start(options Options) (*Network, error) {
	if options.Report == nil {
		options.Report = func(Status) {}
	}
	if options.Log == nil {
		options.Log = func(string) {}
	}
	if options.device == nil {
		options.device = func(l link) bool { return l.ethernet && l.kind.typ == "" }
	}
	k, err := openNetlink()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n := &Network{options: options, kernel: k, r: newReconciler(k), ctx: ctx, stop: stop, events: make(chan func()),
		changed: make(chan struct{}, 1), lanes: map[int]*lane{}}
	if err := watch(ctx, n.changed); err != nil {
		stop()
		k.close()
		return nil, err
	}
	n.tasks.Go(n.loop)
	return n, nil
}

// Close ends all clients. Links, addresses and routes stay as they are.
func (n *Network) Close() {
	n.stop()
	n.tasks.Wait()
	n.kernel.close()
}

// Apply makes spec what is wanted. It returns when one pass has been made; what
// could not be done then is in the Status, and is tried again.
func (n *Network) Apply(ctx context.Context, spec Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	done := make(chan struct{})
	set := func() {
		if n.spec == nil {
			n.since = time.Now()
		}
		n.spec = &spec
		n.waiting = append(n.waiting, done)
	}
	select {
	case n.events <- set:
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return n.ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return n.ctx.Err()
	}
}

// Status returns the last Status.
func (n *Network) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

// loop makes passes.
func (n *Network) loop() {
	defer func() {
		for _, l := range n.lanes {
			l.stop()
		}
	}()
	for {
		n.pass()
		for _, w := range n.waiting {
			close(w)
		}
		n.waiting = nil
		select {
		case <-n.ctx.Done():
			return
		case f := <-n.events:
			f()
		case <-n.changed:
			time.Sleep(settle)
			select {
			case <-n.changed:
			default:
			}
		case <-time.After(n.pause()):
		}
	}
}

// pause is how long to wait when nothing happens.
func (n *Network) pause() time.Duration {
	if rest := carrierWait - time.Since(n.since); n.spec != nil && rest > 0 {
		return rest + settle
	}
	return again
}

// pass makes the kernel's state that which is wanted now. A lease that is there
// already when its client starts, as after a change of the Spec, is kept, since
// lanes are by link and not by Spec.
func (n *Network) pass() {
	n.rank()
	links, err := n.kernel.links()
	if err == nil {
		err = n.r.run(n.wanted(links))
	}
	for _, c := range n.r.changes {
		n.options.Log(c)
	}
	if err == nil {
		n.manage()
		err = n.report()
	}
	if err != nil {
		n.publish(Status{Faults: []Fault{{Text: err.Error()}}})
	}
}

// managed returns the links of the Spec, or those that there are if it has none.
func (n *Network) managed(links []link) []Link {
	switch {
	case n.spec == nil:
		return nil
	case len(n.spec.Links) > 0:
		return n.spec.Links
	}
	var list []Link
	for _, l := range links {
		if n.options.device(l) && l.master == 0 {
			list = append(list, Link{Name: l.name, Optional: true, DHCP4: true, AcceptRA: true, DHCP: DHCP{}.all()})
		}
	}
	return list
}

// wanted returns what is wanted now.
func (n *Network) wanted(links []link) []wanted {
	var list []wanted
	for _, l := range n.managed(links) {
		w := wanted{Link: l, mtu: l.MTU}
		for _, a := range l.Addresses {
			w.addresses = append(w.addresses, address{prefix: a})
		}
		for _, r := range l.Routes {
			w.routes = append(w.routes, route{Route: r})
		}
		list = append(list, w)
	}
	for _, l := range n.ordered() {
		if i := slices.IndexFunc(list, func(w wanted) bool { return w.Name == l.name }); i >= 0 {
			l.add(&list[i], list)
		}
	}
	return list
}

// add adds what DHCP has given to one of list.
func (l *lane) add(w *wanted, list []wanted) {
	if l6 := l.lease6; l6 != nil && !l.inform {
		for _, a := range l6.Addresses {
			w.addresses = append(w.addresses, address{prefix: netip.PrefixFrom(a.Addr, 128), alone: true})
		}
	}
	l4 := l.lease4
	if l4 == nil {
		return
	}
	w.addresses = append(w.addresses, address{prefix: l4.Address})
	if w.mtu == 0 {
		w.mtu = l4.MTU
	}
	if !w.DHCP.UseRoutes {
		return
	}
	routes := l4.Routes
	if len(routes) == 0 && len(l4.Routers) > 0 {
		routes = []dhcp4.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l4.Routers[0]}}
	}
	metric := freeMetric(cmp.Or(w.DHCP.Metric, DefaultMetric), routes, list)
	for _, r := range routes {
		via := r.Via
		if via.IsUnspecified() {
			via = netip.Addr{}
		}
		// A router outside the network, as clouds have it, is on the link
		// nevertheless.
		w.routes = append(w.routes, route{Route: Route{To: r.To, Via: via, Source: l4.Address.Addr(), Metric: metric,
			OnLink: via.IsValid() && !l4.Address.Masked().Contains(via)}})
	}
}

// freeMetric returns the first metric from one on that no route in list to the
// same networks has: IPv4 has one route for each.
func freeMetric(metric uint32, routes []dhcp4.Route, list []wanted) uint32 {
	taken := func() bool {
		for _, w := range list {
			for _, o := range w.routes {
				if o.Metric == metric && slices.ContainsFunc(routes, func(r dhcp4.Route) bool { return r.To == o.To }) {
					return true
				}
			}
		}
		return false
	}
	for taken() {
		metric++
	}
	return metric
}

// manage starts and ends clients.
func (n *Network) manage() {
	wants := map[int]Link{}
	for _, l := range n.managed(n.r.links) {
		if found, ok := n.r.found[l.Name]; ok && found.master == 0 {
			wants[found.index] = l
		}
	}
	kernel := map[int]link{}
	for _, l := range n.r.links {
		kernel[l.index] = l
	}
	for index, l := range n.lanes {
		k, there := kernel[index]
		if _, ok := wants[index]; !ok || !there || k.name != l.name || !bytes.Equal(k.mac, l.mac) {
			l.stop()
			delete(n.lanes, index)
		}
	}
	for _, index := range slices.Sorted(maps.Keys(wants)) {
		n.manageLink(kernel[index], wants[index])
	}
}

func (n *Network) manageLink(k link, w Link) {
	l := n.lanes[k.index]
	if l == nil {
		ctx, stop := context.WithCancel(n.ctx)
		l = &lane{name: k.name, index: k.index, mac: k.mac, ctx: ctx, stop: stop, rank: -1,
			advertised: map[netip.Addr]ndp.Advertisement{}, at: map[netip.Addr]time.Time{},
			claimed: map[netip.Addr]bool{}, claimedByOne: map[netip.Addr]net.HardwareAddr{}}
		n.lanes[k.index] = l
	}
	count := n.kernel.carriers(k.name)
	back := k.carrier && (!l.carrier || l.carriers != count)
	l.carrier, l.carriers = k.carrier, count
	if !k.carrier {
		return // those that run go on: a lease does not end with a cable
	}
	if back {
		l.v4.again()
		l.v6.again()
		l.ra.again()
	}
	for _, a := range w.Addresses {
		if a.Addr().Is4() {
			n.claim(l, a.Addr())
		}
	}
	n.manageDHCP4(l, w)
	n.manageIPv6(l, w)
}

func (n *Network) manageDHCP4(l *lane, w Link) {
	switch {
	case w.DHCP4 && l.v4 == nil && len(l.mac) == 6:
		n.startDHCP4(l, w.DHCP)
	case !w.DHCP4 && l.v4 != nil:
		l.v4.end()
		l.v4, l.lease4, l.fault4 = nil, nil, nil
		n.changes()
	}
}

// rank numbers links in the order in which they got a lease.
func (n *Network) rank() {
	used := map[int]bool{}
	for _, l := range n.lanes {
		if l.lease4 == nil {
			l.rank = -1
		}
		used[l.rank] = true
	}
	for _, l := range n.lanes {
		if l.lease4 == nil || l.rank >= 0 {
			continue
		}
		l.rank = 0
		for used[l.rank] {
			l.rank++
		}
		used[l.rank] = true
	}
}

// changes asks for another pass.
func (n *Network) changes() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *Network) manageIPv6(l *lane, w Link) {
	if ra := w.routers(); ra && l.ra == nil {
		n.startRA(l)
	} else if !ra && l.ra != nil {
		l.ra.end()
		l.ra, l.faultRA = nil, nil
		clear(l.advertised)
	}
	managed, other := w.DHCP6, false
	for router, a := range l.advertised {
		if a.Lifetime > 0 && time.Since(l.at[router]) > a.Lifetime {
			continue
		}
		managed = managed || w.AcceptRA && a.Managed
		other = other || w.AcceptRA && a.Other
	}
	switch {
	case !managed && !other || l.v6 != nil && l.inform == managed:
		l.v6.end()
		l.v6, l.fault6 = nil, nil
		if l.lease6 != nil {
			l.lease6 = nil
			n.changes()
		}
	}
	if (managed || other) && l.v6 == nil && len(l.mac) == 6 {
		n.startDHCP6(l, managed)
	}
}

// report publishes how it is.
func (n *Network) report() error {
	addresses, err := n.kernel.addresses()
	if err != nil {
		return err
	}
	routes, err := n.kernel.routes()
	if err != nil {
		return err
	}
	n.publish(n.summary(addresses, routes))
	return nil
}

func (n *Network) publish(s Status) {
	n.mu.Lock()
	same := reflect.DeepEqual(s, n.status)
	n.status = s
	n.mu.Unlock()
	if !same {
		n.options.Report(s)
	}
}

//go:build linux

package network

import (
	"net"
	"net/netip"
)

// kernel is the part of Linux that a network is made with. The one of this
// package's tests is in memory.
type kernel interface {
	links() ([]link, error)
	addresses() ([]address, error)
	// routes returns those of the main table.
	routes() ([]route, error)

	create(name string, k kind) error
	remove(index int) error
	rename(index int, name string) error
	setUp(index int, up bool) error
	setMTU(index, mtu int) error
	setMAC(index int, mac net.HardwareAddr) error
	setMaster(index, master int) error // 0: none
	setPrimary(bond link, member int) error
	addAddress(a address) error
	removeAddress(a address) error
	addRoute(r route) error
	removeRoute(r route) error

	// sysctl sets a variable below /proc/sys/net, and says whether it was
	// different. One that the kernel does not have is none to set.
	sysctl(name, value string) (changed bool, err error)
	driver(link string) string
}

// A link is an interface as the kernel has it.
type link struct {
	index     int
	name      string
	kind      kind
	ethernet  bool
	mac       net.HardwareAddr
	permanent net.HardwareAddr // nil for those that are made
	mtu       int
	up        bool   // wanted to be
	carrier   bool   // and is
	master    int    // 0: none
	device    string // its bus address, empty if it has none
	primary   int    // of a bond: the member, 0: none
}

// hardware returns the address that a device keeps whatever is set.
func (l link) hardware() net.HardwareAddr {
	if l.permanent != nil {
		return l.permanent
	}
	return l.mac
}

// A kind is what makes one made link different from another. Its zero value is
// that of interfaces that are devices.
type kind struct {
	typ    string // "", "bond", "vlan", "bridge", "dummy", …
	parent int    // of a VLAN
	vlan   int
	ad     bool // 802.1ad
	stp    bool
	bond   bondParams
}

// same says whether a link of one kind need not be made again to be of another.
func (k kind) same(o kind) bool {
	k.stp = o.stp // set in place
	return k == o
}

// An address of an interface.
type address struct {
	index     int
	prefix    netip.Prefix
	alone     bool // does not make its network's route
	permanent bool // not one that runs out, as those of advertisements
	tentative bool // not yet known to be nobody else's
	duplicate bool // somebody else's
}

// A route through an interface.
type route struct {
	index int
	Route
	ours bool // made by this package
	ra   bool // made by the kernel as a router said
}

// key says which route of the kernel a route is.
func (r route) key() route {
	r.ours, r.ra, r.OnLink = false, false, false
	if r.Metric == 0 && r.To.Addr().Is6() {
		r.Metric = 1024
	}
	return r
}

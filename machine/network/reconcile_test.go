//go:build linux

package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memory is a kernel in memory.
type memory struct {
	list    []link
	addrs   []address
	rts     []route
	vars    map[string]string
	drivers map[int]string
	broken  map[string]error // by the name of a method
	next    int
}

func newMemory(names ...string) *memory {
	m := &memory{vars: map[string]string{}, drivers: map[int]string{}, broken: map[string]error{}, next: 1}
	m.list = append(m.list, link{index: 1, name: "lo", mtu: 65536})
	for _, n := range names {
		m.plug(n)
	}
	return m
}

// plug adds an Ethernet device.
func (m *memory) plug(name string) {
	m.next++
	mac := net.HardwareAddr{2, 0, 0, 0, 0, byte(m.next)}
	m.list = append(m.list, link{index: m.next, name: name, ethernet: true, mac: mac, permanent: mac, mtu: 1500, device: "0000:00:0" + string(rune('0'+m.next)) + ".0"})
}

func (m *memory) at(index int) *link {
	for i := range m.list {
		if m.list[i].index == index {
			return &m.list[i]
		}
	}
	return &link{}
}

func (m *memory) named(name string) link {
	for _, l := range m.list {
		if l.name == name {
			return l
		}
	}
	return link{}
}

func (m *memory) links() ([]link, error)        { return slices.Clone(m.list), m.broken["links"] }
func (m *memory) addresses() ([]address, error) { return slices.Clone(m.addrs), nil }
func (m *memory) routes() ([]route, error)      { return slices.Clone(m.rts), nil }
func (m *memory) driver(name string) string     { return m.drivers[m.named(name).index] }

func (m *memory) create(name string, k kind) error {
	if m.broken["create"] != nil {
		return m.broken["create"]
	}
	m.next++
	m.list = append(m.list, link{index: m.next, name: name, kind: k, ethernet: true, mac: net.HardwareAddr{6, 0, 0, 0, 0, byte(m.next)}, mtu: 1500})
	return nil
}

func (m *memory) remove(index int) error {
	for _, l := range slices.Clone(m.list) {
		if l.kind.parent == index {
			_ = m.remove(l.index)
		}
	}
	m.list = slices.DeleteFunc(m.list, func(l link) bool { return l.index == index })
	for i := range m.list {
		if m.list[i].master == index {
			m.list[i].master = 0
		}
	}
	m.addrs = slices.DeleteFunc(m.addrs, func(a address) bool { return a.index == index })
	m.rts = slices.DeleteFunc(m.rts, func(r route) bool { return r.index == index })
	return nil
}

func (m *memory) rename(index int, name string) error {
	if m.named(name).index != 0 {
		return unix.EEXIST
	}
	if m.at(index).up {
		return unix.EBUSY
	}
	m.at(index).name = name
	return nil
}

func (m *memory) setUp(index int, up bool) error {
	m.at(index).up = up
	return m.broken["setUp"]
}

func (m *memory) setMTU(index, mtu int) error {
	if m.broken["setMTU"] != nil {
		return m.broken["setMTU"]
	}
	m.at(index).mtu = mtu
	return nil
}

func (m *memory) setMAC(index int, mac net.HardwareAddr) error {
	if m.at(index).up {
		return unix.EBUSY
	}
	m.at(index).mac = mac
	return nil
}

func (m *memory) setMaster(index, master int) error {
	if m.at(master).kind.typ == "bond" && m.at(index).up {
		return errors.New("a member must be down")
	}
	m.at(index).master = master
	return nil
}

func (m *memory) setPrimary(bond link, member int) error {
	m.at(bond.index).primary = member
	return nil
}

func (m *memory) addAddress(a address) error {
	m.addrs = append(m.addrs, a)
	return nil
}

func (m *memory) removeAddress(a address) error {
	m.addrs = slices.DeleteFunc(m.addrs, func(o address) bool { return o.id() == a.id() })
	return nil
}

func (m *memory) addRoute(r route) error {
	r.ours = true
	m.rts = append(m.rts, r)
	return nil
}

func (m *memory) removeRoute(r route) error {
	m.rts = slices.DeleteFunc(m.rts, func(o route) bool { return o.key() == r.key() })
	return nil
}

func (m *memory) sysctl(name, value string) (bool, error) {
	if _, ok := m.vars[name]; !ok && strings.HasPrefix(name, "/") {
		m.vars[name] = "0"
	}
	changed := m.vars[name] != value
	m.vars[name] = value
	return changed, nil
}

// pass makes a pass, and returns what it did but for variables.
func (m *memory) pass(t *testing.T, r *reconciler, links ...Link) string {
	t.Helper()
	var list []wanted
	for _, l := range links {
		w := wanted{Link: l, mtu: l.MTU}
		for _, a := range l.Addresses {
			w.addresses = append(w.addresses, address{prefix: a})
		}
		for _, n := range l.Routes {
			w.routes = append(w.routes, route{Route: n})
		}
		list = append(list, w)
	}
	if err := (&Spec{Links: links}).Check(); err != nil {
		t.Fatal(err)
	}
	if err := r.run(list); err != nil {
		t.Fatal(err)
	}
	changes := slices.DeleteFunc(slices.Clone(r.changes), func(s string) bool { return strings.Contains(s, " = ") })
	return strings.Join(changes, "; ")
}

func faultsOf(r *reconciler) string {
	var list []string
	for _, f := range r.faults {
		list = append(list, f.Text)
	}
	return strings.Join(list, "; ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// Whatever the order in the Spec, links are made from the lowest up.
func TestReconcileBondAndVLAN(t *testing.T) {
	m := newMemory("eth0", "eth1")
	m.list[1].up, m.list[2].up = true, true
	r := newReconciler(m)
	links := []Link{
		{Name: "storage", VLAN: &VLAN{Link: "bond0", ID: 5}, MTU: 9000, Addresses: prefixes("10.5.0.1/24")},
		{Name: "bond0", MTU: 9000, Bond: &Bond{Members: []string{"eth0", "eth1"}, Mode: "active-backup", Primary: "eth1"}},
		{Name: "inner", VLAN: &VLAN{Link: "storage", ID: 6, Provider: true}},
		{Name: "eth0"}, {Name: "eth1"},
	}
	expect(t, "first", m.pass(t, r, links...), "lo: up; bond0: made, a bond; storage: made, a vlan; inner: made, a vlan; "+
		"eth0: down, to become a member of bond0; eth0: member of bond0; eth1: down, to become a member of bond0; eth1: member of bond0; "+
		"eth0: up; eth1: up; bond0: MTU 9000; bond0: up; bond0: primary eth1; storage: MTU 9000; storage: up; inner: MTU 9000; inner: up; storage: address 10.5.0.1/24")
	expect(t, "again", m.pass(t, r, links...), "")
	bond := m.named("bond0")
	if v := m.named("storage").kind; v.parent != bond.index || v.vlan != 5 || v.ad || !m.named("inner").kind.ad || bond.primary != m.named("eth1").index {
		t.Errorf("%+v", m.list)
	}
	expect(t, "sysctl", m.vars["ipv6/conf/eth0/accept_ra"]+m.vars["ipv6/conf/eth0/autoconf"], "00")

	// A bond of another mode is another bond, and so is all that is on it.
	links[1].Bond = &Bond{Members: []string{"eth0"}, Mode: "802.3ad", LACPRate: "fast", MIIMonitor: 50 * time.Millisecond, MinLinks: 1}
	got := m.pass(t, r, links...)
	for _, want := range []string{"bond0: removed, as it was another bond; bond0: made, a bond; storage: made, a vlan; inner: made, a vlan", "eth0: member of bond0", "storage: address 10.5.0.1/24"} {
		if !strings.Contains(got, want) {
			t.Errorf("did %s, without %s", got, want)
		}
	}
	if p := m.named("bond0").kind.bond; p != (bondParams{mode: 4, miimon: 50, lacp: 1, minLinks: 1}) {
		t.Errorf("%+v", p)
	}
	if m.named("eth1").master != 0 || !m.named("eth1").up {
		t.Errorf("eth1 %+v", m.named("eth1"))
	}
	expect(t, "again", m.pass(t, r, links...), "")

	// A member that comes later.
	links = []Link{{Name: "bond0", Bond: &Bond{Members: []string{"eth0", "eth7"}, Mode: "802.3ad", LACPRate: "fast", MIIMonitor: 50 * time.Millisecond, MinLinks: 1}}, {Name: "eth0"}, {Name: "eth7"}}
	expect(t, "less", m.pass(t, r, links...), "inner: removed; storage: removed")
	expect(t, "faults", faultsOf(r), "eth7: there is no such link; there are [eth0 (02:00:00:00:00:02) eth1 (02:00:00:00:00:03)]")
	m.plug("eth7")
	expect(t, "eth7", m.pass(t, r, links...), "eth7: member of bond0; eth7: up")
	expect(t, "gone", m.pass(t, r, Link{Name: "eth0"}), "bond0: removed")
}

func TestReconcileMatch(t *testing.T) {
	m := newMemory("eth0", "eth1", "eth2")
	m.drivers[4] = "mlx5_core"
	m.list[1].up = true
	first, second := m.list[1].permanent, m.list[2].permanent
	m.list[2].mac = net.HardwareAddr{2, 9, 9, 9, 9, 9} // set by somebody; the permanent one counts
	r := newReconciler(m)
	links := []Link{
		{Name: "eth1", Match: &Match{MAC: first}},
		{Name: "eth0", Match: &Match{MAC: second}, MAC: net.HardwareAddr{2, 8, 8, 8, 8, 8}},
		{Name: "fast", Match: &Match{Driver: "mlx5*", Path: "0000:00:*"}, Addresses: prefixes("10.0.0.1/8")},
		{Name: "none", Match: &Match{Driver: "mlx4*"}, Optional: true},
	}
	expect(t, "first", m.pass(t, r, links...), "lo: up; renamed3: renamed, it was eth1; eth1: renamed, it was eth0; eth0: renamed, it was renamed3; fast: renamed, it was eth2; "+
		"eth1: up; eth0: hardware address 02:08:08:08:08:08; eth0: up; fast: up; fast: address 10.0.0.1/8")
	expect(t, "again", m.pass(t, r, links...), "")
	if m.named("eth1").index != 2 || m.named("eth0").index != 3 || m.named("fast").index != 4 || faultsOf(r) != "" {
		t.Errorf("%+v, %s", m.list, faultsOf(r))
	}
}

func TestReconcileFaults(t *testing.T) {
	m := newMemory("eth0", "eth1")
	r := newReconciler(m)
	m.broken["setMTU"] = unix.EINVAL
	m.broken["create"] = unix.EOPNOTSUPP
	expect(t, "did", m.pass(t, r,
		Link{Name: "eth0", MTU: 60000, Addresses: prefixes("10.0.0.1/24")},
		Link{Name: "eth1", Dummy: true},
		Link{Name: "dummy0", Dummy: true},
		Link{Name: "v5", VLAN: &VLAN{Link: "eth9", ID: 5}},
		Link{Name: "eth9"},
	), "lo: up; eth0: up; eth1: up; eth0: address 10.0.0.1/24")
	expect(t, "faults", faultsOf(r), "eth1: a dummy of this name is wanted, and there is a device of this name; choose another; "+
		"dummy0: made, a dummy: operation not supported; v5: there is no link eth9, which it is a VLAN of; "+
		"eth9: there is no such link; there are [eth0 (02:00:00:00:00:02) eth1 (02:00:00:00:00:03)]; eth0: MTU 60000: invalid argument")
	m.broken["links"] = errors.New("no netlink")
	if err := r.run(nil); !errors.Is(err, m.broken["links"]) {
		t.Error(err)
	}
}

// What others have made stays; what is ours goes when it is not wanted.
func TestReconcileForeign(t *testing.T) {
	m := newMemory("eth0")
	foreign := address{index: 2, prefix: netip.MustParsePrefix("10.0.0.99/24")}
	via := netip.MustParseAddr("10.0.0.254")
	m.addrs = []address{foreign}
	m.rts = []route{{index: 2, Route: Route{To: netip.MustParsePrefix("10.1.0.0/16"), Via: via}}, {index: 7, ours: true, Route: Route{To: netip.MustParsePrefix("10.2.0.0/16"), Via: via}}}
	r := newReconciler(m)
	link := Link{Name: "eth0", Addresses: prefixes("10.0.0.1/24"), Routes: []Route{{To: netip.MustParsePrefix("10.1.0.0/16"), Via: via}, {To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::1")}}}
	expect(t, "first", m.pass(t, r, link), "lo: up; eth0: up; link 7: no route 10.2.0.0/16 via 10.0.0.254; eth0: address 10.0.0.1/24; eth0: route default via fe80::1")
	m.rts[1].Metric = 1024 // as the kernel says it
	expect(t, "again", m.pass(t, r, link), "")
	expect(t, "less", m.pass(t, r, Link{Name: "eth0"}), "eth0: no route default via fe80::1 metric 1024; eth0: no address 10.0.0.1/24")
	if len(m.addrs) != 1 || len(m.rts) != 1 {
		t.Errorf("%v, %v", m.addrs, m.rts)
	}
	m.addrs = append(m.addrs, address{index: 2, prefix: netip.MustParsePrefix("10.0.0.2/24"), duplicate: true})
	m.pass(t, r, Link{Name: "eth0", Addresses: prefixes("10.0.0.2/24")})
	expect(t, "duplicate", faultsOf(r), "eth0: 10.0.0.2 is in use by another machine; find it, or take another address")
}

//go:build linux

package network

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Fault is something that is not as the Spec says, or does not work.
type Fault struct {
	Link string // empty: of no link
	Text string // for people, with the link's name
}

// wanted is a link as it is to be: as the Spec says, and what DHCP has given.
type wanted struct {
	Link
	addresses []address // index is not set
	routes    []route   // likewise
	mtu       int
}

// A reconciler makes the kernel's state that which is wanted. It changes what is
// different, and takes away nothing but what it has made itself.
type reconciler struct {
	k    kernel
	made map[string]bool // links, by name
	// added has the addresses that are ours, for the kernel does not tell.
	added map[address]bool

	links   []link
	found   map[string]link // of the wanted ones, by their names there
	changes []string
	faults  []Fault
}

func newReconciler(k kernel) *reconciler {
	return &reconciler{k: k, made: map[string]bool{}, added: map[address]bool{}}
}

// did notes a change, or that it failed, and says which.
func (r *reconciler) did(link, what string, err error) bool {
	if err != nil {
		r.faults = append(r.faults, Fault{link, fmt.Sprintf("%s: %s: %v", link, what, err)})
		return false
	}
	r.changes = append(r.changes, link+": "+what)
	return true
}

func (r *reconciler) fault(link, format string, args ...any) {
	r.faults = append(r.faults, Fault{link, link + ": " + fmt.Sprintf(format, args...)})
}

// read reads the links.
func (r *reconciler) read() (err error) {
	r.links, err = r.k.links()
	return err
}

func (r *reconciler) byName(name string) (link, bool) {
	i := slices.IndexFunc(r.links, func(l link) bool { return l.name == name })
	if i < 0 {
		return link{}, false
	}
	return r.links[i], true
}

// set changes what is known about a link.
func (r *reconciler) set(l link) {
	for i := range r.links {
		if r.links[i].index == l.index {
			r.links[i] = l
		}
	}
}

// run makes one pass. Its faults are in r.faults, what it did in r.changes.
// Links are made from the lowest up: those that others are made of come first.
func (r *reconciler) run(list []wanted) error {
	r.changes, r.faults, r.found = nil, nil, map[string]link{}
	if err := r.read(); err != nil {
		return err
	}
	r.loopback()
	if err := r.removeUnwanted(list); err != nil {
		return err
	}
	r.findAll(list)
	for _, w := range ordered(list) {
		if w.kinds() == 1 {
			if err := r.make(w); err != nil {
				return err
			}
		}
	}
	for _, w := range list {
		if l, ok := r.byName(w.Name); ok && (w.kinds() == 1 || r.matches(w, l)) {
			r.found[w.Name] = l
		} else if w.kinds() == 0 {
			r.missing(w)
		}
	}
	r.masters(list)
	for _, w := range ordered(list) {
		r.adjust(w)
	}
	return r.layer3(list)
}

// loopback brings the loopback interface up; the kernel gives it its addresses.
func (r *reconciler) loopback() {
	if l, ok := r.byName("lo"); ok && !l.up {
		r.did("lo", "up", r.k.setUp(l.index, true))
	}
}

// ordered returns list so that each link comes after those it is made of.
func ordered(list []wanted) []wanted {
	var depth func(name string, limit int) int
	depth = func(name string, limit int) int {
		i := slices.IndexFunc(list, func(w wanted) bool { return w.Name == name })
		if i < 0 || limit == 0 {
			return 0
		}
		d := 0
		for _, b := range list[i].below() {
			d = max(d, 1+depth(b, limit-1))
		}
		return d
	}
	return slices.SortedStableFunc(slices.Values(list), func(a, b wanted) int {
		return cmp.Compare(depth(a.Name, len(list)), depth(b.Name, len(list)))
	})
}

// removeUnwanted removes links that were made and are not wanted any more.
func (r *reconciler) removeUnwanted(list []wanted) error {
	for _, name := range slices.Sorted(maps.Keys(r.made)) {
		if slices.ContainsFunc(list, func(w wanted) bool { return w.Name == name && w.kinds() == 1 }) {
			continue
		}
		if l, ok := r.byName(name); ok && !r.did(name, "removed", r.k.remove(l.index)) {
			continue
		}
		delete(r.made, name)
		if err := r.read(); err != nil {
			return err
		}
	}
	return nil
}

// findAll gives the links that are matched their names.
func (r *reconciler) findAll(list []wanted) {
	for _, w := range list {
		if w.Match == nil {
			continue
		}
		i := slices.IndexFunc(r.links, func(l link) bool { return r.matches(w, l) })
		if i < 0 || r.links[i].name == w.Name {
			continue
		}
		l := r.links[i]
		if other, ok := r.byName(w.Name); ok {
			other.name = "renamed" + strconv.Itoa(other.index)
			if !r.rename(other, w.Name, other.name) {
				continue
			}
		}
		old := l.name
		l.name = w.Name
		r.rename(l, old, w.Name)
	}
}

// rename renames a link, which has to be down for it.
func (r *reconciler) rename(l link, from, to string) bool {
	err := r.k.rename(l.index, to)
	if errors.Is(err, unix.EBUSY) && l.up {
		if err = r.k.setUp(l.index, false); err == nil {
			l.up = false
			err = r.k.rename(l.index, to)
		}
	}
	if !r.did(to, "renamed, it was "+from, err) {
		return false
	}
	r.set(l)
	return true
}

// matches says whether a link is the wanted one.
func (r *reconciler) matches(w wanted, l link) bool {
	m := w.Match
	if m == nil {
		return l.name == w.Name
	}
	// What is made has the hardware address of what it is made of.
	if l.kind.typ != "" && l.permanent == nil {
		return false
	}
	if m.MAC != nil && !bytes.Equal(m.MAC, l.hardware()) {
		return false
	}
	glob := func(pattern, value string) bool {
		ok, err := path.Match(pattern, value)
		return err == nil && ok
	}
	return (m.Driver == "" || glob(m.Driver, r.k.driver(l.name))) && (m.Path == "" || glob(m.Path, l.device))
}

// missing reports a link that is not there.
func (r *reconciler) missing(w wanted) {
	if w.Optional {
		return
	}
	var have []string
	for _, l := range r.links {
		if l.kind.typ == "" && l.ethernet {
			have = append(have, fmt.Sprintf("%s (%v)", l.name, l.mac))
		}
	}
	r.fault(w.Name, "there is no such link; there are %v", have)
}

// make makes a bond, VLAN, bridge or dummy, again if it is of another kind.
func (r *reconciler) make(w wanted) error {
	k, ok := r.kindOf(w)
	if !ok {
		return nil
	}
	l, there := r.byName(w.Name)
	if there && l.kind.same(k) {
		r.made[w.Name] = true
		return nil
	}
	if there {
		if l.kind.typ == "" {
			r.fault(w.Name, "a %s of this name is wanted, and there is a device of this name; choose another", k.typ)
			return nil
		}
		if !r.did(w.Name, "removed, as it was another "+l.kind.typ, r.k.remove(l.index)) {
			return nil
		}
	}
	if r.did(w.Name, "made, a "+k.typ, r.k.create(w.Name, k)) {
		r.made[w.Name] = true
	}
	return r.read()
}

func (r *reconciler) kindOf(w wanted) (kind, bool) {
	switch {
	case w.Bond != nil:
		p, err := w.Bond.params()
		return kind{typ: "bond", bond: p}, err == nil
	case w.VLAN != nil:
		parent, ok := r.byName(w.VLAN.Link)
		if !ok {
			r.fault(w.Name, "there is no link %s, which it is a VLAN of", w.VLAN.Link)
		}
		return kind{typ: "vlan", parent: parent.index, vlan: w.VLAN.ID, ad: w.VLAN.Provider}, ok
	case w.Bridge != nil:
		return kind{typ: "bridge", stp: w.Bridge.STP}, true
	}
	return kind{typ: "dummy"}, true
}

// masters puts members into bonds and bridges, and takes others out of those.
func (r *reconciler) masters(list []wanted) {
	owner := map[string]string{} // of members
	for _, w := range list {
		for _, m := range w.members() {
			owner[m] = w.Name
		}
	}
	for _, l := range slices.Clone(r.links) {
		master := slices.IndexFunc(r.links, func(m link) bool { return m.index == l.master && r.made[m.name] })
		want, wants := r.found[owner[l.name]]
		switch {
		case wants && l.master == want.index:
		case wants:
			// A bond takes none that is up.
			if l.up && want.kind.typ == "bond" {
				if !r.did(l.name, "down, to become a member of "+want.name, r.k.setUp(l.index, false)) {
					continue
				}
				l.up = false
			}
			if r.did(l.name, "member of "+want.name, r.k.setMaster(l.index, want.index)) {
				l.master = want.index
			}
		case l.master != 0 && master >= 0 && r.isWanted(list, r.links[master].name):
			// Those that others put into our bridges, as containers are, stay.
			if _, managed := r.found[l.name]; managed && r.did(l.name, "no member of "+r.links[master].name, r.k.setMaster(l.index, 0)) {
				l.master = 0
			}
		}
		r.set(l)
		if _, ok := r.found[l.name]; ok {
			r.found[l.name] = l
		}
	}
}

func (r *reconciler) isWanted(list []wanted, name string) bool {
	return slices.ContainsFunc(list, func(w wanted) bool { return w.Name == name })
}

// adjust sets what a link has besides addresses and routes, and brings it up.
func (r *reconciler) adjust(w wanted) {
	l, ok := r.found[w.Name]
	if !ok {
		return
	}
	if w.MAC != nil && l.mac != nil && !bytes.Equal(w.MAC, l.mac) && r.memberOf(l) != "bond" {
		err := r.k.setMAC(l.index, w.MAC)
		if errors.Is(err, unix.EBUSY) && l.up && r.k.setUp(l.index, false) == nil {
			l.up = false
			err = r.k.setMAC(l.index, w.MAC)
		}
		if r.did(l.name, "hardware address "+w.MAC.String(), err) {
			l.mac = w.MAC
		}
	}
	if parent, ok := r.found[w.lower()]; ok && w.mtu == 0 {
		w.mtu = parent.mtu // whichever of the two was made first
	}
	// A bond sets the MTU of its members.
	if w.mtu != 0 && w.mtu != l.mtu && r.memberOf(l) != "bond" {
		if r.did(l.name, fmt.Sprintf("MTU %d", w.mtu), r.k.setMTU(l.index, w.mtu)) {
			l.mtu = w.mtu
		}
	}
	r.sysctls(w, l)
	if !l.up && r.did(l.name, "up", r.k.setUp(l.index, true)) {
		l.up = true
	}
	if w.Bond != nil && w.Bond.Primary != "" {
		if p, ok := r.found[w.Bond.Primary]; ok && p.master == l.index && l.primary != p.index {
			if r.did(l.name, "primary "+p.name, r.k.setPrimary(l, p.index)) {
				l.primary = p.index
			}
		}
	}
	r.set(l)
	r.found[w.Name] = l
}

func (r *reconciler) memberOf(l link) string {
	for _, m := range r.links {
		if m.index == l.master {
			return m.kind.typ
		}
	}
	return ""
}

// sysctls sets the variables of a link that the kernel looks at when it comes
// up. See Documentation/networking/ip-sysctl.rst.
func (r *reconciler) sysctls(w wanted, l link) {
	v := map[string]string{
		// The next address becomes primary, instead of going too.
		"ipv4/conf/" + l.name + "/promote_secondaries": "1",
		"ipv6/conf/" + l.name + "/accept_ra":           "0",
		"ipv6/conf/" + l.name + "/autoconf":            "0",
	}
	if w.routers() && l.master == 0 {
		conf := "ipv6/conf/" + l.name
		v[conf+"/accept_ra"] = "2" // even when the node forwards
		v[conf+"/accept_ra_defrtr"] = flag(w.DHCP.UseRoutes)
		v[conf+"/ra_defrtr_metric"] = strconv.FormatUint(uint64(cmp.Or(w.DHCP.Metric, DefaultMetric)), 10)
		v[conf+"/autoconf"] = flag(w.AcceptRA)
	}
	if w.Bridge != nil {
		v[stpFile(l.name)] = flag(w.Bridge.STP)
	}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		if changed, err := r.k.sysctl(name, v[name]); changed || err != nil {
			r.did(l.name, name+" = "+v[name], err)
		}
	}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

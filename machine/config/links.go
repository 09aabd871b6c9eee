package config

import (
	"fmt"
	"net/netip"

	"github.com/kilnhq/kiln/internal/spelling"
)

// linkDocument is a link and the document that it is from.
type linkDocument struct {
	document
	*Link
}

// crossLinks checks what links have to do with each other.
func crossLinks(docs []document) {
	var links []linkDocument
	byName := map[string]linkDocument{}
	var names []string
	for _, d := range docs {
		if l, ok := d.value.(*Link); ok {
			links = append(links, linkDocument{d, l})
			byName[l.Name] = linkDocument{d, l}
			names = append(names, l.Name)
		}
	}
	masters := map[string]string{} // of members
	for _, l := range links {
		for _, below := range l.below() {
			other, ok := byName[below.name]
			if !ok {
				l.Add(below.where, "there is no link %q%s", below.name, spelling.Hint(below.name, names))
				continue
			}
			if l.VLAN != nil {
				if l.MTU > other.MTU && other.MTU != 0 {
					l.Add("mtu", "%d, want at most %d, that of %s", l.MTU, other.MTU, other.Name)
				}
				continue
			}
			if master, ok := masters[below.name]; ok && master != l.Name {
				l.Add(below.where, "%q is a member of %s already", below.name, master)
			}
			masters[below.name] = l.Name
			switch {
			case other.Bond != nil && l.Bond != nil:
				l.Add(below.where, "%q is a bond itself, want other links", below.name)
			case other.Bridge != nil:
				l.Add(below.where, "%q is a bridge, want other links", below.name)
			case len(other.Addresses)+len(other.Routes) > 0 || other.DHCP4 || other.DHCP6:
				l.Add(below.where, "%q has addresses, routes or DHCP of its own, want them on %s", below.name, l.Name)
			}
		}
	}
	for _, l := range links {
		if chain := cycle(l.Name, func(name string) []string {
			var next []string
			if other, ok := byName[name]; ok {
				for _, b := range other.below() {
					next = append(next, b.name)
				}
			}
			return next
		}); chain != "" {
			l.Add("name", "the link is below itself: %s", chain)
			break
		}
	}
	crossTwice(links)
}

// below is a link that another one is made of, and where it says so.
type below struct{ where, name string }

func (l *Link) below() (links []below) {
	if l.VLAN != nil {
		links = append(links, below{"vlan.link", l.VLAN.Link})
	}
	if l.Bond != nil {
		for i, m := range l.Bond.Members {
			links = append(links, below{item("bond.members", i), m})
		}
	}
	if l.Bridge != nil {
		for i, m := range l.Bridge.Members {
			links = append(links, below{item("bridge.members", i), m})
		}
	}
	return links
}

// cycle returns a way from start to itself, or nothing.
func cycle(start string, next func(string) []string) string {
	seen := map[string]bool{}
	var walk func(name string) string
	walk = func(name string) string {
		for _, n := range next(name) {
			if n == start {
				return name + " > " + n
			}
			if !seen[n] {
				seen[n] = true
				if rest := walk(n); rest != "" {
					return name + " > " + rest
				}
			}
		}
		return ""
	}
	return walk(start)
}

// crossTwice reports what only one link can have.
func crossTwice(links []linkDocument) {
	first := map[string]string{}
	once := func(l linkDocument, where, key, what string) {
		if other, ok := first[key]; ok {
			l.Add(where, "%s is on %s already", what, other)
			return
		}
		first[key] = l.Name
	}
	for _, l := range links {
		for i, p := range l.Addresses {
			if p.IsValid() {
				once(l, item("addresses", i), "address "+p.Addr().String(), p.Addr().String())
			}
		}
		if l.Match != nil && l.Match.MAC != "" {
			once(l, "match.mac", "match "+string(l.Match.MAC), string(l.Match.MAC))
		}
		if v := l.VLAN; v != nil {
			what := fmt.Sprintf("VLAN %d of %s", v.ID, v.Link)
			once(l, "vlan.id", what+string(v.Protocol), what)
		}
		for i, r := range l.Routes {
			if r.To.IsValid() || r.Via.IsValid() {
				to := r.Destination()
				if !to.Addr().Is6() || !to.Addr().IsLinkLocalUnicast() {
					once(l, item("routes", i), routeKey(to, r.Metric), fmt.Sprintf("a route to %v with metric %d", to, r.Metric))
				}
			}
		}
	}
}

func routeKey(to netip.Prefix, metric int) string { return fmt.Sprintf("route %v %d", to, metric) }

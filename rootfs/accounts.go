package rootfs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

func (r *Recipe) validateAccounts(c *checker) {
	names, ids := map[string]bool{}, map[uint32]string{}
	for i, u := range r.Users {
		where := fmt.Sprintf("users[%d]", i)
		c.word(where+".name", u.Name)
		for _, p := range []string{u.Home, u.Shell} {
			if strings.ContainsAny(p, ":\n") || p != "" && p[0] != '/' {
				c.fail("%s: %q, want an absolute path without a colon", where, p)
			}
		}
		if names[u.Name] {
			c.fail("%s: user %s again", where, u.Name)
		}
		if other, dup := ids[u.UID]; dup {
			c.fail("%s: users %s and %s both have uid %d", where, other, u.Name, u.UID)
		}
		names[u.Name], ids[u.UID] = true, u.Name
	}
	groups, gids := map[string]bool{}, map[uint32]string{}
	for i, g := range r.Groups {
		where := fmt.Sprintf("groups[%d]", i)
		c.word(where+".name", g.Name)
		if groups[g.Name] {
			c.fail("%s: group %s again", where, g.Name)
		}
		if other, dup := gids[g.GID]; dup {
			c.fail("%s: groups %s and %s both have gid %d", where, other, g.Name, g.GID)
		}
		groups[g.Name], gids[g.GID] = true, g.Name
		for _, m := range g.Members {
			if !names[m] {
				c.fail("%s: member %q is no user of the recipe", where, m)
			}
		}
	}
	for i, u := range r.Users {
		if _, ok := gids[u.GID]; !ok {
			if groups[u.Name] {
				c.fail("users[%d]: %s has gid %d, which no group has, and the group %s has another", i, u.Name, u.GID, u.Name)
			}
			groups[u.Name], gids[u.GID] = true, u.Name
		}
	}
}

// passwd returns the content of /etc/passwd, passwd(5), ordered by uid.
func (r *Recipe) passwd() string {
	users := slices.Clone(r.Users)
	slices.SortFunc(users, func(a, b User) int { return cmp.Compare(a.UID, b.UID) })
	var b strings.Builder
	for _, u := range users {
		fmt.Fprintf(&b, "%s:x:%d:%d:%s:%s:%s\n", u.Name, u.UID, u.GID, u.Name, cmp.Or(u.Home, "/"), cmp.Or(u.Shell, "/usr/sbin/nologin"))
	}
	return b.String()
}

// group returns the content of /etc/group, group(5), ordered by gid.
func (r *Recipe) group() string {
	groups := slices.Clone(r.Groups)
	for _, u := range r.Users {
		if !slices.ContainsFunc(groups, func(g Group) bool { return g.GID == u.GID }) {
			groups = append(groups, Group{Name: u.Name, GID: u.GID})
		}
	}
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Compare(a.GID, b.GID) })
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "%s:x:%d:%s\n", g.Name, g.GID, strings.Join(g.Members, ","))
	}
	return b.String()
}

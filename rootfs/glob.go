package rootfs

import (
	"path"
	"slices"
	"strings"
)

// matchGlob says whether the slash-separated name matches the pattern, in which
// "**" as a whole component stands for any number of components, none
// included, and "*" and "?" stand for parts of one.
func matchGlob(pattern, name string) bool {
	p, n := strings.Split(pattern, "/"), strings.Split(name, "/")
	star, mark := -1, 0 // the last ** seen, and how much of n it has taken
	i, j := 0, 0
	for j < len(n) {
		if i < len(p) && p[i] == "**" {
			star, mark = i, j
			i++
			continue
		}
		if i < len(p) {
			if ok, err := path.Match(p[i], n[j]); ok && err == nil {
				i++
				j++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == "**" {
		i++
	}
	return i == len(p)
}

// fixedPrefix returns the components of pattern before the first that has a
// wildcard, and whether there is one.
func fixedPrefix(pattern string) (prefix string, wild bool) {
	parts := strings.Split(pattern, "/")
	i := slices.IndexFunc(parts, func(s string) bool { return strings.ContainsAny(s, "*?") })
	if i < 0 {
		return pattern, false
	}
	return strings.Join(parts[:i], "/"), true
}

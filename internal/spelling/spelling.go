// Package spelling finds the word that somebody meant.
package spelling

import (
	"fmt"
	"slices"
	"strings"
)

// Hint returns the end of an error message about the unknown word got: the
// nearest of the known words if one is near, otherwise all of them.
func Hint(got string, known []string) string {
	if best, ok := Nearest(got, known); ok {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	if len(known) == 0 {
		return ""
	}
	return "; known: " + strings.Join(slices.Sorted(slices.Values(known)), ", ")
}

// Nearest returns the first of the known words nearest to got, if one is near:
// not more than a third of its letters differ.
func Nearest(got string, known []string) (best string, ok bool) {
	least := 1 + max(1, len(got)/3)
	for _, k := range known {
		if d := len(got) - len(k); d >= least || -d >= least {
			continue
		}
		if n := distance(strings.ToLower(got), strings.ToLower(k)); n < least {
			best, least, ok = k, n, true
		}
	}
	return best, ok
}

// distance is the Levenshtein distance in bytes, with a swap of neighbours
// counting as one (optimal string alignment). Long words are cut.
func distance(a, b string) int {
	const long = 64
	a, b = a[:min(long, len(a))], b[:min(long, len(b))]
	var before []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}

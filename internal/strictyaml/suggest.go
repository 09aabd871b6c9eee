package strictyaml

import (
	"fmt"
	"sort"
	"strings"
)

// Suggest returns the end of an error message for the unknown word got: the
// nearest of the known words if one is near, otherwise all of them.
func Suggest(got string, known []string) string {
	best, bestDistance := "", 1+max(1, len(got)/3)
	for _, k := range known {
		if n := distance(strings.ToLower(got), strings.ToLower(k)); n < bestDistance {
			best, bestDistance = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	if len(known) == 0 {
		return ""
	}
	sorted := append([]string(nil), known...)
	sort.Strings(sorted)
	return "; known: " + strings.Join(sorted, ", ")
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

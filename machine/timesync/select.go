package timesync

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// slack is added to what servers say about their errors: theirs are those of the
// network and the clock, without what happens in the machine.
const slack = 10 * time.Millisecond

// choose returns the best of the samples that agree: the nearest of the greatest
// set whose intervals of error have a point in common (Marzullo's algorithm, RFC
// 5905 section 11.2.1). If no more than half of the servers agree there is none.
func choose(samples []sample) (sample, error) {
	type edge struct {
		at    time.Duration
		begin bool
	}
	var edges []edge
	for _, s := range samples {
		edges = append(edges, edge{s.offset - s.distance - slack, true}, edge{s.offset + s.distance + slack, false})
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if d := cmp.Compare(a.at, b.at); d != 0 {
			return d
		}
		if a.begin {
			return -1
		}
		return 1
	})
	depth, most, point := 0, 0, time.Duration(0)
	for _, e := range edges {
		if !e.begin {
			depth--
			continue
		}
		if depth++; depth > most {
			most, point = depth, e.at
		}
	}
	if 2*most <= len(samples) {
		var said []string
		for _, s := range samples {
			said = append(said, fmt.Sprintf("%s: %s", s.server, s.time.Format(time.RFC3339)))
		}
		return sample{}, fmt.Errorf("the time servers disagree (%s); configure one more, or take out the one that is wrong", strings.Join(said, ", "))
	}
	var agree []sample
	for _, s := range samples {
		if s.offset-s.distance-slack <= point && point <= s.offset+s.distance+slack {
			agree = append(agree, s)
		}
	}
	return slices.MinFunc(agree, func(a, b sample) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), strings.Compare(a.server, b.server))
	}), nil
}

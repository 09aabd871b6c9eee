package ext4

import "slices"

// union returns the runs in ascending order, those that touch or overlap joined.
func union(runs []run) []run {
	runs = slices.Clone(runs)
	slices.SortFunc(runs, compareRuns)
	var out []run
	for _, r := range runs {
		if n := len(out); n > 0 && r.start <= out[n-1].end() {
			out[n-1].n = max(out[n-1].end(), r.end()) - out[n-1].start
		} else {
			out = append(out, r)
		}
	}
	return out
}

func compareRuns(a, b run) int {
	switch {
	case a.start < b.start:
		return -1
	case a.start > b.start:
		return 1
	}
	return 0
}

// count returns the number of blocks in runs that do not overlap.
func count(runs []run) int64 {
	var n int64
	for _, r := range runs {
		n += r.n
	}
	return n
}

// cut splits runs after n blocks.
func cut(runs []run, n int64) (before, after []run) {
	for i, r := range runs {
		if n < r.n {
			if n > 0 {
				before = append(before, run{r.start, n})
			}
			return before, append([]run{{r.start + n, r.n - n}}, runs[i+1:]...)
		}
		before = append(before, r)
		n -= r.n
	}
	return before, nil
}

// without returns runs without a block.
func without(runs []run, block int64) []run {
	var out []run
	for _, r := range runs {
		if block < r.start || block >= r.end() {
			out = append(out, r)
			continue
		}
		if n := block - r.start; n > 0 {
			out = append(out, run{r.start, n})
		}
		if n := r.end() - block - 1; n > 0 {
			out = append(out, run{block + 1, n})
		}
	}
	return out
}

// lastBlock returns the highest block of runs that is not one of those excepted,
// or 0.
func lastBlock(runs []run, except ...int64) int64 {
	for _, r := range slices.Backward(runs) {
		for b := r.end() - 1; b >= r.start; b-- {
			if !slices.Contains(except, b) {
				return b
			}
		}
	}
	return 0
}

// countBefore returns the number of blocks in runs that are before a block.
func countBefore(runs []run, block int64) int64 {
	var n int64
	for _, r := range runs {
		n += max(0, min(r.end(), block)-r.start)
	}
	return n
}

// intersect returns a block that is in both, or 0. Both are in ascending order
// without overlaps.
func intersect(a, b []run) int64 {
	for len(a) > 0 && len(b) > 0 {
		if start := max(a[0].start, b[0].start); start < min(a[0].end(), b[0].end()) {
			return max(start, 1)
		}
		if a[0].end() <= b[0].end() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return 0
}

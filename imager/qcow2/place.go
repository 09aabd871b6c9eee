package qcow2

// maxGaps is how many gaps are kept open.
const maxGaps = 64

// gap is space at the end of a cluster that holds compressed clusters.
type gap struct{ at, end int64 }

// placer gives clusters their places in the file, and counts references.
//
// A cluster that is stored as it is begins at a multiple of the cluster size,
// compressed ones fill what is between: each goes into the smallest gap that it
// fits in, or continues from the end of the file into a new cluster, or begins a
// new cluster behind all others.
type placer struct {
	geometry
	next   int64    // offset of the first free cluster; all behind it are free
	counts []uint16 // references to each cluster before next
	gaps   []gap    // ascending
}

// allocate allocates n clusters in a row.
func (p *placer) allocate(n int64) int64 {
	at := p.next
	for range n {
		p.counts = append(p.counts, 1)
	}
	p.next += n * p.clusterSize()
	return at
}

// pack allocates n bytes, at most a cluster, anywhere.
func (p *placer) pack(n int64) int64 {
	best := -1
	for i, g := range p.gaps {
		if g.end-g.at >= n && (best < 0 || g.end-g.at < p.gaps[best].end-p.gaps[best].at) {
			best = i
		}
	}
	last := len(p.gaps) - 1
	switch {
	case best >= 0:
	case last >= 0 && p.gaps[last].end == p.next:
		best = last
		p.extend(&p.gaps[best])
	default:
		p.gaps = append(p.gaps, gap{p.next, p.next})
		best = last + 1
		p.extend(&p.gaps[best])
	}
	g := &p.gaps[best]
	at := g.at
	g.at += n
	full := p.refer(at, n)
	if full || g.at == g.end {
		p.gaps = append(p.gaps[:best], p.gaps[best+1:]...)
	}
	if len(p.gaps) > maxGaps {
		p.dropSmallest()
	}
	return at
}

// extend adds the first free cluster to a gap that ends there.
func (p *placer) extend(g *gap) {
	p.counts = append(p.counts, 0)
	p.next += p.clusterSize()
	g.end = p.next
}

// refer counts a reference to each cluster that has a sector with some of the n
// bytes at offset at, and reports whether the last cannot take another one.
func (p *placer) refer(at, n int64) (full bool) {
	for c := at >> p.clusterBits; c <= (at+n-1)>>p.clusterBits; c++ {
		p.counts[c]++
		full = p.counts[c] == maxRefcount
	}
	return full
}

func (p *placer) dropSmallest() {
	smallest := 0
	for i, g := range p.gaps {
		if g.end-g.at < p.gaps[smallest].end-p.gaps[smallest].at {
			smallest = i
		}
	}
	p.gaps = append(p.gaps[:smallest], p.gaps[smallest+1:]...)
}

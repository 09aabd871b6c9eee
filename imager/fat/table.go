package fat

import (
	"bytes"
	"slices"
)

// maxWrite is how many bytes are written at a time, at most.
const maxWrite = 1 << 20

// badCluster marks a cluster that must not be used.
const badCluster = 0x0FFFFFF7

// readTable reads the FAT and compares the copies with it.
func (e *Editor) readTable() error {
	e.table = make([]byte, e.fatBytes)
	for off := int64(0); off < e.fatBytes; off += pageSize {
		page := e.table[off:min(off+pageSize, e.fatBytes)]
		if err := e.readFAT(page, off); err != nil {
			return err
		}
		e.pages[off/pageSize] = page
	}
	if head := e.entry(0); head != e.mask(0x0FFFFF00)|int64(e.boot[atMedia]) {
		return corrupt("the FAT begins with %#x, want the media byte %#x; repair it with fsck.fat", head, e.boot[atMedia])
	}
	got := make([]byte, pageSize)
	for n := range e.fats {
		stale := make([]bool, e.fatBytes/e.sector)
		for off := int64(0); off < e.fatBytes; off += pageSize {
			want := e.pages[off/pageSize]
			whole := e.readAt(got[:len(want)], e.fat+n*e.fatBytes+off) == nil
			if whole && bytes.Equal(got[:len(want)], want) {
				continue
			}
			for i := int64(0); i < int64(len(want)); i += e.sector {
				at := off + i
				sector := got[i : i+e.sector]
				stale[at/e.sector] = !whole && e.readAt(sector, e.fat+n*e.fatBytes+at) != nil ||
					!bytes.Equal(sector, want[i:i+e.sector])
			}
		}
		e.stale = append(e.stale, stale)
	}
	return nil
}

// mask returns what is left of a value of FAT32 in this FAT.
func (e *Editor) mask(v int64) int64 { return v & (1<<min(e.bits, 28) - 1) }

func (e *Editor) entry(cluster int64) int64 {
	if e.bits == 16 {
		return int64(le.Uint16(e.table[2*cluster:]))
	}
	return int64(le.Uint32(e.table[4*cluster:])) & 0x0FFFFFFF
}

// set changes the entry of a cluster. The four highest bits of an entry of
// FAT32 stay what they are.
func (e *Editor) set(cluster, value int64) {
	at := cluster * int64(e.bits) / 8
	if value = e.mask(value); e.bits == 16 {
		le.PutUint16(e.table[at:], uint16(value))
	} else {
		le.PutUint32(e.table[at:], le.Uint32(e.table[at:])&0xF0000000|uint32(value))
	}
	for _, stale := range e.stale {
		stale[at/e.sector] = true
	}
}

// collect frees what belongs to nothing, once the directories were walked.
func (e *Editor) collect() error {
	for i := range e.clusters {
		cluster := i + rootCluster
		if e.used[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		switch e.entry(cluster) {
		case e.mask(badCluster):
			continue
		case 0:
		default:
			e.set(cluster, 0)
		}
		e.free++
	}
	clean := int64(cleanMark)
	if e.bits == 16 {
		clean >>= 12
	}
	if second := e.entry(1); second&clean == 0 {
		e.set(1, second|clean)
	}
	return nil
}

// allocate returns n free clusters, which there must be, as one span if there is
// one so long, and otherwise as the longest there are. They are marked as a
// chain.
func (e *Editor) allocate(n int64) []span {
	var free []span
	for c := int64(rootCluster); c < rootCluster+e.clusters; c++ {
		if e.entry(c) != 0 {
			continue
		}
		free = appendSpan(free, c)
		if last := free[len(free)-1]; last.n == n {
			free = []span{last}
			break
		}
	}
	slices.SortStableFunc(free, func(a, b span) int { return int(b.n - a.n) })
	var out []span
	for rest := n; rest > 0; free = free[1:] {
		s := span{free[0].first, min(free[0].n, rest)}
		out = append(out, s)
		rest -= s.n
	}
	slices.SortFunc(out, func(a, b span) int { return int(a.first - b.first) })
	for i, s := range out {
		last := s.first + s.n - 1
		for c := s.first; c < last; c++ {
			e.set(c, c+1)
		}
		next := int64(endOfFile)
		if i+1 < len(out) {
			next = out[i+1].first
		}
		e.set(last, next)
	}
	e.free -= n
	return out
}

// release marks clusters as free.
func (e *Editor) release(spans []span) {
	for _, s := range spans {
		for c := s.first; c < s.first+s.n; c++ {
			e.set(c, 0)
		}
		e.free += s.n
	}
}

// spans returns the clusters of a chain, which was found to be a good one.
func (e *Editor) spans(cluster int64) []span {
	var out []span
	for ; cluster != 0 && !e.isEnd(cluster); cluster = e.entry(cluster) {
		out = appendSpan(out, cluster)
	}
	return out
}

// flush writes the FATs and FSInfo where they have changed.
func (e *Editor) flush() error {
	for n, stale := range e.stale {
		for i := 0; i < len(stale); i++ {
			first := i
			for i < len(stale) && stale[i] && int64(i-first)*e.sector < maxWrite {
				stale[i] = false
				i++
			}
			if i == first {
				continue
			}
			p := e.table[int64(first)*e.sector : int64(i)*e.sector]
			if err := e.write(p, e.fat+int64(n)*e.fatBytes+int64(first)*e.sector); err != nil {
				return err
			}
			i--
		}
	}
	if e.info == nil || int64(le.Uint32(e.info[atFree:])) == e.free {
		return nil
	}
	next := uint32(0xFFFFFFFF) // unknown
	for c := int64(rootCluster); e.free > 0 && c < rootCluster+e.clusters; c++ {
		if e.entry(c) == 0 {
			next = uint32(c)
			break
		}
	}
	le.PutUint32(e.info[atFree:], uint32(e.free))
	le.PutUint32(e.info[atNext:], next)
	return e.write(e.info, e.infoAt)
}

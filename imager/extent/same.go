package extent

import "reflect"

// Index returns the offset at which m holds all of src in one piece, or -1 if
// it does not or if that cannot be told without reading. It is what lets one
// copy of a content serve two file systems.
func (m *Map) Index(src Source) int64 {
	n := src.Size()
	want := New(n)
	if want.Put(0, src) != nil || len(want.extents) == 0 {
		return -1
	}
	first := want.extents[0]
	for _, e := range m.extents {
		if first.At < e.At || first.At >= e.At+e.Length || !same(e.Source, first.Source) {
			continue
		}
		off := e.Offset + first.At - e.At - first.Offset
		sec, err := Section(m, off, n)
		if err == nil && equal(sec.(*Map).extents, want.extents) {
			return off
		}
	}
	return -1
}

func equal(a, b []Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Offset != b[i].Offset || a[i].Length != b[i].Length || a[i].At != b[i].At || !same(a[i].Source, b[i].Source) {
			return false
		}
	}
	return true
}

// same says whether two sources are known to be the same one.
func same(a, b Source) bool {
	if x, ok := a.(bytesSource); ok {
		y, ok := b.(bytesSource)
		return ok && len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
	}
	if x, ok := a.(*FileSource); ok {
		y, ok := b.(*FileSource)
		return ok && *x == *y
	}
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

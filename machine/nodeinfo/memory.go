//go:build linux

package nodeinfo

import "strings"

// Memory is what memory is used for, in bytes.
type Memory struct {
	Total       uint64 `json:"total"`
	Free        uint64 `json:"free"`
	Available   uint64 `json:"available"` // without swapping
	Buffers     uint64 `json:"buffers"`
	Cached      uint64 `json:"cached"`
	Shared      uint64 `json:"shared"` // tmpfs too
	Slab        uint64 `json:"slab"`
	Reclaimable uint64 `json:"reclaimable"` // of Slab
	Dirty       uint64 `json:"dirty"`
	SwapTotal   uint64 `json:"swap_total"`
	SwapFree    uint64 `json:"swap_free"`
}

// Memory returns what memory is used for.
func (s System) Memory() (Memory, error) {
	data, err := s.read("meminfo")
	if err != nil {
		return Memory{}, err
	}
	return parseMemory(data)
}

func parseMemory(data string) (Memory, error) {
	var m Memory
	fields := map[string]*uint64{
		"MemTotal": &m.Total, "MemFree": &m.Free, "MemAvailable": &m.Available, "Buffers": &m.Buffers, "Cached": &m.Cached,
		"Shmem": &m.Shared, "Slab": &m.Slab, "SReclaimable": &m.Reclaimable, "Dirty": &m.Dirty,
		"SwapTotal": &m.SwapTotal, "SwapFree": &m.SwapFree,
	}
	for line := range strings.Lines(data) {
		name, value, _ := strings.Cut(line, ":")
		to := fields[name]
		if to == nil {
			continue
		}
		kib, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n := numbers{}
		*to = n.parse(kib, 54) << 10
		if !ok || n.bad {
			return Memory{}, malformed("/proc/meminfo", line, "NAME: NUMBER kB")
		}
	}
	if m.Total == 0 {
		return Memory{}, malformed("/proc/meminfo", data, "MemTotal:")
	}
	return m, nil
}

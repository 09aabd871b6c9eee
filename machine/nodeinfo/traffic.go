//go:build linux

package nodeinfo

import "strings"

// An Interface is what went through a network interface.
type Interface struct {
	Name            string `json:"name"`
	Received        uint64 `json:"received"` // bytes
	ReceivedPackets uint64 `json:"received_packets"`
	ReceivedErrors  uint64 `json:"received_errors"`
	ReceivedDropped uint64 `json:"received_dropped"`
	Sent            uint64 `json:"sent"` // bytes
	SentPackets     uint64 `json:"sent_packets"`
	SentErrors      uint64 `json:"sent_errors"`
	SentDropped     uint64 `json:"sent_dropped"`
}

// parseInterfaces reads /proc/net/dev: two lines of headings, then
//
//	eth0: BYTES PACKETS ERRS DROP FIFO FRAME COMPRESSED MULTICAST BYTES PACKETS ERRS DROP …
func parseInterfaces(data string) ([]Interface, error) {
	var list []Interface
	i := 0
	for line := range strings.Lines(data) {
		if i++; i <= 2 {
			continue
		}
		colon := strings.LastIndexByte(line, ':') // names may hold one
		if colon < 0 {
			return nil, malformed("/proc/net/dev", line, "NAME: NUMBERS")
		}
		f := strings.Fields(line[colon+1:])
		if len(f) < 12 {
			return nil, malformed("/proc/net/dev", line, "NAME: 16 numbers")
		}
		n := numbers{}
		at := func(i int) uint64 { return n.parse(f[i], 64) }
		list = append(list, Interface{strings.TrimSpace(line[:colon]), at(0), at(1), at(2), at(3), at(8), at(9), at(10), at(11)})
		if n.bad {
			return nil, malformed("/proc/net/dev", line, "NAME: 16 numbers")
		}
	}
	return list, nil
}

// DiskTraffic is what went to and from a block device.
type DiskTraffic struct {
	Name         string `json:"name"`
	Reads        uint64 `json:"reads"`
	ReadBytes    uint64 `json:"read_bytes"`
	Writes       uint64 `json:"writes"`
	WrittenBytes uint64 `json:"written_bytes"`
	Busy         uint64 `json:"busy"` // milliseconds
}

// diskSector is the unit of /proc/diskstats, whatever the device's sector is.
const diskSector = 512

// parseDisks reads /proc/diskstats,
//
//	MAJOR MINOR NAME READS MERGED SECTORS MS WRITES MERGED SECTORS MS INFLIGHT MS …
//
// and leaves out devices that nothing ever used.
func parseDisks(data string) ([]DiskTraffic, error) {
	var list []DiskTraffic
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) < 13 {
			return nil, malformed("/proc/diskstats", line, "MAJOR MINOR NAME and numbers")
		}
		n := numbers{}
		d := DiskTraffic{
			Name: f[2], Reads: n.parse(f[3], 64), ReadBytes: n.parse(f[5], 55) * diskSector,
			Writes: n.parse(f[7], 64), WrittenBytes: n.parse(f[9], 55) * diskSector, Busy: n.parse(f[12], 64),
		}
		if n.bad {
			return nil, malformed("/proc/diskstats", line, "MAJOR MINOR NAME and numbers")
		}
		if d.Reads > 0 || d.Writes > 0 {
			list = append(list, d)
		}
	}
	return list, nil
}

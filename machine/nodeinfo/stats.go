//go:build linux

package nodeinfo

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stats are counters of the kernel since its start, and averages.
type Stats struct {
	Load1      float64       `json:"load1"` // processes that run or wait, over a minute
	Load5      float64       `json:"load5"`
	Load15     float64       `json:"load15"`
	CPUModel   string        `json:"cpu_model"`
	Pressure   []Pressure    `json:"pressure"` // empty if the kernel does not measure it
	Interfaces []Interface   `json:"interfaces"`
	Disks      []DiskTraffic `json:"disks"`
	Times
}

// Times is what /proc/stat says.
type Times struct {
	Boot            time.Time `json:"boot,omitzero"`
	CPU             CPUTime   `json:"cpu"` // all together
	CPUs            []CPUTime `json:"cpus"`
	ContextSwitches uint64    `json:"context_switches"`
	Forks           uint64    `json:"forks"`
	Running         uint32    `json:"running"`
	Blocked         uint32    `json:"blocked"`
}

// CPUTime is in milliseconds.
type CPUTime struct {
	Name          string `json:"name"`
	User          uint64 `json:"user"`
	Nice          uint64 `json:"nice"`
	System        uint64 `json:"system"`
	Idle          uint64 `json:"idle"`
	IOWait        uint64 `json:"io_wait"`
	Interrupt     uint64 `json:"interrupt"`
	SoftInterrupt uint64 `json:"soft_interrupt"`
	Steal         uint64 `json:"steal"`
}

// Pressure is how long tasks waited for a resource, in per cent of the last 10,
// 60 and 300 seconds: some of them, and all.
type Pressure struct {
	Resource string  `json:"resource"`
	Some10   float64 `json:"some10"`
	Some60   float64 `json:"some60"`
	Some300  float64 `json:"some300"`
	Full10   float64 `json:"full10"`
	Full60   float64 `json:"full60"`
	Full300  float64 `json:"full300"`
}

// Stats returns the counters.
func (s System) Stats() (Stats, error) {
	var st Stats
	for _, part := range []struct {
		file     string
		parse    func(string) error
		optional bool
	}{
		{"stat", func(data string) (err error) { st.Times, err = parseStat(data); return }, false},
		{"loadavg", func(data string) (err error) { st.Load1, st.Load5, st.Load15, err = parseLoad(data); return }, false},
		{"cpuinfo", func(data string) error { st.CPUModel = parseModel(data); return nil }, true},
		{"net/dev", func(data string) (err error) { st.Interfaces, err = parseInterfaces(data); return }, true},
		{"diskstats", func(data string) (err error) { st.Disks, err = parseDisks(data); return }, true},
	} {
		data, err := s.read(part.file)
		if part.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Stats{}, err
		}
		if err := part.parse(data); err != nil {
			return Stats{}, err
		}
	}
	for _, resource := range []string{"cpu", "io", "memory"} {
		data, err := s.read("pressure/" + resource)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) { // not built in, or not turned on
			continue
		}
		if err != nil {
			return Stats{}, err
		}
		p, err := parsePressure(resource, data)
		if err != nil {
			return Stats{}, err
		}
		st.Pressure = append(st.Pressure, p)
	}
	return st, nil
}

// Times returns what the CPUs did since the start.
func (s System) Times() (Times, error) {
	data, err := s.read("stat")
	if err != nil {
		return Times{}, err
	}
	return parseStat(data)
}

func parseStat(data string) (Times, error) {
	var t Times
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n := numbers{}
		switch name := f[0]; {
		case strings.HasPrefix(name, "cpu"):
			if len(f) < 9 {
				n.bad = true
				break
			}
			at := func(i int) uint64 { return ticks(n.parse(f[i], 56)) }
			c := CPUTime{name, at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)}
			if name == "cpu" {
				t.CPU = c
			} else {
				t.CPUs = append(t.CPUs, c)
			}
		case name == "btime":
			t.Boot = time.Unix(int64(n.parse(f[1], 36)), 0).UTC()
		case name == "ctxt":
			t.ContextSwitches = n.parse(f[1], 64)
		case name == "processes":
			t.Forks = n.parse(f[1], 64)
		case name == "procs_running":
			t.Running = uint32(n.parse(f[1], 32))
		case name == "procs_blocked":
			t.Blocked = uint32(n.parse(f[1], 32))
		}
		if n.bad {
			return Times{}, malformed("/proc/stat", line, "NAME NUMBER…")
		}
	}
	if t.CPU.Name == "" || t.Boot.IsZero() {
		return Times{}, malformed("/proc/stat", data, "cpu and btime")
	}
	return t, nil
}

func parseLoad(data string) (one, five, fifteen float64, err error) {
	f := strings.Fields(data)
	if len(f) < 3 {
		return 0, 0, 0, malformed("/proc/loadavg", data, "1.00 2.00 3.00 …")
	}
	var v [3]float64
	for i := range v {
		if v[i], err = decimal(f[i]); err != nil {
			return 0, 0, 0, malformed("/proc/loadavg", data, "1.00 2.00 3.00 …")
		}
	}
	return v[0], v[1], v[2], nil
}

// decimal parses a number as the kernel prints averages: 12.34.
func decimal(s string) (float64, error) {
	if strings.Trim(s, "0123456789.") != "" || len(s) > 20 {
		return 0, ErrFormat
	}
	return strconv.ParseFloat(s, 64)
}

// parsePressure reads
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=0
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=0
//
// of which older kernels do not have the second line for the CPU.
func parsePressure(resource, data string) (Pressure, error) {
	p := Pressure{Resource: resource}
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		to := []*float64{&p.Some10, &p.Some60, &p.Some300}
		if len(f) > 0 && f[0] == "full" {
			to = []*float64{&p.Full10, &p.Full60, &p.Full300}
		}
		if len(f) < 4 || f[0] != "some" && f[0] != "full" {
			return Pressure{}, malformed("/proc/pressure/"+resource, line, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0")
		}
		for i, name := range []string{"avg10=", "avg60=", "avg300="} {
			v, ok := strings.CutPrefix(f[i+1], name)
			x, err := decimal(v)
			if !ok || err != nil {
				return Pressure{}, malformed("/proc/pressure/"+resource, line, name+"0.00")
			}
			*to[i] = x
		}
	}
	return p, nil
}

// parseModel returns the first CPU's name; arm64 kernels tell none.
func parseModel(data string) string {
	for line := range strings.Lines(data) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

//go:build linux

package nodeinfo

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

const (
	statFile = `cpu  10 20 30 40 50 60 70 80 0 0
cpu0 1 2 3 4 5 6 7 8 0 0
intr 99 1 2
ctxt 1234
btime 1700000000
processes 55
procs_running 2
procs_blocked 1
softirq 1 2
`
	processLine = `42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 15 25 0 0 20 0 3 0 500 1048576 7 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0
`
	memFile = `MemTotal:        1000 kB
MemFree:          100 kB
MemAvailable:     300 kB
HugePages_Total:       0
Buffers:            1 kB
Cached:             2 kB
`
	netFile = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
eth0:1: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0
`
	diskFile = `   8       0 sda 10 1 20 5 30 2 40 6 0 77 11 0 0 0 0 0 0
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0
`
	pressureFile = `some avg10=1.50 avg60=2.00 avg300=3.00 total=4
full avg10=0.10 avg60=0.20 avg300=0.30 total=4
`
)

func TestParse(t *testing.T) {
	times, err := parseStat(statFile)
	want := Times{
		Boot: time.Unix(1700000000, 0).UTC(), CPU: CPUTime{"cpu", 100, 200, 300, 400, 500, 600, 700, 800},
		CPUs: []CPUTime{{"cpu0", 10, 20, 30, 40, 50, 60, 70, 80}}, ContextSwitches: 1234, Forks: 55, Running: 2, Blocked: 1,
	}
	if err != nil || !reflect.DeepEqual(times, want) {
		t.Errorf("stat: %+v, %v", times, err)
	}
	p, err := parseProcess(processLine)
	p.Resident = 0 // in pages of this machine
	if want := (Process{PID: 42, Name: "a) b (c", State: "S", Parent: 1, CPU: 400, Threads: 3, start: 500, Virtual: 1048576}); err != nil || p != want {
		t.Errorf("process: %+v, %v", p, err)
	}
	if p, err := parseProcess(strings.Replace(processLine, "4194560", "2129984", 1)); err != nil || !p.Kernel {
		t.Errorf("kernel thread: %+v, %v", p, err)
	}
	m, err := parseMemory(memFile)
	if want := (Memory{Total: 1000 << 10, Free: 100 << 10, Available: 300 << 10, Buffers: 1 << 10, Cached: 2 << 10}); err != nil || m != want {
		t.Errorf("memory: %+v, %v", m, err)
	}
	n, err := parseInterfaces(netFile)
	if want := []Interface{{"lo", 1, 2, 3, 4, 5, 6, 7, 8}, {Name: "eth0:1", Received: 9, ReceivedPackets: 9, Sent: 9, SentPackets: 9}}; err != nil || !reflect.DeepEqual(n, want) {
		t.Errorf("interfaces: %+v, %v", n, err)
	}
	d, err := parseDisks(diskFile)
	if want := []DiskTraffic{{"sda", 10, 20 * 512, 30, 40 * 512, 77}}; err != nil || !reflect.DeepEqual(d, want) {
		t.Errorf("disks: %+v, %v", d, err)
	}
	q, err := parsePressure("io", pressureFile)
	if want := (Pressure{"io", 1.5, 2, 3, 0.1, 0.2, 0.3}); err != nil || q != want {
		t.Errorf("pressure: %+v, %v", q, err)
	}
	if one, five, fifteen, err := parseLoad("0.50 1.00 2.25 1/2 3\n"); err != nil || one != 0.5 || five != 1 || fifteen != 2.25 {
		t.Errorf("load: %v %v %v, %v", one, five, fifteen, err)
	}
	if uid, err := parseUID("Name:\tx\nUid:\t0\t1000\t0\t0\n"); err != nil || uid != 1000 {
		t.Errorf("user: %d, %v", uid, err)
	}
	if s := unified("12:cpu:/x\n0::/system/containerd\n"); s != "/system/containerd" {
		t.Errorf("control group %q", s)
	}
	if s := parseModel("processor\t: 0\nmodel name\t: Some CPU\n"); s != "Some CPU" {
		t.Errorf("model %q", s)
	}
}

func TestCommand(t *testing.T) {
	for data, want := range map[string]string{
		"":                            "",
		"/bin/sh\x00-c\x00echo a\x00": `/bin/sh -c "echo a"`,
		"nginx: master process":       `"nginx: master process"`,
		"x\x00\x00y\x00":              `x "" y`,
		"x\x00\x1b[31m\x00":           `x "\x1b[31m"`,
		strings.Repeat("x", 1<<16):    strings.Repeat("x", maxCommand),
		"\xff":                        `"\xff"`,
	} {
		if got := command(data); got != want {
			t.Errorf("%.40q became %.40q, want %.40q", data, got, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	_, stat := parseStat("cpu 1\n")
	_, process := parseProcess("42 nothing")
	_, number := parseProcess(strings.Replace(processLine, "500", "-5", 1))
	_, memory := parseMemory("MemTotal: 1000 MB\n")
	_, none := parseMemory("")
	_, network := parseInterfaces("\n\nlo: 1 2\n")
	_, disks := parseDisks("8 0 sda\n")
	_, pressure := parsePressure("io", "some avg10=x avg60=0 avg300=0\n")
	_, _, _, load := parseLoad("NaN 1 2")
	_, uid := parseUID("Uid: x\n")
	for err, want := range map[error]string{
		stat:     `/proc/stat: unexpected format: found "cpu 1\n", want "NAME NUMBER…"`,
		process:  `/proc/PID/stat: unexpected format: found "42 nothing", want "PID (NAME) STATE PPID …"`,
		memory:   `/proc/meminfo: unexpected format: found "MemTotal: 1000 MB\n", want "NAME: NUMBER kB"`,
		none:     `/proc/meminfo: unexpected format: found "", want "MemTotal:"`,
		network:  `/proc/net/dev: unexpected format: found "lo: 1 2\n", want "NAME: 16 numbers"`,
		disks:    `/proc/diskstats: unexpected format: found "8 0 sda\n", want "MAJOR MINOR NAME and numbers"`,
		pressure: `/proc/pressure/io: unexpected format: found "some avg10=x avg60=0 avg300=0\n", want "avg10=0.00"`,
		load:     `/proc/loadavg: unexpected format: found "NaN 1 2", want "1.00 2.00 3.00 …"`,
		uid:      `/proc/PID/status: unexpected format: found "Uid: x\n", want "Uid: REAL EFFECTIVE SAVED FILESYSTEM"`,
	} {
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if number == nil {
		t.Error("a negative time")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{statFile, processLine, memFile, netFile, diskFile, pressureFile, "0.1 0.2 0.3\n", "Uid:\t0\t1\t2\t3\n", "0::/x\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data string) {
		_, _ = parseStat(data)
		if p, err := parseProcess(data); err == nil && (p.PID < 0 || len(p.State) != 1) {
			t.Errorf("process %+v", p)
		}
		_, _ = parseMemory(data)
		_, _ = parseInterfaces(data)
		_, _ = parseDisks(data)
		_, _ = parsePressure("io", data)
		if one, _, _, err := parseLoad(data); err == nil && !(one >= 0) {
			t.Errorf("load %v", one)
		}
		_, _ = parseUID(data)
		_ = unified(data)
		_ = parseModel(data)
		if c := command(data); strings.ContainsAny(c, "\n\x1b\x00") {
			t.Errorf("command %q", c)
		}
	})
}

//go:build linux

package nodeinfo

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
)

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(oracle.Tool(t, program), args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What ps says of this process and of its child, which does nothing.
func TestProcessesAgainstPS(t *testing.T) {
	child := exec.Command(oracle.Tool(t, "sleep"), "60")
	child.Args = []string{"sleep", "60"}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	var p Process
	for try := 0; p.Name != "sleep" || p.State != "S"; try++ {
		list, err := Local().Processes(true)
		if err != nil || try == 200 {
			t.Fatal(p, err)
		}
		for _, x := range list {
			if int(x.PID) == child.Process.Pid {
				p = x
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	got := fmt.Sprintf("%d %d %d %s %d %d %s", p.PID, p.Parent, p.UID, p.State, p.Threads, p.Virtual>>10, p.Command)
	want := strings.Join(strings.Fields(output(t, "ps", "-o", "pid=,ppid=,euid=,s=,nlwp=,vsz=,args=", "-p", fmt.Sprint(p.PID))), " ")
	if got != want {
		t.Errorf("%s\nps says\n%s", got, want)
	}
	// The kernel counts these pages on every processor for itself, and adds them up
	// late.
	var rss uint64
	if _, err := fmt.Sscan(output(t, "ps", "-o", "rss=", "-p", fmt.Sprint(p.PID)), &rss); err != nil || p.Resident == 0 || p.Resident>>10 > rss+4096 || rss > p.Resident>>10+4096 {
		t.Errorf("%d KiB resident, ps says %d, %v", p.Resident>>10, rss, err)
	}
	if p.Parent != int32(os.Getpid()) || p.Kernel || time.Since(p.Started).Abs() > 5*time.Second {
		t.Errorf("the child is %+v", p)
	}
}

// Kernel threads are those without memory that ps puts into brackets.
func TestKernelThreads(t *testing.T) {
	all, err := Local().Processes(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Kernel && (p.Command != "" || p.Resident != 0) {
			t.Errorf("a thread of the kernel: %+v", p)
		}
	}
	few, err := Local().Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range few {
		if p.Kernel {
			t.Errorf("a thread of the kernel, which was not asked for: %+v", p)
		}
	}
}

func TestMemoryAgainstFree(t *testing.T) {
	m, err := Local().Memory()
	if err != nil {
		t.Fatal(err)
	}
	var total, used, free, shared, buffers, cache, available uint64
	line := strings.Split(output(t, "free", "--bytes", "--wide"), "\n")[1]
	if _, err := fmt.Sscanf(line, "Mem: %d %d %d %d %d %d %d", &total, &used, &free, &shared, &buffers, &cache, &available); err != nil {
		t.Fatal(line, err)
	}
	// Other programs run meanwhile; a wrong unit would be off by 1024.
	near := func(a, b uint64) bool { return math.Abs(float64(a)-float64(b)) < float64(total)/5 }
	if m.Total != total || !near(m.Free, free) || !near(m.Available, available) || !near(m.Cached+m.Reclaimable, cache) || !near(m.Shared, shared) {
		t.Errorf("%+v, free says %s", m, line)
	}
}

func TestMountsAgainstFindmnt(t *testing.T) {
	mounts, err := Local().Mounts()
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		FileSystems []struct{ Target, FSType string }
	}
	if err := json.Unmarshal([]byte(output(t, "findmnt", "--json", "--list", "--bytes", "--output", "TARGET,FSTYPE")), &want); err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for _, m := range mounts {
		types[m.Target] = m.Type
	}
	// Others may mount meanwhile, but not where the system lives.
	checked := 0
	for _, w := range want.FileSystems {
		if w.Target == "/" || w.Target == "/proc" || w.Target == "/sys" || w.Target == "/dev" {
			checked++
			if types[w.Target] != w.FSType {
				t.Errorf("%s is %q, findmnt says %q", w.Target, types[w.Target], w.FSType)
			}
		}
	}
	if checked < 2 {
		t.Errorf("findmnt has %d mounts to compare", checked)
	}
}

func TestSpaceAgainstDF(t *testing.T) {
	m := Mount{Target: "/", Type: "x"}
	m.space()
	var size, used, available uint64
	lines := strings.Split(output(t, "df", "--block-size=1", "--output=size,used,avail", "/"), "\n")
	if _, err := fmt.Sscan(lines[1], &size, &used, &available); err != nil {
		t.Fatal(lines, err)
	}
	if m.Size != size || math.Abs(float64(m.Used)-float64(used)) > float64(size)/10 || m.Available > size {
		t.Errorf("%+v, df says %s", m, lines[1])
	}
	m = Mount{Target: "/", Type: "nfs"}
	if m.space(); m.Size != 0 {
		t.Error("space was asked for over a network")
	}
}

func TestStatsOfThisMachine(t *testing.T) {
	s, err := Local().Stats()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.CPUs) < runtime.NumCPU() || s.CPU.User == 0 || s.Forks == 0 || s.ContextSwitches == 0 || s.Boot.Year() < 2000 {
		t.Errorf("%+v", s)
	}
	names := map[string]bool{}
	for _, i := range s.Interfaces {
		names[i.Name] = true
	}
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if !names[i.Name] {
			t.Errorf("interface %s is missing in %v", i.Name, names)
		}
	}
}

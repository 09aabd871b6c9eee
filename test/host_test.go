//go:build linux

package test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// maxUsed is what a container host may use of its memory after the start, in bytes,
// when its layers are in memory too.
const maxUsed = 200 << 20

// A container host, in which nothing runs yet, uses little memory, and its screen
// shows what it is. Both are so with the layers in memory and on the disk.
func TestContainerHost(t *testing.T) {
	t.Parallel()
	kiln, base := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_BASE_CONTAINERS")
	for _, layers := range []string{"ram", "boot"} {
		t.Run(layers, func(t *testing.T) {
			if testing.Short() {
				t.Skip("SKIPPED: boots a machine")
			}
			if layers == "boot" { // takes less memory than "ram"
				full(t)
			}
			t.Parallel()
			dir := t.TempDir()
			disk := filepath.Join(dir, "metal.raw")
			run(t, kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", dir)
			run(t, kiln, "build", "metal", "--base", base, "--set", "disk.layers="+layers, "--config", filepath.Join(dir, "machine.yaml"), "--output", disk)
			port := freePort(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			var serial recording
			m, err := vm.Start(ctx, vm.Config{Image: disk, Firmware: vm.BIOS, Screen: true, Snapshot: true, Forward: map[int]int{port: 50000}}, &serial)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Stop()
			defer func() {
				if t.Failed() {
					t.Logf("console:\n%s", m.Console())
				}
			}()
			ready(t, ctx, m)
			admin := remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", port), contexts: filepath.Join(dir, "client.yaml")}
			admin.awaitService(t, ctx, "containerd")
			shows(t, ctx, m, "node1", "ready", "10.0.2.15/24", "mutual TLS on port 50000", "apid running", "containerd running", "stage=config")
			if used := admin.memory(t); used > maxUsed {
				t.Errorf("%d MiB of memory are used, want at most %d", used>>20, maxUsed>>20)
			}
			// The boot loader is not kiln.
			_, ours, _ := bytes.Cut(serial.bytes(), []byte("kiln: stage=initramfs"))
			if i := bytes.IndexByte(ours, 0x1b); i >= 0 {
				t.Errorf("control sequences on the serial console: %q", ours[max(0, i-80):min(len(ours), i+20)])
			}
			if len(ours) == 0 {
				t.Error("nothing was recorded of the serial console")
			}
		})
	}
}

// A recording holds what was written to it.
type recording struct {
	mu   sync.Mutex
	data []byte
}

func (r *recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data = append(r.data, p...)
	return len(p), nil
}

func (r *recording) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.data)
}

// shows waits until all of the words are on the screen.
func shows(t *testing.T, ctx context.Context, m *vm.Machine, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		text, err := m.Text(ctx)
		if err != nil {
			t.Fatal(err)
		}
		missing := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return strings.Contains(text, w) })
		if len(missing) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("the screen does not show %q:\n%s", missing, text)
			return
		case <-time.After(time.Second):
		}
	}
}

// awaitService waits until a service runs.
func (r remote) awaitService(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	for {
		var nodes []struct {
			Services []struct{ Name, State, Message string }
		}
		out, err := r.command("services", "--output", "json").Output()
		if err == nil {
			err = json.Unmarshal(out, &nodes)
		}
		if err == nil && len(nodes) == 1 {
			for _, s := range nodes[0].Services {
				if s.Name == name && s.State == "running" {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not run: %v\n%s", name, err, out)
		case <-time.After(2 * time.Second):
		}
	}
}

var pssLine = regexp.MustCompile(`(?m)^(Pss|Pss_Anon|Pss_File):\s+(\d+) kB$`)

// memory returns the bytes of memory that are used, and logs what for.
func (r remote) memory(t *testing.T) (used uint64) {
	t.Helper()
	var nodes []struct {
		Total, Free, Available, Buffers, Cached, Shared, Slab, Reclaimable uint64 `json:",string"`
	}
	r.json(t, &nodes, "memory")
	if len(nodes) != 1 || nodes[0].Total == 0 {
		t.Fatalf("memory: %+v", nodes)
	}
	m := nodes[0]
	used = m.Total - m.Available
	t.Logf("%d MiB of %d are used; free %d, file cache %d, of that in tmpfs and the like %d, slab %d, of that reclaimable %d",
		used>>20, m.Total>>20, m.Free>>20, (m.Buffers+m.Cached)>>20, m.Shared>>20, m.Slab>>20, m.Reclaimable>>20)
	t.Logf("kept free by the kernel: %s kB", strings.TrimSpace(r.run(t, "read", "/proc/sys/vm/min_free_kbytes")))
	for line := range strings.Lines(r.run(t, "read", "/proc/meminfo")) {
		name, _, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"AnonPages", "AnonHugePages", "KernelStack", "PageTables", "VmallocUsed"}, name) {
			t.Log(strings.TrimSpace(line))
		}
	}
	type process struct {
		PID      int
		Name     string
		Resident uint64 `json:",string"`
	}
	var lists []struct{ Processes []process }
	r.json(t, &lists, "ps")
	if len(lists) != 1 || len(lists[0].Processes) == 0 {
		t.Fatalf("ps: %+v", lists)
	}
	processes := lists[0].Processes
	slices.SortFunc(processes, func(a, b process) int { return cmp.Compare(b.Resident, a.Resident) })
	for _, p := range processes {
		kib := map[string]int{}
		for _, f := range pssLine.FindAllStringSubmatch(r.run(t, "read", fmt.Sprintf("/proc/%d/smaps_rollup", p.PID)), -1) {
			kib[f[1]], _ = strconv.Atoi(f[2])
		}
		t.Logf("process %d %s: resident %.1f MiB; its share %.1f MiB, anonymous %.1f MiB", p.PID, p.Name, float64(p.Resident)/(1<<20), float64(kib["Pss"])/1024, float64(kib["Pss_Anon"])/1024)
	}
	return used
}

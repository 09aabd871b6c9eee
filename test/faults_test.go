//go:build linux

package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// The tests here are machines that something is wrong with. Each must be up and
// managed through its API, and say what it is.

// ruin overwrites the first bytes of a partition, or all of it if n is 0.
func ruin(t *testing.T, disk, label string, n int64) {
	t.Helper()
	p := readTable(t, disk, 512).find(t, label)
	if n == 0 {
		n = p.size
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, int(n)), p.start); err != nil {
		t.Fatal(err)
	}
}

// enter makes data the configuration that a node has kept on STATE.
func enter(t *testing.T, disk string, data []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, oracle.Tool(t, "debugfs"), "-w", "-R", "write "+file+" config.yaml", inFile(t, disk, "STATE"))
}

// fails wants a check of a node's health to fail, with all of the words.
func (r remote) fails(t *testing.T, name string, words ...string) {
	t.Helper()
	c := r.check(t, name)
	for _, w := range words {
		if c.Passed || !strings.Contains(c.Message, w) {
			t.Errorf("health: %+v, want it to fail with %q", c, w)
		}
	}
}

// applied gives a node a configuration and returns what the client prints.
func (r remote) applied(t *testing.T, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "machine.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	c := r.command("config", "apply", file)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("config apply: %v\n%s", err, out)
	}
	return string(out)
}

// notes wants the node to have said these on its console, and as events.
func notes(t *testing.T, m *vm.Machine, admin remote, words ...string) {
	t.Helper()
	console, events := m.Console(), admin.run(t, "events")
	for _, w := range words {
		if !strings.Contains(console, w) {
			t.Errorf("the console does not say %q", w)
		}
		if !strings.Contains(events, w) {
			t.Errorf("the events do not say %q:\n%s", w, events)
		}
	}
}

// kernelDocument is a configuration that names a module which there is not.
const kernelDocument = `apiVersion: v1alpha1
kind: Kernel
modules: [{name: no_such_module}]
`

// linkDocuments are two links, to a network and to nowhere.
const linkDocuments = `apiVersion: v1alpha1
kind: Link
name: eth0
dhcp4: true
---
apiVersion: v1alpha1
kind: Link
name: eth1
dhcp4: true
`

// recreateDocument is the policy for an EPHEMERAL that cannot be repaired.
const recreateDocument = `apiVersion: v1alpha1
kind: Volume
name: EPHEMERAL
damaged: recreate
`

var varMount = regexp.MustCompile(`(?m)^/var\s`)

// An installed node of which much is wrong at once keeps its identity: STATE has
// errors, which are repaired; EPHEMERAL is beyond repair, and is kept until the
// configuration says otherwise; META is garbage; the clock is in 1970, before the
// certificates of the node and of its clients; a network card is in a network
// without DHCP; and a module is missing.
func TestFaults(t *testing.T) {
	t.Parallel()
	disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
	e := enrol(t, "troubled", port)
	enter(t, disk, e.with(kernelDocument, linkDocuments))
	run(t, oracle.Tool(t, "debugfs"), "-w", "-R", "set_super_value state 2", inFile(t, disk, "STATE"))
	ruin(t, disk, "EPHEMERAL", 8<<20)
	ruin(t, disk, "META", 0)

	c := onDisk(t, disk, "kiln.platform=metal", port)
	c.Restart = true
	c.More = []string{"-rtc", "base=1970-01-01T00:00:00", "-netdev", "hubport,id=nowhere,hubid=7", "-device", "virtio-net-pci,netdev=nowhere"}
	ctx, m := startWithin(t, 4*patience, c)
	up := settled(t, ctx, m)
	if up.fields["state"] != "vda5" || up.fields["ephemeral"] != "-" {
		t.Errorf("ready with state=%s ephemeral=%s, want vda5 and none", up.fields["state"], up.fields["ephemeral"])
	}
	if maintenanceLine.MatchString(m.Console()) {
		t.Error("a node with an identity was in maintenance mode")
	}
	if c := e.admin.check(t, "config"); !c.Passed {
		t.Errorf("health of the configuration: %+v", c)
	}
	e.admin.fails(t, "EPHEMERAL", "cannot be repaired", "nothing is mounted on /var", "kiln.reset=ephemeral")
	e.admin.fails(t, "META", "damaged")
	e.admin.fails(t, "modules", "no_such_module: there is no module")
	e.admin.fails(t, "network", "eth1")
	notes(t, m, e.admin, "nothing is mounted on /var", "no_such_module", "the clock showed 1970-01-01")
	for _, want := range []string{"STATE: the kernel has found errors in it; it is checked", "EPHEMERAL: e2fsck: "} {
		if !strings.Contains(m.Console(), want) {
			t.Errorf("the console does not say %q", want)
		}
	}
	if mounts := e.admin.run(t, "mounts"); varMount.MatchString(mounts) {
		t.Errorf("mounts:\n%s\nwant nothing on /var", mounts)
	}

	// A configuration is kept all the same, and says what to do.
	better := e.with(linkDocuments, recreateDocument)
	e.admin.applied(t, better)
	e.admin.run(t, "reboot")
	if up := settled(t, ctx, m); up.fields["ephemeral"] != "vda6" {
		t.Errorf("ready with ephemeral=%s, want vda6", up.fields["ephemeral"])
	}
	if !strings.Contains(m.Console(), "it is made anew, as the configuration says") {
		t.Error("the console does not say that EPHEMERAL was made anew")
	}
	if mounts := e.admin.run(t, "mounts"); !varMount.MatchString(mounts) {
		t.Errorf("mounts:\n%s\nwant /var", mounts)
	}
	shutdown(t, ctx, m)
	m.Stop()
	holdsConfig(t, disk, 512, string(better))
	run(t, oracle.Tool(t, "e2fsck"), "-fn", carve(t, disk, readTable(t, disk, 512).find(t, "EPHEMERAL")))
}

// A node whose STATE is beyond repair, and whose configuration's server answers with
// an error and then not at all, takes a configuration from whoever has its
// fingerprint. It says that it cannot keep it, and leaves STATE as it is.
func TestFaultsWithoutState(t *testing.T) {
	full(t)
	t.Parallel()
	disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
	e := enrol(t, "stateless", port)
	ruin(t, disk, "STATE", 0)
	state := carve(t, disk, readTable(t, disk, 512).find(t, "STATE"))
	before := fileSum(t, state)

	var count atomic.Int64
	end := make(chan struct{})
	server := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if count.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		select {
		case <-end:
		case <-r.Context().Done():
		}
	})
	defer close(end)
	c := onDisk(t, disk, "kiln.platform=metal kiln.config=http://10.0.2.100/node.yaml", port)
	c.Serve = server.at(t, "10.0.2.100:80")
	ctx, m := startWithin(t, 3*patience, c)
	line, err := m.Wait(ctx, maintenanceLine)
	if err != nil {
		t.Fatal(err)
	}
	l, _, err := parseMilestone(line)
	if err != nil {
		t.Fatal(err)
	}
	stranger := e.admin
	stranger.contexts, stranger.flags = "", []string{"--insecure", "--fingerprint", l.fields["fingerprint"]}
	for { // as soon as the server answers, whatever is waited for
		if _, err := stranger.command("version").Output(); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the API does not answer")
		}
		time.Sleep(time.Second)
	}
	if out := stranger.applied(t, e.machine); !strings.Contains(out, "STATE is damaged, the configuration is lost with the next start") {
		t.Errorf("config apply: %s\nwant a warning", out)
	}
	if _, err := m.Wait(ctx, mutualLine); err != nil {
		t.Fatal(err)
	}
	if out := e.admin.run(t, "config", "get"); !strings.Contains(out, "hostname: stateless") {
		t.Errorf("config get: %s", out)
	}
	e.admin.fails(t, "STATE", "it stays as it is, and the node keeps nothing", "kiln.reset=state")
	e.admin.fails(t, "config", "STATE is damaged")
	notes(t, m, e.admin, "kiln.config: GET http://10.0.2.100/node.yaml: 500 Internal Server Error; asking again", "it stays as it is, and the node keeps nothing")
	shutdown(t, ctx, m)
	m.Stop()
	if after := fileSum(t, carve(t, disk, readTable(t, disk, 512).find(t, "STATE"))); after != before {
		t.Error("STATE was changed")
	}
}

// A server that is slow, cuts off, has too much, and garbage, is asked again, with
// pauses; what it has in the end is the configuration.
func TestFaultsOfConfigurationServer(t *testing.T) {
	full(t)
	disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
	e := enrol(t, "patient", port)
	var count atomic.Int64
	server := newService(t, func(w http.ResponseWriter, r *http.Request) {
		switch count.Add(1) {
		case 1: // slower than anybody waits for
			select {
			case <-time.After(50 * time.Second):
			case <-r.Context().Done():
			}
		case 2:
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "apiVersion: v1alpha1\n")
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			_, _ = io.CopyN(w, zeros{}, 64<<20)
		case 5:
			fmt.Fprint(w, "\x7fELF\xff\x01\x01")
		default:
			_, _ = w.Write(e.machine)
		}
	})
	c := onDisk(t, disk, "kiln.platform=metal kiln.config=http://10.0.2.100/node.yaml", port)
	c.Serve = server.at(t, "10.0.2.100:80")
	ctx, m := startWithin(t, 4*patience, c)
	if _, err := m.Wait(ctx, maintenanceLine); err != nil {
		t.Fatal(err)
	}
	if up := ready(t, ctx, m); up.fields["config"] != "none" {
		t.Errorf("ready with config=%s, want none", up.fields["config"])
	}
	if _, err := m.Wait(ctx, mutualLine); err != nil {
		t.Fatal(err)
	}
	const get = "kiln.config: GET http://10.0.2.100/node.yaml: "
	notes(t, m, e.admin, "there is none yet; the node goes on without it", get+"the answer took too long", get+"unexpected EOF", get+"503 Service Unavailable",
		get+"the answer has more than 1048576 bytes", "that are no text in UTF-8", "all sources are asked again, every 1m0s")
	if c := e.admin.check(t, "config"); !c.Passed {
		t.Errorf("health of the configuration: %+v", c)
	}
	shutdown(t, ctx, m)
	m.Stop()
	holdsConfig(t, disk, 512, string(e.machine))
}

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Without a place to write to containerd ends again and again. It is started less
// and less often, and the node answers.
func TestFaultsOfContainerd(t *testing.T) {
	full(t)
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, disk string)
		check  string
		words  []string
	}{
		{"no EPHEMERAL", func(t *testing.T, disk string) { ruin(t, disk, "EPHEMERAL", 8<<20) }, "service containerd", []string{"is started again after"}},
		{"full", fill, "EPHEMERAL", []string{"/var is full"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
			e := enrol(t, "busy", port)
			enter(t, disk, e.machine)
			tt.damage(t, disk)
			c := kernelIn(t, oracle.Artifact(t, "KILN_BASE_CONTAINERS"), "kiln.platform=metal")
			c.Disks, c.Forward, c.Memory = []string{disk}, map[int]int{port: 50000}, 1536
			ctx, m := startWithin(t, 4*patience, c)
			ready(t, ctx, m)
			time.Sleep(time.Minute)
			e.admin.fails(t, tt.check, tt.words...)
			var list []struct {
				Services []struct {
					Name, State, Message string
					Restarts             int
				}
			}
			e.admin.json(t, &list, "services")
			for _, s := range list[0].Services {
				t.Logf("%+v", s)
				if s.Restarts > 12 {
					t.Errorf("%s was started %d times in a minute", s.Name, s.Restarts)
				}
			}
			t.Log(e.admin.run(t, "logs", "containerd"))
			e.admin.applied(t, e.with(kernelDocument))
			shutdown(t, ctx, m)
			m.Stop()
			holdsConfig(t, disk, 512, string(e.with(kernelDocument)))
		})
	}
}

// fill leaves no room on EPHEMERAL.
func fill(t *testing.T, disk string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, bytes.Repeat([]byte("fill"), 60<<20/4), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // it ends when the file system does
		c := exec.Command(oracle.Tool(t, "debugfs"), "-w", "-R", fmt.Sprintf("write %s large%d", file, i), inFile(t, disk, "EPHEMERAL"))
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// A power cut while configurations are saved leaves one of them, whole.
func TestPowerCutSaving(t *testing.T) {
	full(t)
	disk, port := copySparse(t, oracle.Artifact(t, "KILN_IMAGE")), freePort(t)
	e := enrol(t, "cut", port)
	enter(t, disk, e.machine)
	for _, cut := range []bool{true, false} {
		c := onDisk(t, disk, "kiln.platform=metal", port)
		ctx, m := startWithin(t, 2*patience, c)
		settled(t, ctx, m)
		if out := e.admin.run(t, "config", "get"); !strings.Contains(out, "hostname: cut\n") || strings.Contains(out, "swappiness") && !swappiness.MatchString(out) {
			t.Fatalf("config get: %s", out)
		}
		if c := e.admin.check(t, "config"); !c.Passed || c.Message != "" {
			t.Errorf("health of the configuration: %+v", c)
		}
		if !cut {
			if !swappiness.MatchString(e.admin.run(t, "config", "get")) {
				t.Error("none of the configurations that were applied is there")
			}
			return
		}
		var applied atomic.Int64
		stop, done := make(chan struct{}), make(chan struct{})
		dir := t.TempDir()
		go func() {
			defer close(done)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				doc := fmt.Sprintf("apiVersion: v1alpha1\nkind: Kernel\nsysctls: {vm.swappiness: %d}\n", 10+n%2)
				file := filepath.Join(dir, "machine.yaml")
				if os.WriteFile(file, e.with(doc), 0o600) == nil && e.admin.command("config", "apply", "--timeout", "5s", file).Run() == nil {
					applied.Add(1)
				}
			}
		}()
		for applied.Load() < 3 && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond) // in the midst of the next
		m.Stop()
		close(stop)
		<-done
		t.Logf("%d configurations were applied until the power was cut", applied.Load())
	}
}

var swappiness = regexp.MustCompile(`vm\.swappiness: '?1[01]'?\n`)

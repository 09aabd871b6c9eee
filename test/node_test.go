//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/hardening"
)

// A remote is a node that runs in a machine, and a client of it.
type remote struct {
	kiln     string
	endpoint string
	contexts string   // file, "" for a client without a certificate
	flags    []string // for every command
}

// freePort returns a port of the loopback address that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (r remote) command(args ...string) *exec.Cmd {
	all := append([]string{"node"}, args...)
	all = append(all, "--endpoint", r.endpoint)
	if r.contexts != "" {
		all = append(all, "--contexts", r.contexts)
	}
	return exec.Command(r.kiln, append(all, r.flags...)...)
}

func (r remote) run(t *testing.T, args ...string) string {
	t.Helper()
	c := r.command(args...)
	return run(t, c.Path, c.Args[1:]...)
}

// recognised waits until the node's API has the certificate that its console has told
// of: the server hears of it a moment later.
func (r remote) recognised(t *testing.T) {
	t.Helper()
	for range 60 {
		if r.command("version").Run() == nil {
			return
		}
		time.Sleep(time.Second)
	}
	t.Error("the node does not identify itself as its configuration says")
}

// refused wants an error with all of the words.
func (r remote) refused(t *testing.T, args []string, words ...string) {
	t.Helper()
	out, err := r.command(args...).CombinedOutput()
	if err == nil {
		t.Errorf("kiln node %v: succeeds, want it refused:\n%s", args, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			t.Errorf("kiln node %v: %s\nwant %q in it", args, out, w)
		}
	}
}

func (r remote) json(t *testing.T, v any, args ...string) {
	t.Helper()
	out := r.run(t, append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		t.Fatalf("kiln node %v: %v\n%s", args, err, out)
	}
}

var (
	maintenanceLine = regexp.MustCompile(`(^|\] )kiln: stage=api \S+ mode=maintenance fingerprint=`)
	configLine      = regexp.MustCompile(`(^|\] )kiln: stage=config \S+ from=STATE digest=`)
	mutualLine      = regexp.MustCompile(`(^|\] )kiln: stage=api \S+ mode="mutual TLS" port=50000`)
)

// A node without a configuration gets one through its API, and is managed from
// then on by whoever has a certificate for that, also after a restart.
func TestNode(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	ctx, m := start(t, vm.Config{Image: disk, Firmware: vm.BIOS, Forward: map[int]int{port: 50000}, Restart: true,
		UUID: "6b696c6e-0000-4000-8000-000000000001"})
	line, err := m.Wait(ctx, maintenanceLine)
	if err != nil {
		t.Fatal(err)
	}
	l, _, err := parseMilestone(line)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := l.fields["fingerprint"]
	ready(t, ctx, m)

	stranger := remote{kiln: oracle.Artifact(t, "KILN_BIN"), endpoint: fmt.Sprintf("127.0.0.1:%d", port), flags: []string{"--insecure"}}
	stranger.refused(t, []string{"version"}, fingerprint, "--fingerprint")
	wrong := "SHA256:" + strings.Repeat("A", 43)
	stranger.flags = []string{"--insecure", "--fingerprint", wrong}
	stranger.refused(t, []string{"version"}, fingerprint, wrong)
	stranger.flags = []string{"--insecure", "--fingerprint", fingerprint}
	if out := stranger.run(t, "version"); !strings.Contains(out, "maintenance") {
		t.Errorf("version: %s", out)
	}
	stranger.refused(t, []string{"services"}, "the node has no configuration yet")

	dir := t.TempDir()
	run(t, stranger.kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", dir)
	machine := filepath.Join(dir, "machine.yaml")
	if out := stranger.run(t, "config", "apply", "--dry-run", machine); !strings.Contains(out, "+ API") {
		t.Errorf("config apply --dry-run: %s", out)
	}
	stranger.run(t, "config", "apply", withModules(t, machine, "numdummies=2"))
	for _, want := range []*regexp.Regexp{configLine, mutualLine} {
		if _, err := m.Wait(ctx, want); err != nil {
			t.Fatal(err)
		}
	}

	admin := stranger
	admin.contexts, admin.flags = filepath.Join(dir, "client.yaml"), nil
	admin.recognised(t)
	isManaged(t, admin)
	hasDevices(t, admin)
	absent := nodeModule{Name: "kiln_absent", State: "failed", Reason: "there is no module or alias of that name"}
	admin.hasModule(t, absent)
	admin.hasModule(t, nodeModule{Name: "dummy", State: "loaded", Parameters: "numdummies=2"})
	admin.run(t, "config", "apply", withModules(t, machine, "numdummies=3"))
	admin.hasModule(t, nodeModule{Name: "dummy", State: "loaded", Parameters: "numdummies=2", Reason: `is to have "numdummies=3": restart the node`})
	id := admin.run(t, "read", "/etc/machine-id")
	if !regexp.MustCompile(`^[0-9a-f]{32}\n$`).MatchString(id) {
		t.Errorf("/etc/machine-id: %q", id)
	}
	stranger.refused(t, []string{"version"}, "certificate")
	reader := admin
	reader.contexts = filepath.Join(t.TempDir(), "reader.yaml")
	run(t, reader.kiln, "config", "client", "--ca", filepath.Join(dir, "ca.pem"), "--role", "reader", "--address", "127.0.0.1", "--output", reader.contexts)
	reader.run(t, "services")
	reader.refused(t, []string{"reboot"}, "reader", "operator")

	admin.run(t, "reboot")
	if _, err := m.Wait(ctx, mutualLine); err != nil { // with what is on the disk
		t.Fatal(err)
	}
	ready(t, ctx, m)
	isManaged(t, admin)
	admin.hasModule(t, absent)
	admin.hasModule(t, nodeModule{Name: "dummy", State: "loaded", Parameters: "numdummies=3"})
	if again := admin.run(t, "read", "/etc/machine-id"); again != id {
		t.Errorf("/etc/machine-id: %q after a restart, was %q", again, id)
	}
	isHardened(t, admin)
	shutdown(t, ctx, m)
}

// isManaged wants a node to be what its configuration says, and to be closed
// otherwise.
func isManaged(t *testing.T, admin remote) {
	t.Helper()
	if out := admin.run(t, "version"); !strings.Contains(out, "node1") || !strings.Contains(out, "normal") {
		t.Errorf("version: %s", out)
	}
	if out := admin.run(t, "read", "/etc/hostname"); out != "node1\n" {
		t.Errorf("/etc/hostname: %q", out)
	}
	listensOnly(t, admin, false)
	var memory []struct {
		Total, Available uint64 `json:",string"`
	}
	admin.json(t, &memory, "memory")
	if len(memory) != 1 || memory[0].Total == 0 || memory[0].Total-memory[0].Available > 200<<20 {
		t.Errorf("memory: %+v; want at most 200 MiB in use", memory)
	}
}

// isHardened wants the kernel of a node that has been restarted to have what an
// image can give it, and to have got the seed of the time before.
func isHardened(t *testing.T, admin remote) {
	t.Helper()
	var reports []struct {
		OK, Failed int
		Results    []hardening.Result
	}
	for range 60 { // all is set when the node has its configuration
		admin.json(t, &reports, "hardening")
		if slices.ContainsFunc(reports[0].Results, func(r hardening.Result) bool {
			return r.Name == "kernel.kexec_load_disabled" && r.Verdict == hardening.OK
		}) {
			break
		}
		time.Sleep(time.Second)
	}
	if len(reports) != 1 || reports[0].OK < 100 {
		t.Fatalf("hardening: %+v; want 100 recommendations to be met", reports)
	}
	// A container host needs namespaces and drivers; a warning does not end it.
	want := []string{"kernel.modules_disabled", "kernel.warn_limit", "user.max_user_namespaces"}
	var failed []string
	for _, r := range reports[0].Results {
		if r.Kind == hardening.Sysctl && r.Verdict == hardening.Fail {
			failed = append(failed, r.Name)
		}
		if slices.Contains([]string{"SLAB_MERGE_DEFAULT", "page_alloc.shuffle", "KEXEC", "HIBERNATION", "PANIC_ON_OOPS"}, r.Name) && r.Verdict != hardening.OK {
			t.Errorf("hardening: %+v", r)
		}
	}
	if !slices.Equal(failed, want) {
		t.Errorf("parameters that are not as recommended: %v, want %v", failed, want)
	}
	if out := admin.run(t, "read", "/run/kiln/hardening.json"); !json.Valid([]byte(out)) {
		t.Errorf("/run/kiln/hardening.json: %s", out)
	}
	if out := admin.run(t, "dmesg", "--tail", "5"); strings.Count(out, "\n") != 5 {
		t.Errorf("dmesg: %s", out)
	}
	if out := admin.run(t, "events"); !regexp.MustCompile(`random-seed\W+credited`).MatchString(out) {
		t.Errorf("events: %s\nwant the random seed to be credited", out)
	}
}

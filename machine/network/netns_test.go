//go:build linux

package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// nestedEnv names the test that a process in a namespace of its own runs.
const nestedEnv = "KILN_TEST_NETNS"

// nested runs the test in a process with a network namespace of its own, and
// says whether this is that process. With the process go all its links.
func nested(t *testing.T) bool {
	t.Helper()
	oracle.Root(t)
	oracle.Tool(t, "ip")
	if os.Getenv(nestedEnv) == t.Name() {
		// sysfs shows the namespace of the process that mounted it.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	t.Parallel()
	args := []string{"-test.run=^" + t.Name() + "$", "-test.timeout=2m"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), nestedEnv+"="+t.Name())
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in its namespace: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("in its namespace:\n%s", out)
	}
	return false
}

// run runs a command.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(oracle.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func ip(t *testing.T, args string) string {
	t.Helper()
	return run(t, "ip", strings.Fields(args)...)
}

// A peer is a network namespace at the other end of a cable.
type peer struct {
	t   *testing.T
	pid string
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, "sleep"), "infinity")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &peer{t, strconv.Itoa(cmd.Process.Pid)}
	p.ip("link set lo up")
	return p
}

// ip runs ip in the peer's namespace.
func (p *peer) ip(args string) string {
	p.t.Helper()
	return run(p.t, "nsenter", append([]string{"-t", p.pid, "-n", "ip"}, strings.Fields(args)...)...)
}

// cable makes a link here that leads to one of the peer.
func (p *peer) cable(here, there string, addresses ...string) {
	p.t.Helper()
	ip(p.t, fmt.Sprintf("link add %s type veth peer name %s netns %s", here, there, p.pid))
	for _, a := range addresses {
		p.ip(fmt.Sprintf("addr add %s dev %s nodad", a, there))
	}
	p.ip("link set " + there + " up")
}

// A dnsmasq is a DHCP server that runs.
type dnsmasq struct {
	t    *testing.T
	cmd  *exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	once sync.Once
}

func (d *dnsmasq) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *dnsmasq) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// dnsmasq starts one in the peer's namespace.
func (p *peer) dnsmasq(args ...string) *dnsmasq {
	p.t.Helper()
	d := &dnsmasq{t: p.t}
	all := append([]string{"-t", p.pid, "-n", oracle.Tool(p.t, "dnsmasq"), "--conf-file=/dev/null", "--no-daemon", "--port=0", "--log-dhcp", "--no-ping",
		"--dhcp-authoritative", "--user=root", "--pid-file=", "--dhcp-leasefile=" + filepath.Join(p.t.TempDir(), "leases")}, args...)
	d.cmd = exec.Command(oracle.Tool(p.t, "nsenter"), all...)
	d.cmd.Stdout, d.cmd.Stderr = d, d
	d.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		d.stop()
		if p.t.Failed() {
			p.t.Logf("dnsmasq:\n%s", d.text())
		}
	})
	d.wait("started")
	return d
}

func (d *dnsmasq) stop() {
	d.once.Do(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	})
}

// wait waits until the log has a text.
func (d *dnsmasq) wait(text string) {
	d.t.Helper()
	eventually(d.t, "dnsmasq says "+text, func() error {
		if !strings.Contains(d.text(), text) {
			return fmt.Errorf("not yet:\n%s", d.text())
		}
		return nil
	})
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// A node is a Network with what it reported.
type node struct {
	*Network
	t    *testing.T
	mu   sync.Mutex
	logs []string
}

func start(t *testing.T) *node {
	t.Helper()
	n := &node{t: t}
	var err error
	n.Network, err = Start(Options{
		MachineID: [16]byte{1, 2, 3},
		device:    func(l link) bool { return l.kind.typ == "veth" },
		Log: func(s string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.logs = append(n.logs, s)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		if t.Failed() {
			t.Logf("changes:\n%s\n%s\nfaults %+v", strings.Join(n.changes(), "\n"), ip(t, "addr"), n.Status().Faults)
		}
	})
	return n
}

// changes returns what was changed since the last call.
func (n *node) changes() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.logs
	n.logs = nil
	return list
}

func (n *node) apply(s Spec) {
	n.t.Helper()
	if err := n.Apply(n.t.Context(), s); err != nil {
		n.t.Fatal(err)
	}
}

// kernelLink is a link as ip shows it.
type kernelLink struct {
	Name      string   `json:"ifname"`
	MTU       int      `json:"mtu"`
	Master    string   `json:"master"`
	Flags     []string `json:"flags"`
	Addresses []struct {
		Local    string `json:"local"`
		Length   int    `json:"prefixlen"`
		Scope    string `json:"scope"`
		Protocol string `json:"protocol"`
	} `json:"addr_info"`
}

// shown returns the links as ip shows them, by name.
func shown(t *testing.T) map[string]kernelLink {
	t.Helper()
	var list []kernelLink
	if err := json.Unmarshal([]byte(ip(t, "-j addr show")), &list); err != nil {
		t.Fatal(err)
	}
	m := map[string]kernelLink{}
	for _, l := range list {
		m[l.Name] = l
	}
	return m
}

// global returns the addresses of a link but for link-local ones, sorted.
func (l kernelLink) global() string {
	var list []string
	for _, a := range l.Addresses {
		if a.Scope == "global" {
			list = append(list, fmt.Sprintf("%s/%d", a.Local, a.Length))
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// routesShown returns the routes of the main table that the kernel has not made
// itself, as ip shows them, sorted.
func routesShown(t *testing.T, family string) string {
	t.Helper()
	var list []string
	for line := range strings.Lines(ip(t, family+" route show table main")) {
		if !strings.Contains(line, "proto kernel") && !strings.Contains(line, "fe80::/64") {
			list = append(list, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

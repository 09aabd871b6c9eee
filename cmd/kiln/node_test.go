package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/api"
	"github.com/kilnhq/kiln/machine/api/files"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/config/identity"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

// A fakeNode is what PID 1 would be.
type fakeNode struct {
	control.Unimplemented
	name string

	mu  sync.Mutex
	did []string
}

func (f *fakeNode) note(ctx context.Context, format string, a ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, strings.Split(control.Caller(ctx), " at ")[0]+": "+fmt.Sprintf(format, a...))
}

func (f *fakeNode) done() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.did, "\n")
}

func (f *fakeNode) Version(context.Context) (control.Version, error) {
	return control.Version{Version: "1.0", Kernel: "6.12", Architecture: "amd64", Platform: "metal", Hostname: f.name, Slot: "A"}, nil
}

func (f *fakeNode) Health(context.Context) (control.Health, error) {
	return control.Health{Stage: "running", Uptime: 61, Checks: []control.Check{{Name: "disk", Passed: true}, {Name: "time", Message: "no server\x1b[31m answers"}}}, nil
}

func (f *fakeNode) Services(context.Context) (control.ServiceList, error) {
	return control.ServiceList{Services: []control.Service{{Name: "containerd", State: "running", Healthy: true, PID: 7}}}, nil
}

func (f *fakeNode) ControlService(ctx context.Context, s control.ServiceControl) (control.ServiceResult, error) {
	if s.Name != "containerd" {
		return control.ServiceResult{}, fmt.Errorf("there is no service %q, want containerd: %w", s.Name, fs.ErrNotExist)
	}
	f.note(ctx, "%s %s", s.Action, s.Name)
	return control.ServiceResult{Service: control.Service{Name: s.Name, State: "running"}}, nil
}

func (f *fakeNode) Logs(ctx context.Context, r control.LogsRequest, send func(control.LogLine) error) error {
	for i := range 3 {
		if err := send(control.LogLine{Text: fmt.Appendf(nil, "%s line %d", f.name, i)}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeNode) Config(_ context.Context, r control.ConfigRequest) (control.Config, error) {
	if r.Secrets {
		return control.Config{Config: []byte("key: hunter2\n")}, nil
	}
	return control.Config{Config: []byte("key: (secret)\n"), Redacted: true}, nil
}

func (f *fakeNode) ApplyConfig(ctx context.Context, c control.ConfigChange) (control.ConfigResult, error) {
	f.note(ctx, "config %s dry %v", c.Config, c.DryRun)
	return control.ConfigResult{Diff: "-a: 1\n+a: 2\n", Applied: !c.DryRun, Reboot: true}, nil
}

func (f *fakeNode) Meta(context.Context, control.MetaRequest) (control.MetaList, error) {
	return control.MetaList{Values: []control.MetaValue{{Key: 0x06, Name: "upgrade", Value: []byte("A")}, {Key: 0x10, Name: "machine-token", Value: []byte("hunter2")}}}, nil
}

func (f *fakeNode) Upgrade(ctx context.Context, r control.UpgradeRequest, image io.Reader, send func(control.UpgradeProgress) error) error {
	h := sha256.New()
	n, err := io.Copy(h, image)
	if err != nil {
		return err
	}
	if r.Reference == "" && (uint64(n) != r.Size || !bytes.Equal(h.Sum(nil), r.SHA256)) {
		return fmt.Errorf("%w: %d bytes, want %d", control.ErrInvalid, n, r.Size)
	}
	f.note(ctx, "upgrade %s with %d bytes, reboot %v", r.Reference, n, r.Reboot)
	if err := send(control.UpgradeProgress{Step: "write", Total: r.Size}); err != nil {
		return err
	}
	return send(control.UpgradeProgress{Step: "switch", Slot: "B"})
}

func (f *fakeNode) Power(ctx context.Context, r control.PowerRequest) error {
	f.note(ctx, "%s", r.Action)
	return nil
}

func (f *fakeNode) ReadFile(ctx context.Context, r control.ReadRequest, send func(control.FileChunk) error) error {
	f.note(ctx, "read %s", r.Path)
	return send(control.FileChunk{Data: []byte("as root\n")})
}

// A cluster is nodes, and contexts for each role.
type cluster struct {
	nodes     []*fakeNode
	addresses []string
	contexts  string // file
	ca        *identity.Authority
}

// startNode serves a node through a control socket, as PID 1 and apid do.
func startNode(t *testing.T, f *fakeNode, id control.Identity) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	socket := filepath.Join(t.TempDir(), "s")
	cl, err := control.Listen(socket, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	tree, err := files.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	s := api.New(api.Options{Node: &control.Client{Path: socket}, System: nodeinfo.Local(), Disks: blockdev.Local(), Files: tree, Log: quiet, Now: time.Now})
	if err := s.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() {
		done <- (&control.Server{Node: f, Users: []uint32{uint32(os.Getuid())}, Log: quiet}).Serve(ctx, cl)
	}()
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done, tree.Close()); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	now := time.Now()
	c := &cluster{contexts: filepath.Join(t.TempDir(), "nodes.yaml")}
	ca := must(t)(identity.NewCA(rand.Reader, now, "test"))
	c.ca = ca
	for _, name := range names {
		issuer := must(t)(ca.NewIssuer(rand.Reader, now, name))
		own, err := issuer.NewServer(rand.Reader, now, time.Hour, []string{name}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
		if err != nil {
			t.Fatal(err)
		}
		f := &fakeNode{name: name}
		c.nodes = append(c.nodes, f)
		c.addresses = append(c.addresses, startNode(t, f, control.Identity{
			CA: []byte(ca.Certificate()), Certificate: []byte(own.Certificate), Key: control.Secret(own.Key.Reveal()),
		}))
	}
	all := config.Contexts{Current: "admin", Contexts: map[string]config.Context{}}
	for _, r := range identity.Roles() {
		pair, err := ca.NewClient(rand.Reader, now, time.Hour, r, "alice")
		if err != nil {
			t.Fatal(err)
		}
		all.Contexts[string(r)] = config.Context{Nodes: c.addresses, CA: ca.Certificate(), Identity: pair}
	}
	data, err := config.EncodeContexts(&all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.contexts, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T) func(*identity.Authority, error) *identity.Authority {
	return func(a *identity.Authority, err error) *identity.Authority {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
}

// run runs kiln node and returns what it prints.
func (c *cluster) run(t *testing.T, arguments ...string) (out, errout string, err error) {
	t.Helper()
	root := newRoot()
	var o, e bytes.Buffer
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetArgs(append([]string{"node", "--contexts", c.contexts}, arguments...))
	err = root.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

func (c *cluster) want(t *testing.T, want string, arguments ...string) {
	t.Helper()
	out, _, err := c.run(t, arguments...)
	for i, a := range c.addresses {
		out = strings.ReplaceAll(out, a, fmt.Sprintf("NODE%d", i))
	}
	var lines []string
	for l := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(l), " "))
	}
	if got := strings.Join(lines, "\n"); err != nil || got != want {
		t.Errorf("%s\n%s\n%v\nwant\n%s", strings.Join(arguments, " "), got, err, want)
	}
}

func (c *cluster) fails(t *testing.T, want string, code int, arguments ...string) {
	t.Helper()
	out, _, err := c.run(t, arguments...)
	text := fmt.Sprint(err)
	for i, a := range c.addresses {
		text = strings.ReplaceAll(text, a, fmt.Sprintf("NODE%d", i))
	}
	if err == nil || text != want || exitCode(t.Context(), err) != code {
		t.Errorf("%s\n%serror %v\nof code %d, want %d and\n%s", strings.Join(arguments, " "), out, text, exitCode(t.Context(), err), code, want)
	}
}

func TestNodeTables(t *testing.T) {
	c := newCluster(t, "one", "two")
	c.want(t, "NODE HOSTNAME VERSION KERNEL ARCH PLATFORM SLOT MODE\nNODE0 one 1.0 6.12 amd64 metal A normal\nNODE1 two 1.0 6.12 amd64 metal A normal", "version")
	c.want(t, "CHECK STATE MESSAGE\nnode not ready running, up 1m1s\ndisk ok -\ntime failed no server�[31m answers", "health", "--nodes", c.addresses[0])
	c.want(t, "NAME STATE HEALTHY PID RESTARTS SINCE MESSAGE\ncontainerd running no 0 0 - -", "service", "restart", "containerd", "-n", c.addresses[1])
	c.want(t, "two line 0\ntwo line 1\ntwo line 2", "logs", "containerd", "-n", c.addresses[1])
	if got, want := c.nodes[1].done(), "alice (kiln:admin): restart containerd"; got != want || c.nodes[0].done() != "" {
		t.Errorf("the node did %q, want %q", got, want)
	}
	out, _, err := c.run(t, "logs", "containerd")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	if err != nil || len(lines) != 6 || !slices.Contains(lines, c.addresses[0]+": one line 2") || !slices.Contains(lines, c.addresses[1]+": two line 0") {
		t.Errorf("logs of both: %q, %v", lines, err)
	}
	c.want(t, "NAME NODES\n* admin NODE0,NODE1\noperator NODE0,NODE1\nreader NODE0,NODE1", "contexts", "--context", "x", "-o", "table")
}

//go:build linux

package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control/journal"
	"github.com/kilnhq/kiln/machine/machineid"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/platform"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// A lines is a console.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newNode() (*Node, *lines) {
	var l lines
	return &Node{events: journal.New(8), up: make(chan struct{}), changed: make(chan struct{}),
		options: Options{Console: console.New(&l, func() time.Duration { return 0 })}}, &l
}

// A fabric is the wire server of Azure: it is not there at first.
type fabric struct {
	mu     sync.Mutex
	asked  int
	health []string
}

func (f *fabric) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.asked++; {
	case r.Host != "168.63.129.16":
		w.WriteHeader(http.StatusNotFound)
	case f.asked == 1:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.RawQuery == "comp=goalstate":
		_, _ = io.WriteString(w, `<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c</ContainerId>`+
			`<RoleInstanceList><RoleInstance><InstanceId>i</InstanceId></RoleInstance></RoleInstanceList></Container></GoalState>`)
	default:
		data, _ := io.ReadAll(r.Body)
		f.health = append(f.health, string(data))
	}
}

type dialer struct{ address string }

func (d dialer) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	var n net.Dialer
	return n.DialContext(ctx, network, d.address)
}

// Azure is told once, when the node is up, and again until it has understood.
func TestReady(t *testing.T) {
	var f fabric
	server := httptest.NewServer(&f)
	defer server.Close()
	client := platform.NewClient(dialer{server.Listener.Addr().String()}, nil, time.Time{})
	p := platform.New("azure", &platform.Environment{Client: client, LowPort: client, Firmware: fstest.MapFS{},
		Devices: func() ([]volume.Device, error) { return nil, nil }})
	policy := platform.DefaultPolicy()
	policy.First = time.Millisecond
	n, _ := newNode()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.reportReady(t.Context(), p, policy, time.Millisecond)
	}()
	time.Sleep(20 * time.Millisecond)
	f.mu.Lock()
	if f.asked > 0 {
		t.Error("told before the node is up")
	}
	f.mu.Unlock()
	n.Ready()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("not told within a minute")
	}
	if len(f.health) != 1 || !strings.Contains(f.health[0], "<State>Ready</State>") {
		t.Errorf("told %q", f.health)
	}
}

// What goes wrong for long is told of once, and tried again.
func TestReadyFails(t *testing.T) {
	tries := 0
	p := &platform.Platform{Name: "azure", Ready: func(context.Context) error {
		if tries++; tries < 4 {
			return errors.New("no such machine")
		}
		return nil
	}}
	n, lines := newNode()
	close(n.up)
	n.reportReady(t.Context(), p, platform.DefaultPolicy(), time.Millisecond)
	if got := lines.String(); tries != 4 || strings.Count(got, "no such machine") != 1 || !strings.Contains(got, "told again every 1ms") {
		t.Errorf("%d tries\n%s", tries, got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, _ = newNode()
	n.reportReady(ctx, p, platform.DefaultPolicy(), time.Hour) // ends with the node
	n.reportReady(t.Context(), &platform.Platform{}, platform.DefaultPolicy(), time.Hour)
}

// The configuration names a node before the platform does, that before DHCP, and its
// identity when nobody does.
func TestHostname(t *testing.T) {
	n, lines := newNode()
	n.machineID = machineid.ID{0xab, 0xcd}
	if got := n.named(network.Status{}).Hostname; got != "kiln-abcd0000" {
		t.Errorf("without a name: %s", got)
	}
	if got := n.named(network.Status{Hostname: "dhcp"}).Hostname; got != "dhcp" {
		t.Errorf("with DHCP's: %s", got)
	}
	configured := &config.Config{Hostname: &config.Hostname{Hostname: "configured"}}
	told := network.Spec{Hostname: "told"}
	for _, c := range []struct {
		c    *config.Config
		told network.Spec
		want string
	}{
		{nil, network.Spec{}, ""}, {nil, told, "told"}, {&config.Config{}, told, "told"}, {configured, told, "configured"}, {configured, network.Spec{}, "configured"},
	} {
		if got, err := wantedNetwork(c.c, c.told); err != nil || got.Hostname != c.want {
			t.Errorf("%v, %v: %s, %v; want %s", c.c, c.told, got.Hostname, err, c.want)
		}
	}
	bad := &platform.Metadata{Hostname: "no name!"}
	if n.heard(bad); n.described.Hostname != "" || !strings.Contains(lines.String(), `the host name \"no name!\" is none`) {
		t.Errorf("%+v\n%s", n.described, lines)
	}
}

// What the platform describes is the network of a node whose configuration has none.
func TestDescribedNetwork(t *testing.T) {
	n, lines := newNode()
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	n.status.Links = []network.LinkStatus{{Name: "ens3", Permanent: mac}}
	n.heard(&platform.Metadata{Hostname: "n1", Network: []byte("version: 2\nethernets: {a: {match: {macaddress: '52:54:00:00:00:01'}, addresses: [192.0.2.10/24], nameservers: {addresses: [192.0.2.53]}}}")})
	for _, c := range []*config.Config{nil, {}} {
		got, err := wantedNetwork(c, n.described)
		if err != nil || len(got.Links) != 1 || got.Links[0].Name != "ens3" || len(got.Resolvers) != 1 || got.Hostname != "n1" {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	own := &config.Config{Links: []config.Link{{Name: "eth0", DHCP4: true}}}
	if got, err := wantedNetwork(own, n.described); err != nil || len(got.Links) != 1 || got.Links[0].Name != "eth0" || len(got.Resolvers) != 0 || got.Hostname != "n1" {
		t.Errorf("with a network of its own: %+v, %v", got, err)
	}
	n.heard(&platform.Metadata{Hostname: "n2", Network: []byte("version: 9")})
	if !strings.Contains(lines.String(), "found version 9, want 1 or 2; it is not taken") || n.described.Hostname != "n2" || n.described.Links != nil {
		t.Errorf("%+v\n%s", n.described, lines)
	}
}

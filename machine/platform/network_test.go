package platform

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/machine/platform/store"
	"github.com/kilnhq/kiln/machine/platform/vmware"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// built is when the image of the tests was built.
var built = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// A network is one of pipes, in which no time passes by itself: what is not served
// refuses connections.
type network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	servers   []*http.Server
	done      sync.WaitGroup
	dialed    []string
}

func newNetwork(t *testing.T) *network {
	n := &network{listeners: map[string]*listener{}}
	t.Cleanup(n.close)
	return n
}

// close ends all servers.
func (n *network) close() {
	for _, s := range n.servers {
		s.Close()
	}
	n.done.Wait()
	n.servers = nil
}

// serve serves HTTP at address, which is HOST:PORT.
func (n *network) serve(address string, h http.Handler) {
	s := &http.Server{Handler: h}
	n.servers = append(n.servers, s)
	l := n.listen(address)
	n.done.Go(func() { _ = s.Serve(l) })
}

func (n *network) listen(address string) *listener {
	l := &listener{make(chan net.Conn), make(chan struct{}), sync.Once{}}
	n.listeners[address] = l
	return l
}

func (n *network) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	return n.dial(ctx, address, 40000)
}

func (n *network) dial(ctx context.Context, address string, port int) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, address)
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	here, there := pipe(&net.TCPAddr{IP: net.IPv4(169, 254, 1, 2), Port: port})
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lowPort dials as LowPort does.
type lowPort struct{ n *network }

func (l lowPort) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	return l.n.dial(ctx, address, 1023)
}

type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

// machine returns the environment of a machine in that network with nothing else.
func machine(t *testing.T, n *network, args ...string) *Environment {
	t.Helper()
	return &Environment{
		Args:       cmdline.Args(args),
		Client:     NewClient(n, nil, built),
		LowPort:    NewClient(lowPort{n}, nil, built),
		Devices:    func() ([]volume.Device, error) { return nil, nil },
		Firmware:   fstest.MapFS{},
		Hypervisor: func() (vmware.Port, error) { return nil, fmt.Errorf("%w: a test", vmware.ErrOther) },
		State:      store.Store{Dir: t.TempDir()},
		Meta:       func(meta.Key) (string, bool, error) { return "", false, nil },
		Image:      filepath.Join(t.TempDir(), "config.yaml"),
		MAC:        func() string { return "" },
		Hostname:   func() string { return "" },
	}
}

// only returns the sources of a platform with none before or after its own.
func only(p *Platform) []Source {
	var own []Source
	for _, s := range p.Sources {
		switch s.Name {
		case "STATE", "STATE (previous)", "META", "image":
		default:
			own = append(own, s)
		}
	}
	return own
}

// quick is a policy that asks once.
func quick() Policy {
	p := DefaultPolicy()
	p.First, p.Longest = time.Hour, time.Hour
	return p
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

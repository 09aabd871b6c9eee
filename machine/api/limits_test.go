//go:build linux

package api

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/role"
	"github.com/kilnhq/kiln/machine/control"
)

// Connections over the limit of all, or of an address, are closed at once.
func TestConnectionLimits(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := limit(inner, 3, 2)
	taken := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			taken <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(c net.Conn) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("a connection over the limit: %v", err)
		}
	}
	dial("127.0.0.1")
	first := <-taken
	dial("127.0.0.1")
	second := <-taken
	refused(dial("127.0.0.1")) // the third from one address
	dial("127.0.0.2")
	third := <-taken
	refused(dial("127.0.0.3")) // the fourth of all
	first.Close()
	first.Close() // which counts once
	dial("127.0.0.3")
	fourth := <-taken
	refused(dial("127.0.0.1"))
	for _, c := range []net.Conn{second, third, fourth} {
		c.Close()
	}
	if l.total != 0 || len(l.from) != 0 {
		t.Errorf("%d connections from %v are left", l.total, l.from)
	}
}

// What is larger than a configuration can be is refused before a verb sees it.
func TestMessageLimit(t *testing.T) {
	f := counting(t)
	f.serve(t, f.normal(t))
	p := f.ca.issue(t, nil, role.Admin.String())
	c := v1alpha1.NewNodeClient(f.dial(t, f.ca.client(t, &p)))
	_, err := c.ConfigApply(t.Context(), &v1alpha1.ConfigApplyRequest{Config: make([]byte, maxReceive)})
	if status.Code(err) != codes.ResourceExhausted || f.reached.Load() != 0 {
		t.Errorf("error %v", err)
	}
	if _, err := c.ConfigApply(t.Context(), &v1alpha1.ConfigApplyRequest{Config: make([]byte, control.MaxConfig)}); status.Code(err) != codes.OutOfRange {
		t.Errorf("error %v", err)
	}
}

// plain serves a Node with its verbs.
func plain(t *testing.T, n control.Node) (v1alpha1.NodeClient, *fixture) {
	t.Helper()
	f := &fixture{ca: newIssuer(t, "node CA"), Server: New(Options{Node: n, Log: counting(t).log, Now: clock})}
	f.serve(t, f.normal(t))
	p := f.ca.issue(t, nil, role.Admin.String())
	return v1alpha1.NewNodeClient(f.dial(t, f.ca.client(t, &p))), f
}

type upgrading struct {
	control.Unimplemented
}

func (upgrading) Upgrade(_ context.Context, _ control.UpgradeRequest, image io.Reader, send func(control.UpgradeProgress) error) error {
	data, err := io.ReadAll(image)
	if err != nil {
		return err
	}
	return send(control.UpgradeProgress{Step: string(data)})
}

// An image is what its size says, or the node does not take it for one.
func TestUpload(t *testing.T) {
	c, _ := plain(t, upgrading{})
	options := func(o *v1alpha1.UpgradeOptions) *v1alpha1.UpgradeRequest {
		return &v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Options{Options: o}}
	}
	data := func(s string) *v1alpha1.UpgradeRequest {
		return &v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Data{Data: []byte(s)}}
	}
	six := options(&v1alpha1.UpgradeOptions{Size: 6})
	for _, k := range []struct {
		name string
		send []*v1alpha1.UpgradeRequest
		code codes.Code
		want string
	}{
		{"whole", []*v1alpha1.UpgradeRequest{six, data("abc"), data(""), data("def")}, codes.OK, "abcdef"},
		{"short", []*v1alpha1.UpgradeRequest{six, data("abc")}, codes.DataLoss, "the image ends 3 bytes early"},
		{"long", []*v1alpha1.UpgradeRequest{six, data("abcdefg")}, codes.InvalidArgument, "the image has more bytes than its size says"},
		{"options again", []*v1alpha1.UpgradeRequest{six, six}, codes.InvalidArgument, "options again, want the image"},
		{"no options", []*v1alpha1.UpgradeRequest{data("abc")}, codes.InvalidArgument, "the first message of an upgrade holds no options"},
		{"nothing", []*v1alpha1.UpgradeRequest{options(&v1alpha1.UpgradeOptions{})}, codes.InvalidArgument, "an upgrade takes either a reference or the size of the data that follows"},
		{"both", []*v1alpha1.UpgradeRequest{options(&v1alpha1.UpgradeOptions{Size: 1, Reference: "x"})}, codes.InvalidArgument, "an upgrade takes either a reference or the size of the data that follows"},
	} {
		s, err := c.Upgrade(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range k.send {
			if err := s.Send(m); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		m, err := s.Recv()
		if status.Code(err) != k.code || status.Convert(err).Message()+m.GetStep() != k.want {
			t.Errorf("%s: %v, %v, want %s", k.name, m, err, k.want)
		}
	}
}

type panicking struct{ control.Unimplemented }

func (panicking) Version(context.Context) (control.Version, error) { panic("secret") }

func (panicking) Events(context.Context, control.TailRequest, func(control.Event) error) error {
	panic("secret")
}

// A verb that panics ends neither the server nor says why to the client.
func TestPanic(t *testing.T) {
	c, _ := plain(t, panicking{})
	const want = "the node's API failed; its log says why"
	for range 2 {
		if _, err := c.Version(t.Context(), &v1alpha1.VersionRequest{}); status.Code(err) != codes.Internal || status.Convert(err).Message() != want {
			t.Errorf("error %v", err)
		}
		s, err := c.Events(t.Context(), &v1alpha1.EventsRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.Internal || status.Convert(err).Message() != want {
			t.Errorf("error %v", err)
		}
	}
}

// Arguments that make no sense do not reach PID 1.
func TestInvalidArguments(t *testing.T) {
	c, _ := plain(t, control.Unimplemented{})
	ctx := t.Context()
	for _, k := range []struct {
		call func() error
		want string
	}{
		{func() error { _, err := c.ServiceControl(ctx, &v1alpha1.ServiceControlRequest{Name: "x"}); return err }, "action UNKNOWN, want START, STOP or RESTART"},
		{func() error { _, err := c.ConfigApply(ctx, &v1alpha1.ConfigApplyRequest{}); return err }, "configuration of 0 bytes, want 1 to 1048576"},
		{func() error { _, err := c.Reset(ctx, &v1alpha1.ResetRequest{Shutdown: true}); return err }, "a reset of nothing, want state, ephemeral or both"},
		{func() error {
			_, err := c.MetaDelete(ctx, &v1alpha1.MetaDeleteRequest{Keys: []uint32{256}})
			return err
		}, "META key 256, want 1 to 255"},
		{func() error {
			_, err := c.MetaSet(ctx, &v1alpha1.MetaSetRequest{Values: []*v1alpha1.MetaValue{{Key: 0}}})
			return err
		}, "META key 0, want 1 to 255"},
	} {
		if err := k.call(); status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != k.want {
			t.Errorf("error %v, want %s", err, k.want)
		}
	}
}

type following struct {
	control.Unimplemented
	identities chan control.Identity
}

func (f following) Identities(ctx context.Context, send func(control.Identity) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case id := <-f.identities:
			if err := send(id); err != nil {
				return err
			}
		}
	}
}

// The server takes over what PID 1 says it is, and keeps what it has over what
// is no identity.
func TestFollow(t *testing.T) {
	n := following{identities: make(chan control.Identity)}
	f := &fixture{ca: newIssuer(t, "node CA"), Server: New(Options{Node: n, Log: counting(t).log, Now: clock})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Follow(ctx) }()
	n.identities <- f.normal(t)
	n.identities <- control.Identity{Certificate: []byte("x")}
	n.identities <- control.Identity{Certificate: []byte("x")} // when it is taken the one before is done
	id := f.identity.Load()
	if id == nil || id.maintenance || id.config.MinVersion != tls.VersionTLS13 {
		t.Errorf("identity %+v", id)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

//go:build linux

package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/role"
	"github.com/kilnhq/kiln/machine/control"
)

// A fixture is a server whose verbs only count.
type fixture struct {
	*Server
	ca      *issuer
	address string
	reached atomic.Int64
	now     atomic.Pointer[time.Time]
}

func (f *fixture) serve(t *testing.T, id control.Identity) {
	t.Helper()
	if err := f.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// counting returns a server that says of every call that is let through that it
// was, and does nothing.
func counting(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{ca: newIssuer(t, "node CA")}
	now := clock()
	f.now.Store(&now)
	f.Server = New(Options{
		Node: control.Unimplemented{}, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return *f.now.Load() },
		unary: func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
			f.reached.Add(1)
			return nil, errReached
		},
		stream: func(any, grpc.ServerStream, *grpc.StreamServerInfo, grpc.StreamHandler) error {
			f.reached.Add(1)
			return errReached
		},
	})
	return f
}

var errReached = status.Error(codes.OutOfRange, "reached")

func (f *fixture) normal(t *testing.T) control.Identity {
	own := f.ca.issue(t, forServer)
	return control.Identity{CA: f.ca.pem(), Certificate: own.cert, Key: own.key}
}

// methods returns every method that the server has.
func (f *fixture) methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	all := map[string]protoreflect.MethodDescriptor{}
	for name := range f.grpc.GetServiceInfo() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Fatal(err)
		}
		for m := range descriptors(d.(protoreflect.ServiceDescriptor).Methods()) {
			all["/"+name+"/"+string(m.Name())] = m
		}
	}
	return all
}

func descriptors(m protoreflect.MethodDescriptors) func(func(protoreflect.MethodDescriptor) bool) {
	return func(yield func(protoreflect.MethodDescriptor) bool) {
		for i := range m.Len() {
			if !yield(m.Get(i)) {
				return
			}
		}
	}
}

// call calls a method with an empty request.
func call(ctx context.Context, conn *grpc.ClientConn, method string, m protoreflect.MethodDescriptor) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(dynamicpb.NewMessage(m.Input())); err != nil && err != io.EOF {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(dynamicpb.NewMessage(m.Output()))
}

func (f *fixture) dial(t *testing.T, c *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestEveryMethodHasARule(t *testing.T) {
	f := counting(t)
	methods := f.methods(t)
	if len(methods) == 0 {
		t.Fatal("no methods")
	}
	for m := range methods {
		if r := rules()[m]; r.least == role.None {
			t.Errorf("%s has no rule", m)
		}
	}
	for m := range rules() {
		if methods[m] == nil {
			t.Errorf("a rule for %s, which does not exist", m)
		}
	}
}

// documented matches a row of the table of verbs in docs/api.md: verbs, and the role
// that they take.
var documented = regexp.MustCompile(`(?m)^\| ([A-Z][A-Za-z, ]+) \| (reader|operator|admin)\b([^|]*)\|`)

// Every verb is in one row of the documentation, with the role that it takes. That
// table, not the code, says what is right.
func TestRolesAsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]rule{}
	for _, m := range documented.FindAllStringSubmatch(string(text), -1) {
		var least role.Role
		for _, r := range role.All() {
			if r.String() == "kiln:"+m[2] {
				least = r
			}
		}
		for _, verb := range strings.Split(m[1], ", ") {
			if _, twice := rows[verb]; twice {
				t.Errorf("docs/api.md has %s twice", verb)
			}
			rows[verb] = rule{least, strings.Contains(m[3], "anybody in maintenance mode")}
		}
	}
	for method, m := range counting(t).methods(t) {
		verb := string(m.Name())
		if documented, ok := rows[verb]; !ok || documented != rules()[method] {
			t.Errorf("%s takes %+v, docs/api.md says %+v", verb, rules()[method], documented)
		}
		delete(rows, verb)
	}
	if len(rows) > 0 {
		t.Errorf("docs/api.md has verbs that do not exist: %v", rows)
	}
}

// Who is no client of this node is refused at every verb.
func TestRefusedByEveryVerb(t *testing.T) {
	f := counting(t)
	f.serve(t, f.normal(t))
	other := newIssuer(t, "another CA")
	namesake := newIssuer(t, "node CA")
	admin := role.Admin.String()
	for name, p := range map[string]*pair{
		"no certificate":      nil,
		"another CA":          ptr(other.issue(t, nil, admin)),
		"a CA of that name":   ptr(namesake.issue(t, nil, admin)),
		"expired":             ptr(f.ca.issue(t, func(c *x509.Certificate) { c.NotAfter = clock().Add(-time.Minute) }, admin)),
		"not yet valid":       ptr(f.ca.issue(t, func(c *x509.Certificate) { c.NotBefore = clock().Add(time.Minute) }, admin)),
		"a server's":          ptr(f.ca.issue(t, forServer, admin)),
		"for no use":          ptr(f.ca.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, admin)),
		"no role":             ptr(f.ca.issue(t, nil)),
		"a role of no kind":   ptr(f.ca.issue(t, nil, "kiln:root")),
		"two roles":           ptr(f.ca.issue(t, nil, admin, role.Reader.String())),
		"a role in the name":  ptr(f.ca.issue(t, func(c *x509.Certificate) { c.Subject.CommonName = admin })),
		"a role in the unit":  ptr(f.ca.issue(t, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{admin} })),
		"a role's other case": ptr(f.ca.issue(t, nil, strings.ToUpper(admin))),
		"another client's":    ptr(f.ca.delegate(t, admin)),
	} {
		t.Run(name, func(t *testing.T) {
			conn := f.dial(t, f.ca.client(t, p))
			for method, m := range f.methods(t) {
				err := call(t.Context(), conn, method, m)
				if code := status.Code(err); !slices.Contains([]codes.Code{codes.Unavailable, codes.Unauthenticated, codes.PermissionDenied}, code) {
					t.Errorf("%s: %v", method, err)
				}
			}
			if n := f.reached.Load(); n != 0 {
				t.Errorf("%d calls were let through", n)
			}
		})
	}
}

func ptr(p pair) *pair { return &p }

// Whoever does not speak TLS 1.3 is refused at every verb, also as an admin.
func TestTLS12AtEveryVerb(t *testing.T) {
	f := counting(t)
	f.serve(t, f.normal(t))
	p := f.ca.issue(t, nil, role.Admin.String())
	c := f.ca.client(t, &p)
	c.MaxVersion = tls.VersionTLS12
	conn := f.dial(t, c)
	for method, m := range f.methods(t) {
		err := call(t.Context(), conn, method, m)
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "protocol version not supported") || f.reached.Load() != 0 {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// Every role reaches what it may and is refused the rest, by name.
func TestRolesAtEveryVerb(t *testing.T) {
	f := counting(t)
	f.serve(t, f.normal(t))
	for _, r := range role.All() {
		p := f.ca.issue(t, nil, "Example Ltd", r.String())
		conn := f.dial(t, f.ca.client(t, &p))
		for method, m := range f.methods(t) {
			before := f.reached.Load()
			err := call(t.Context(), conn, method, m)
			least := rules()[method].least
			if r >= least {
				if status.Code(err) != codes.OutOfRange || f.reached.Load() != before+1 {
					t.Errorf("%v at %s: %v, want it let through", r, method, err)
				}
				continue
			}
			want := `the certificate of "somebody" has the role ` + r.String() + `, want ` + least.String()
			if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != want || f.reached.Load() != before {
				t.Errorf("%v at %s: %v, want %s", r, method, err, want)
			}
		}
	}
}

// A connection does not outlive its certificate or the CA.
func TestConnectionOutlivesNothing(t *testing.T) {
	f := counting(t)
	f.serve(t, f.normal(t))
	p := f.ca.issue(t, nil, role.Admin.String())
	conn := f.dial(t, f.ca.client(t, &p))
	check := func(want string) {
		t.Helper()
		_, err := v1alpha1.NewNodeClient(conn).Version(t.Context(), &v1alpha1.VersionRequest{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	check("reached")
	later := clock().Add(2 * time.Hour)
	f.now.Store(&later)
	check("certificate has expired")
	now := clock()
	f.now.Store(&now)
	check("reached")
	other := newIssuer(t, "the next CA")
	own := other.issue(t, forServer)
	if err := f.SetIdentity(control.Identity{CA: other.pem(), Certificate: own.cert, Key: own.key}); err != nil {
		t.Fatal(err)
	}
	check("signed by unknown authority")
}

// In maintenance mode nobody needs a certificate, and few verbs answer; a
// connection from then is worth nothing afterwards.
func TestMaintenance(t *testing.T) {
	f := counting(t)
	own := f.ca.issue(t, forServer)
	f.serve(t, control.Identity{Maintenance: true, Certificate: own.cert, Key: own.key})
	conn := f.dial(t, f.ca.client(t, nil))
	var open []string
	for method, m := range f.methods(t) {
		err := call(t.Context(), conn, method, m)
		switch status.Code(err) {
		case codes.OutOfRange:
			open = append(open, string(m.Name()))
		case codes.FailedPrecondition:
		default:
			t.Errorf("%s: %v", method, err)
		}
	}
	slices.Sort(open)
	if want := []string{"ConfigApply", "Disks", "Version"}; !slices.Equal(open, want) {
		t.Errorf("open to everybody: %v, want %v", open, want)
	}
	if err := f.SetIdentity(f.normal(t)); err != nil {
		t.Fatal(err)
	}
	f.reached.Store(0)
	for method, m := range f.methods(t) {
		if err := call(t.Context(), conn, method, m); status.Code(err) != codes.Unauthenticated || f.reached.Load() != 0 {
			t.Errorf("%s afterwards: %v", method, err)
		}
	}
}

// Nothing below TLS 1.3 is spoken, and nothing without an identity.
func TestHandshake(t *testing.T) {
	f := counting(t)
	p := f.ca.issue(t, nil, role.Admin.String())
	f.serve(t, f.normal(t))
	c := f.ca.client(t, &p)
	c.MaxVersion = tls.VersionTLS12
	_, err := tls.Dial("tcp", f.address, c)
	if err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
		t.Errorf("TLS 1.2: error %v", err)
	}
	f.identity.Store(nil)
	if _, err := tls.Dial("tcp", f.address, f.ca.client(t, &p)); err == nil {
		t.Error("a connection without an identity")
	}
}

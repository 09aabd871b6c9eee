package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/config"
)

// now is when the tests' certificates are made.
var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const day = 24 * time.Hour

// random returns bytes that are the same for the same seed.
func random(seed byte) *bytes.Reader { return bytes.NewReader(bytes.Repeat([]byte{seed}, 4096)) }

type family struct {
	ca, issuer     *Authority
	client, server config.KeyPair
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newFamily(t *testing.T, seed byte) family {
	t.Helper()
	authority, pair := must[*Authority](t), must[config.KeyPair](t)
	var f family
	f.ca = authority(NewCA(random(seed), now, "CA"))
	f.issuer = authority(f.ca.NewIssuer(random(seed+1), now, "node"))
	f.client = pair(f.ca.NewClient(random(seed+2), now, 30*day, Operator, "alice"))
	f.server = pair(f.issuer.NewServer(random(seed+3), now, day, []string{"node1"}, []netip.Addr{netip.MustParseAddr("192.0.2.1")}))
	return f
}

func certificates(t *testing.T, pair config.KeyPair) []*x509.Certificate {
	t.Helper()
	return must[[]*x509.Certificate](t)(config.Certificates(pair.Certificate))
}

// connection returns both ends of one.
func connection(t *testing.T) (a, b net.Conn) {
	t.Helper()
	pair := must[[2]int](t)(syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))
	end := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		return must[net.Conn](t)(net.FileConn(f))
	}
	return end(pair[0]), end(pair[1])
}

// handshake connects a client that has the pair and trusts the CA with a server.
func handshake(t *testing.T, f family, client, server config.KeyPair, roots string, name string, at time.Time) error {
	t.Helper()
	pool := func(text string) *x509.CertPool {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM([]byte(text)) {
			t.Fatal("no certificate")
		}
		return p
	}
	pair := func(p config.KeyPair) tls.Certificate {
		return must[tls.Certificate](t)(tls.X509KeyPair([]byte(p.Certificate), []byte(p.Key.Reveal())))
	}
	a, b := connection(t)
	result := make(chan error, 1)
	go func() {
		s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{pair(server)}, ClientCAs: pool(f.ca.Certificate()),
			ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, Time: func() time.Time { return at }})
		_, err := s.Write([]byte{1}) // after the handshake
		b.Close()
		result <- err
	}()
	c := tls.Client(a, &tls.Config{Certificates: []tls.Certificate{pair(client)}, RootCAs: pool(roots), ServerName: name,
		Time: func() time.Time { return at }})
	_, err := c.Read(make([]byte, 1)) // after the handshake; has what the server said about the client
	a.Close()
	if serverErr := <-result; serverErr != nil {
		err = errors.Join(serverErr, err)
	}
	return err
}

func TestHandshake(t *testing.T) {
	f, other := newFamily(t, 1), newFamily(t, 100)
	ca := f.ca.Certificate()
	for _, name := range []string{"node1", "192.0.2.1"} {
		if err := handshake(t, f, f.client, f.server, ca, name, now.Add(time.Hour)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Who has the issuer, as whoever took over the node, is no client.
	forged := must[config.KeyPair](t)(sign(random(50), now, day, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "mallory", Organization: []string{"kiln:admin"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, f.issuer))
	forged.Certificate += f.issuer.Certificate()
	for _, tt := range []struct {
		what           string
		client, server config.KeyPair
		roots, name    string
		at             time.Time
		want           string
	}{
		{"client of another CA", other.client, f.server, ca, "node1", now, "unknown authority"},
		{"server of another CA", f.client, other.server, ca, "node1", now, "unknown authority"},
		{"other name", f.client, f.server, ca, "node2", now, "not node2"},
		{"client that expired", f.client, f.server, ca, "node1", now.Add(31 * day), "expired"},
		{"server as a client", f.server, f.server, ca, "node1", now, "incompatible key usage"},
		{"client as a server", f.client, f.client, ca, "node1", now, "not valid for any names"},
		{"client of the issuer", forged, f.server, ca, "node1", now, "incompatible key usage"},
	} {
		err := handshake(t, f, tt.client, tt.server, tt.roots, tt.name, tt.at)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.what, err, tt.want)
		}
	}
}

func TestDeterministic(t *testing.T) {
	if !reflect.DeepEqual(newFamily(t, 1).server, newFamily(t, 1).server) {
		t.Error("other certificates from the same random numbers")
	}
	if _, err := NewCA(bytes.NewReader(nil), now, "CA"); err == nil || !strings.Contains(err.Error(), "random numbers: EOF") {
		t.Errorf("without random numbers: %v", err)
	}
}

func TestRole(t *testing.T) {
	f := newFamily(t, 1)
	for _, role := range Roles() {
		pair := must[config.KeyPair](t)(f.ca.NewClient(random(9), now, day, role, "x"))
		if got, err := RoleOf(certificates(t, pair)[0]); err != nil || got != role {
			t.Errorf("role %q, %v, want %s", got, err, role)
		}
	}
	for want, organizations := range map[string][]string{
		"has 0 roles":                {"example"},
		"has 2 roles":                {"kiln:reader", "kiln:admin"},
		`unknown role "root"; known`: {"kiln:root"},
	} {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: "x", Organization: organizations}}
		if role, err := RoleOf(cert); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %q, %v", organizations, role, err)
		}
	}
	if _, err := f.ca.NewClient(random(9), now, day, "", "x"); err == nil {
		t.Error("a client without role")
	}
	if _, err := f.issuer.NewClient(random(9), now, day, Reader, "x"); err == nil || !strings.Contains(err.Error(), `"node" is the issuer of a node and cannot sign clients, want the CA`) {
		t.Errorf("a client of an issuer: %v", err)
	}
	for _, tt := range []struct {
		a, b Role
		want bool
	}{{Admin, Reader, true}, {Admin, Admin, true}, {Reader, Operator, false}, {Operator, Admin, false}, {"", Reader, false}, {Admin, "", false}} {
		if got := tt.a.Includes(tt.b); got != tt.want {
			t.Errorf("%q includes %q: %v", tt.a, tt.b, got)
		}
	}
}

// A node whose clock is not set yet has a certificate that is valid later.
func TestClock(t *testing.T) {
	f := newFamily(t, 1)
	pair := must[config.KeyPair](t)(f.issuer.NewServer(random(3), time.Unix(0, 0), day, []string{"a"}, nil))
	c := certificates(t, pair)[0]
	if want := now.Add(-skew); !c.NotBefore.Equal(want) || !c.NotAfter.Equal(now.Add(day)) {
		t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
	}
	pair = must[config.KeyPair](t)(f.issuer.NewServer(random(3), now.Add(AuthorityLife-day), 10*day, []string{"a"}, nil))
	if c := certificates(t, pair)[0]; !c.NotAfter.Equal(certificates(t, pair)[1].NotAfter) {
		t.Errorf("valid to %v", c.NotAfter)
	}
	if _, err := f.issuer.NewServer(random(3), now.Add(2*AuthorityLife), day, []string{"a"}, nil); err == nil || !strings.Contains(err.Error(), `the certificate of "node" expired on 2035-12-31`) {
		t.Errorf("after the issuer: %v", err)
	}
	if _, err := f.issuer.NewServer(random(3), now, day, nil, nil); err == nil {
		t.Error("a server without names")
	}
}

func TestLoad(t *testing.T) {
	f := newFamily(t, 1)
	pair := must[config.KeyPair](t)(f.issuer.KeyPair())
	again := must[*Authority](t)(Load(pair))
	if again.Certificate() != f.issuer.Certificate() {
		t.Error("another certificate")
	}
	if _, err := Load(f.client); err == nil || !strings.Contains(err.Error(), `"alice" is not that of a certification authority`) {
		t.Errorf("client: %v", err)
	}
	pair.Certificate = f.ca.Certificate()
	if _, err := Load(pair); err == nil || !strings.Contains(err.Error(), "the key is not that of the certificate") {
		t.Errorf("other key: %v", err)
	}
}

// OpenSSL takes the chains, and refuses them for the other purpose.
func TestOpenSSL(t *testing.T) {
	openssl := oracle.Tool(t, "openssl")
	dir, f := t.TempDir(), newFamily(t, 1)
	for name, text := range map[string]string{"ca": f.ca.Certificate(), "issuer": f.issuer.Certificate(), "client": f.client.Certificate, "server": f.server.Certificate} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(args ...string) string {
		args = append([]string{"verify", "-x509_strict", "-attime", fmt.Sprint(now.Unix()), "-CAfile", "ca"}, args...)
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := verify("-purpose", "sslclient", "client"); !strings.Contains(out, "client: OK") {
		t.Error(out)
	}
	if out := verify("-purpose", "sslserver", "-verify_ip", "192.0.2.1", "-untrusted", "issuer", "server"); !strings.Contains(out, "server: OK") {
		t.Error(out)
	}
	if out := verify("-purpose", "sslclient", "-untrusted", "issuer", "server"); !strings.Contains(out, "unsuitable certificate purpose") && !strings.Contains(out, "unsupported certificate purpose") {
		t.Error(out)
	}
}

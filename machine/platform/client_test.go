package platform

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
)

// An authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.key = newKey(t)
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, NotBefore: built.AddDate(-40, 0, 0), NotAfter: built.AddDate(40, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.key)
	a.pool.AddCert(a.cert)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	template.SerialNumber = big.NewInt(1)
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// server returns the configuration of a server with a certificate for name.
func (a *authority) server(name string, from, to time.Time) *tls.Config {
	key := newKey(a.t)
	c := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{name}, NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{c.Raw}, PrivateKey: key}}}
}

func (n *network) serveTLS(address string, c *tls.Config, h http.Handler) {
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	n.servers = append(n.servers, s)
	l := n.listen(address)
	n.done.Go(func() { _ = s.Serve(tls.NewListener(l, c)) })
}

// TestClock fetches by https with a clock that is wrong or right. A bubble's clock
// begins in 2000.
func TestClock(t *testing.T) {
	day := func(n int) time.Time { return built.AddDate(0, 0, n) }
	a, other := newAuthority(t), newAuthority(t)
	for _, c := range []struct {
		name     string
		now      time.Time // zero: wrong
		by       *authority
		host     string
		from, to time.Time
		want     string // of the error
	}{
		{name: "wrong clock", by: a, host: "config.test", from: day(-30), to: day(30)},
		{name: "wrong clock, certificate younger than the image", by: a, host: "config.test", from: day(100), to: day(130)},
		{name: "wrong clock, expired before the image", by: a, host: "config.test", from: day(-60), to: day(-30),
			want: "x509: certificate has expired or is not yet valid: current time 2026-11-01T00:00:00Z is after 2026-10-02T00:00:00Z"},
		{name: "wrong clock, other host", by: a, host: "other.test", from: day(-30), to: day(30),
			want: "x509: certificate is valid for other.test, not config.test"},
		{name: "wrong clock, other authority", by: other, host: "config.test", from: day(-30), to: day(30),
			want: "x509: certificate signed by unknown authority"},
		{name: "right clock", now: day(1), by: a, host: "config.test", from: day(-30), to: day(30)},
		{name: "right clock, expired", now: day(31), by: a, host: "config.test", from: day(-30), to: day(30),
			want: "x509: certificate has expired or is not yet valid: current time 2026-12-02T00:00:00Z is after 2026-12-01T00:00:00Z"},
		{name: "right clock, not valid yet", now: day(1), by: a, host: "config.test", from: day(2), to: day(30),
			want: "x509: certificate has expired or is not yet valid: current time 2026-11-02T00:00:00Z is before 2026-11-03T00:00:00Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.by.server(c.host, c.from, c.to)
			synctest.Test(t, func(t *testing.T) {
				if !c.now.IsZero() {
					time.Sleep(time.Until(c.now))
				}
				n := newNetwork(t)
				defer n.close()
				n.serveTLS("config.test:443", config, text("version: v1alpha1\n"))
				env := machine(t, n, ArgConfig+"=https://config.test/node.yaml")
				env.Client = NewClient(n, a.pool, built)
				r, err := quick().Acquire(t.Context(), New("metal", env).Sources)
				if c.want == "" {
					if err != nil || string(r.Data) != "version: v1alpha1\n" {
						t.Errorf("found %v, %v", r, err)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want %s", err, c.want)
				}
			})
		})
	}
}

func TestRedirects(t *testing.T) {
	a := newAuthority(t)
	secure := a.server("config.test", built.AddDate(-1, 0, 0), built.AddDate(1, 0, 0))
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url, http.StatusFound) }
	}
	for _, c := range []struct {
		name, platform, arg string
		serve               func(n *network)
		want                string // of the error
	}{
		{"to https", "metal", ArgConfig + "=http://config.test/a", func(n *network) {
			n.serve("config.test:80", to("https://config.test/b"))
			n.serveTLS("config.test:443", secure, text(config))
		}, ""},
		{"to http", "metal", ArgConfig + "=https://config.test/a", func(n *network) {
			n.serve("config.test:80", text(config))
			n.serveTLS("config.test:443", secure, to("http://config.test/b?secret"))
		}, "no machine configuration can be used:\n  kiln.config: GET https://config.test/a: redirected from https to http://config.test/b"},
		{"of a token", "aws", "x", func(n *network) {
			n.serve("thief.test:80", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				panic(fmt.Sprintf("asked with %v", r.Header))
			}))
			n.serve("169.254.169.254:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut {
					fmt.Fprint(w, "token")
					return
				}
				to("http://thief.test/")(w, r)
			}))
		}, "no machine configuration can be used:\n  aws: GET http://169.254.169.254/latest/user-data: redirected to http://thief.test/, which a metadata service does not do"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				defer n.close()
				c.serve(n)
				env := machine(t, n, c.arg)
				env.Client = NewClient(n, a.pool, built)
				r, err := quick().Acquire(t.Context(), New(c.platform, env).Sources)
				if c.want != "" {
					wantError(t, err, c.want)
				} else if err != nil || string(r.Data) != config {
					t.Errorf("found %v, %v", r, err)
				}
			})
		})
	}
}

// TestTokens is a metadata service whose tokens are no good.
func TestTokens(t *testing.T) {
	const put = "no machine configuration can be used:\n  aws: PUT http://169.254.169.254/latest/api/token: "
	for _, c := range []struct {
		name  string
		serve http.HandlerFunc
		want  string
	}{
		{"turned off", code(403), put + "403 Forbidden: the metadata service of this machine is turned off; turn it on, or give the configuration with kiln.config"},
		{"empty", text(""), put + "found a token of 0 bytes that is no word"},
		{"two lines", text("a\r\nX-Evil: b"), put + "found a token of 12 bytes that is no word"},
		{"huge", text(strings.Repeat("a", 5000)), put + "the answer has more than 4096 bytes"},
		{"no such thing", code(404), put + "404 Not Found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				defer n.close()
				n.serve("169.254.169.254:80", c.serve)
				_, err := quick().Acquire(t.Context(), New("aws", machine(t, n)).Sources)
				wantError(t, err, c.want)
			})
		})
	}
}

// TestLowPort dials a server on this machine.
func TestLowPort(t *testing.T) {
	oracle.Root(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 { // the second from another port, as the first is in use
		c, err := LowPort{}.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if p := c.LocalAddr().(*net.TCPAddr).Port; p >= 1024 {
			t.Errorf("dialed from port %d", p)
		}
	}
}

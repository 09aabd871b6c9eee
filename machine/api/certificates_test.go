//go:build linux

package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// An issuer issues certificates.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// pair is a certificate and its key in PEM.
type pair struct{ cert, key []byte }

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: clock().Add(-24 * time.Hour), NotAfter: clock().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	i := &issuer{key: newKey(t)}
	i.cert = sign(t, c, c, i.key, i.key)
	return i
}

// clock is the time of the tests.
func clock() time.Time { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) }

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t *testing.T, c, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, byKey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// issue issues a certificate for clients, which change may change.
func (i *issuer) issue(t *testing.T, change func(*x509.Certificate), organisations ...string) pair {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "somebody", Organization: organisations},
		NotBefore: clock().Add(-time.Hour), NotAfter: clock().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{pemOf("CERTIFICATE", sign(t, c, i.cert, key, i.key).Raw), pemOf("PRIVATE KEY", der)}
}

// delegate issues a certificate with the key of a client's, and shows both.
func (i *issuer) delegate(t *testing.T, organisation string) pair {
	t.Helper()
	client := &issuer{key: newKey(t)}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "a client", Organization: []string{organisation}},
		NotBefore: clock().Add(-time.Hour), NotAfter: clock().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	client.cert = sign(t, c, i.cert, client.key, i.key)
	p := client.issue(t, nil, organisation)
	p.cert = append(p.cert, client.pem()...)
	return p
}

// forServer makes a certificate one of a server at the loopback address.
func forServer(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func (i *issuer) pem() []byte { return pemOf("CERTIFICATE", i.cert.Raw) }

// client returns the TLS configuration of a client that shows p and trusts i.
func (i *issuer) client(t *testing.T, p *pair) *tls.Config {
	t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), Time: clock}
	c.RootCAs.AddCert(i.cert)
	if p == nil {
		return c
	}
	own, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	// Shown even if the server asks for another CA's.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	return c
}

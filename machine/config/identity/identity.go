// Package identity makes the certificates of the machine API: X.509 version 3
// (RFC 5280) with Ed25519 keys (RFC 8410), for TLS 1.3 with certificates on both
// sides.
//
//	CA, with the operator           signs clients, and nodes' issuers
//	 +-- client                     role in its Organization: kiln:admin, kiln:operator or kiln:reader
//	 +-- issuer, on a node          may sign servers only: whoever has it is no client
//	      +-- server, on the node   made anew by the node for the addresses it has
//
// Whoever takes over a node can be a server for those who trust the CA, but has
// no role on any node.
package identity

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/machine/config"
)

// skew is how far the clocks of two machines may be apart.
const skew = time.Hour

// AuthorityLife is how long the certificates of CAs and issuers are valid.
const AuthorityLife = 10 * 365 * 24 * time.Hour

// A Role is what a client may do.
type Role string

// Roles. Each may do what those after it may.
const (
	Admin    Role = "admin"
	Operator Role = "operator"
	Reader   Role = "reader"
)

// Roles returns all roles, the most powerful first.
func Roles() []Role { return []Role{Admin, Operator, Reader} }

// organization is what a role begins with in certificates.
const organization = "kiln:"

// ParseRole returns the role with a name.
func ParseRole(s string) (Role, error) {
	var names []string
	for _, r := range Roles() {
		if s == string(r) {
			return r, nil
		}
		names = append(names, string(r))
	}
	return "", fmt.Errorf("unknown role %q%s", s, spelling.Hint(s, names))
}

// Includes reports whether r may do what other may.
func (r Role) Includes(other Role) bool {
	i, j := slices.Index(Roles(), r), slices.Index(Roles(), other)
	return i >= 0 && j >= 0 && i <= j
}

// RoleOf returns the role of a client by its certificate, which must have
// exactly one. That the certificate is valid is for TLS to check.
func RoleOf(cert *x509.Certificate) (Role, error) {
	var roles []Role
	for _, o := range cert.Subject.Organization {
		if name, ok := strings.CutPrefix(o, organization); ok {
			role, err := ParseRole(name)
			if err != nil {
				return "", fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
			}
			roles = append(roles, role)
		}
	}
	if len(roles) != 1 {
		return "", fmt.Errorf("certificate of %q has %d roles in its Organization, want one: %sadmin, %soperator or %sreader", cert.Subject.CommonName, len(roles), organization, organization, organization)
	}
	return roles[0], nil
}

// An Authority signs certificates: a CA or an issuer.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA returns a certification authority. random is where its key comes from.
func NewCA(random io.Reader, now time.Time, name string) (*Authority, error) {
	return newAuthority(random, now, &x509.Certificate{Subject: pkix.Name{CommonName: name}}, nil)
}

// NewIssuer returns what a node issues its own certificates with. It can sign
// servers only.
func (a *Authority) NewIssuer(random io.Reader, now time.Time, name string) (*Authority, error) {
	return newAuthority(random, now, &x509.Certificate{
		Subject:        pkix.Name{CommonName: name},
		ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		MaxPathLenZero: true,
	}, a)
}

func newAuthority(random io.Reader, now time.Time, template *x509.Certificate, parent *Authority) (*Authority, error) {
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	pair, err := sign(random, now, AuthorityLife, template, parent)
	if err != nil {
		return nil, err
	}
	return Load(pair)
}

// Load returns the authority with a certificate and key.
func Load(pair config.KeyPair) (*Authority, error) {
	certs, err := config.Certificates(pair.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := pair.Signer()
	if err != nil {
		return nil, err
	}
	if !certs[0].IsCA {
		return nil, fmt.Errorf("the certificate of %q is not that of a certification authority", certs[0].Subject.CommonName)
	}
	return &Authority{certs[0], key}, nil
}

// KeyPair returns the certificate and key of the authority.
func (a *Authority) KeyPair() (config.KeyPair, error) { return encode(a.cert.Raw, a.key) }

// Certificate returns the certificate of the authority in PEM.
func (a *Authority) Certificate() string { return encodeCertificate(a.cert.Raw) }

// NewClient returns the certificate and key of a client.
func (a *Authority) NewClient(random io.Reader, now time.Time, life time.Duration, role Role, name string) (config.KeyPair, error) {
	if len(a.cert.ExtKeyUsage) > 0 {
		return config.KeyPair{}, fmt.Errorf("%q is the issuer of a node and cannot sign clients, want the CA", a.cert.Subject.CommonName)
	}
	if _, err := ParseRole(string(role)); err != nil {
		return config.KeyPair{}, err
	}
	return sign(random, now, life, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: []string{organization + string(role)}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}, a)
}

// NewServer returns the certificate and key of a server with the names and
// addresses, followed by the certificate of a, which clients need as well. If
// now is before a was made, as when a clock was not set yet, it counts as then.
func (a *Authority) NewServer(random io.Reader, now time.Time, life time.Duration, names []string, addresses []netip.Addr) (config.KeyPair, error) {
	if len(names) == 0 && len(addresses) == 0 {
		return config.KeyPair{}, errors.New("a server without names and addresses, want at least one")
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: slices.Concat(names, []string{"node"})[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		DNSNames:    names,
	}
	for _, addr := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	pair, err := sign(random, now, life, template, a)
	if err == nil {
		pair.Certificate += a.Certificate()
	}
	return pair, err
}

// sign makes a key and the certificate for it; without a parent it signs itself.
// A certificate is valid no longer than that of its parent.
func sign(random io.Reader, now time.Time, life time.Duration, template *x509.Certificate, parent *Authority) (config.KeyPair, error) {
	bytes := make([]byte, ed25519.SeedSize+16)
	if _, err := io.ReadFull(random, bytes); err != nil {
		return config.KeyPair{}, fmt.Errorf("random numbers: %w", err)
	}
	key := ed25519.NewKeyFromSeed(bytes[:ed25519.SeedSize])
	serial := bytes[ed25519.SeedSize:]
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of 16 bytes
	template.SerialNumber = new(big.Int).SetBytes(serial)
	template.NotBefore = now.Add(-skew).UTC().Truncate(time.Second)
	if parent == nil {
		parent = &Authority{template, key}
	} else if template.NotBefore.Before(parent.cert.NotBefore) {
		template.NotBefore = parent.cert.NotBefore
	}
	template.NotAfter = template.NotBefore.Add(skew + life)
	if parent.cert != template && template.NotAfter.After(parent.cert.NotAfter) {
		template.NotAfter = parent.cert.NotAfter
	}
	if !template.NotAfter.After(template.NotBefore) {
		return config.KeyPair{}, fmt.Errorf("the certificate of %q expired on %s", parent.cert.Subject.CommonName, parent.cert.NotAfter.Format(time.DateOnly))
	}
	der, err := x509.CreateCertificate(random, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		return config.KeyPair{}, err
	}
	return encode(der, key)
}

func encode(der []byte, key crypto.Signer) (config.KeyPair, error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return config.KeyPair{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return config.KeyPair{Certificate: encodeCertificate(der), Key: config.NewSecret(string(text))}, nil
}

func encodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

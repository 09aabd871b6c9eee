// Package selfsigned makes the certificate of a node that has no configuration
// yet, and its fingerprint, which the node's console shows and a person compares:
//
//	SHA256:q1Xz…   the SHA-256 of the certificate's DER, base64 without padding
//
// as OpenSSH prints those of keys.
package selfsigned

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
)

const prefix = "SHA256:"

// A Fingerprint is the SHA-256 of a certificate's DER.
type Fingerprint [sha256.Size]byte

// Of returns the fingerprint of a certificate.
func Of(der []byte) Fingerprint { return sha256.Sum256(der) }

// String returns it as the console shows it.
func (f Fingerprint) String() string { return prefix + base64.RawStdEncoding.EncodeToString(f[:]) }

// Parse reads a fingerprint: as String has it, or hexadecimal with or without
// colons, as OpenSSL prints it. The prefix may be missing.
func Parse(s string) (Fingerprint, error) {
	var f Fingerprint
	text := strings.TrimRight(strings.TrimPrefix(strings.TrimSpace(s), prefix), "=")
	data, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil {
		data, err = base64.RawStdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(data) != len(f) {
		return f, fmt.Errorf("fingerprint %.100q, want %s and 43 characters of base64, or 64 hexadecimal digits", s, prefix)
	}
	return Fingerprint(data), nil
}

// New returns a certificate and its key, in PEM, and the fingerprint. It is valid
// for ever: the node's clock may not be set, and nobody trusts it for its dates.
func New(random io.Reader, name string) (cert, key []byte, f Fingerprint, err error) {
	bytes := make([]byte, ed25519.SeedSize+16)
	if _, err := io.ReadFull(random, bytes); err != nil {
		return nil, nil, f, fmt.Errorf("random numbers: %w", err)
	}
	private := ed25519.NewKeyFromSeed(bytes[:ed25519.SeedSize])
	serial := bytes[ed25519.SeedSize:]
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of 16 bytes
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: name},
		DNSNames:              []string{name},
		NotBefore:             time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no end
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(random, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, f, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, f, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), Of(der), nil
}

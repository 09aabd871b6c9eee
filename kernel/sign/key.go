package sign

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnhq/kiln/internal/atomicfile"
)

// maxFile bounds the files of keys and certificates, in bytes.
const maxFile = 1 << 20

// LoadKey reads a private key from a PEM file: PKCS#8, PKCS#1 or SEC 1. What else
// is in the file, such as the certificate, is passed over. Errors for files that
// have no key wrap ErrKey.
func LoadKey(file string) (crypto.Signer, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, fmt.Errorf("%s: %w: no private key in it, want PEM with PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY", file, ErrKey)
		}
		var key any
		var err error
		switch {
		case b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "":
			return nil, fmt.Errorf("%s: %w: it is encrypted; 'openssl pkey -in %[1]s -out FILE' decrypts it", file, ErrKey)
		case b.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case b.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case b.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", file, ErrKey, err)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s: %w: %T cannot sign", file, ErrKey, key)
		}
		return s, nil
	}
}

// LoadCertificate reads the first X.509 certificate from a file, PEM or DER.
// Errors for files that have none wrap ErrKey.
func LoadCertificate(file string) (*x509.Certificate, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	der := data
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		der = nil
		for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
			if b.Type == "CERTIFICATE" {
				der = b.Bytes
				break
			}
		}
		if der == nil {
			return nil, fmt.Errorf("%s: %w: PEM, but no CERTIFICATE in it", file, ErrKey)
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: not an X.509 certificate in PEM or DER: %w", file, ErrKey, err)
	}
	return c, nil
}

func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", file, ErrKey, maxFile)
	}
	return data, nil
}

// Generate makes a new RSA key of the given number of bits and a certificate for
// it that it signs itself, valid from a time on for a duration: what the kernel
// ignores, but not everyone who shows a certificate. Nothing else in kiln is
// random.
//
// The extensions are those of the kernel's own certs/x509.genkey (no CA, digital
// signatures, key identifier), and the extended key usages that keep the shim
// boot loader from accepting the key for anything but modules.
func Generate(commonName string, bits int, from time.Time, valid time.Duration) (*Signer, error) {
	if commonName == "" || len(commonName) > 64 {
		return nil, fmt.Errorf("%w: common name of %d bytes, want 1 to 64", ErrKey, len(commonName))
	}
	if bits < 2048 || bits > 4096 {
		return nil, fmt.Errorf("%w: RSA with %d bits, want 2048 to 4096", ErrKey, bits)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	t := template(commonName, from, valid, &key.PublicKey)
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Signer{Key: key, Certificate: cert}, nil
}

// template is the certificate without its key and its serial number, which
// crypto/x509 chooses.
func template(commonName string, from time.Time, valid time.Duration, key *rsa.PublicKey) *x509.Certificate {
	id := sha256.Sum256(x509.MarshalPKCS1PublicKey(key)) // RFC 7093, method 1
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             from,
		NotAfter:              from.Add(valid),
		SubjectKeyId:          id[:20],
		BasicConstraintsValid: true, // and so not a CA
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}},
		SignatureAlgorithm:    x509.SHA256WithRSA,
	}
}

// The files that Save writes.
const (
	KeyFile     = "key.pem"  // the private key, PKCS#8
	CertFile    = "cert.pem" // its certificate
	CertDERFile = "cert.der" // the same, as firmware and mokutil want it
)

// Save writes the key and the certificate to a new directory, which only its
// owner can read. It is there with all its files or not at all, and one that is
// there already is an error that wraps fs.ErrExist.
func (s *Signer) Save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s: %w; keys are not overwritten, want the name of a new directory", dir, fs.ErrExist)
		}
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".tmp-") // has mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for name, data := range map[string][]byte{
		KeyFile:     pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		CertFile:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}),
		CertDERFile: s.Certificate.Raw,
	} {
		perm := fs.FileMode(0o644)
		if name == KeyFile {
			perm = 0o600
		}
		if err := atomicfile.WriteFile(filepath.Join(tmp, name), data, perm); err != nil {
			return err
		}
	}
	return os.Rename(tmp, dir) // fails if somebody else was faster
}

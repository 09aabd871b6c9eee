package sign_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/sign"
)

func TestGenerate(t *testing.T) {
	s := rsaSigner(t)
	if !s.Certificate.NotBefore.Equal(day) || s.Certificate.NotAfter.Sub(day).Hours() != 24 {
		t.Errorf("valid from %s to %s", s.Certificate.NotBefore, s.Certificate.NotAfter)
	}
	_, cert := files(t, s)
	openssl := oracle.Tool(t, "openssl")
	text := run(t, openssl, "x509", "-in", cert, "-noout", "-text")
	for _, want := range []string{
		"Issuer: CN = Plasma lab modules", "Subject: CN = Plasma lab modules", "Public-Key: (2048 bit)", "CA:FALSE",
		"X509v3 Key Usage: critical\n                Digital Signature\n",
		"X509v3 Extended Key Usage: \n                Code Signing, 1.3.6.1.4.1.2312.16.1.2\n",
		"X509v3 Subject Key Identifier: \n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the certificate is\n%s, want in it %q", text, want)
		}
	}
	run(t, openssl, "verify", "-no_check_time", "-check_ss_sig", "-purpose", "any", "-CAfile", cert, cert)

	again, err := sign.Generate("Plasma lab modules", 2048, day, 1)
	if err != nil {
		t.Fatal(err)
	}
	if again.Certificate.SerialNumber.Cmp(s.Certificate.SerialNumber) == 0 {
		t.Error("two certificates with one serial number: the kernel takes them for one")
	}
	if _, err := sign.Generate("", 2048, day, 1); fmt.Sprint(err) != "unsuitable key: common name of 0 bytes, want 1 to 64" {
		t.Error(err)
	}
	if _, err := sign.Generate("x", 1024, day, 1); fmt.Sprint(err) != "unsuitable key: RSA with 1024 bits, want 2048 to 4096" {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := rsaSigner(t)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	block := func(name string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der}) }
	for name, data := range map[string][]byte{
		"PKCS8":            block("PRIVATE KEY", pkcs8),
		"SEC1":             append(block("EC PARAMETERS", []byte{6, 1, 0}), block("EC PRIVATE KEY", sec1)...),
		"with certificate": append(block("CERTIFICATE", s.Certificate.Raw), block("PRIVATE KEY", pkcs8)...),
	} {
		key, err := sign.LoadKey(write(t, "key.pem", data))
		if err != nil || !ec.Equal(key) {
			t.Errorf("%s: %T, %v", name, key, err)
		}
	}
	rsaKey := s.Key.(*rsa.PrivateKey)
	if key, err := sign.LoadKey(write(t, "key.pem", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)))); err != nil || !rsaKey.Equal(key) {
		t.Errorf("PKCS1: %T, %v", key, err)
	}
	for name, data := range map[string][]byte{
		"DER":      s.Certificate.Raw,
		"PEM":      block("CERTIFICATE", s.Certificate.Raw),
		"with key": append(block("PRIVATE KEY", pkcs8), block("CERTIFICATE", s.Certificate.Raw)...),
	} {
		cert, err := sign.LoadCertificate(write(t, "cert", data))
		if err != nil || !cert.Equal(s.Certificate) {
			t.Errorf("%s: %v", name, err)
		}
	}

	for _, tc := range []struct {
		data []byte
		want string
	}{
		{nil, "unsuitable key: no private key in it, want PEM with PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY"},
		{block("CERTIFICATE", s.Certificate.Raw), "unsuitable key: no private key in it, want PEM with "},
		{block("PRIVATE KEY", []byte("x")), "unsuitable key: asn1: "},
		{block("ENCRYPTED PRIVATE KEY", pkcs8), "unsuitable key: it is encrypted; 'openssl pkey -in "},
		{make([]byte, 1<<20+1), "unsuitable key: more than 1048576 bytes"},
	} {
		path := write(t, "key.pem", tc.data)
		if _, err := sign.LoadKey(path); !errors.Is(err, sign.ErrKey) || !strings.HasPrefix(err.Error(), path+": "+tc.want) {
			t.Errorf("%v, want %s", err, tc.want)
		}
	}
	for _, tc := range []struct {
		data []byte
		want string
	}{
		{nil, "unsuitable key: not an X.509 certificate in PEM or DER: "},
		{block("PRIVATE KEY", pkcs8), "unsuitable key: PEM, but no CERTIFICATE in it"},
	} {
		path := write(t, "cert", tc.data)
		if _, err := sign.LoadCertificate(path); !errors.Is(err, sign.ErrKey) || !strings.HasPrefix(err.Error(), path+": "+tc.want) {
			t.Errorf("%v, want %s", err, tc.want)
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := sign.LoadKey(none); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := sign.LoadCertificate(none); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestSave(t *testing.T) {
	s := rsaSigner(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "keys")
	if err := s.Save(dir + "/"); err != nil {
		t.Fatal(err)
	}
	for name, perm := range map[string]fs.FileMode{".": 0o700, "key.pem": 0o600, "cert.pem": 0o644, "cert.der": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, perm)
		}
	}
	key, err := sign.LoadKey(filepath.Join(dir, sign.KeyFile))
	if err != nil || !s.Key.(*rsa.PrivateKey).Equal(key) {
		t.Errorf("%T, %v", key, err)
	}
	for _, name := range []string{sign.CertFile, sign.CertDERFile} {
		if cert, err := sign.LoadCertificate(filepath.Join(dir, name)); err != nil || !cert.Equal(s.Certificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty := t.TempDir()
	for _, name := range []string{dir, empty, filepath.Join(dir, "key.pem")} {
		err := s.Save(name)
		if want := name + ": file already exists; keys are not overwritten, want the name of a new directory"; !errors.Is(err, fs.ErrExist) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := s.Save(filepath.Join(parent, "none", "keys")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

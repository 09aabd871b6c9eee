package sign_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
	"github.com/kilnhq/kiln/kernel/sign"
)

// day is when the tests' certificates begin.
var day = time.Date(2025, 11, 21, 0, 0, 0, 0, time.UTC)

// generated is a key that the tests share: making one takes a while.
var generated = sync.OnceValues(func() (*sign.Signer, error) {
	return sign.Generate("Plasma lab modules", 2048, day, 24*time.Hour)
})

func rsaSigner(t testing.TB) *sign.Signer {
	t.Helper()
	s, err := generated()
	if err != nil {
		t.Fatal(err)
	}
	clone := *s
	return &clone
}

// certify returns a certificate for a key, with a serial number whose first bit
// is set and a name of several parts.
func certify(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, _ := new(big.Int).SetString("f0112233445566778899aabbccddeeff", 16)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Country: []string{"DE"}, Organization: []string{"Größe & Söhne"}, CommonName: "Wölfe"},
		NotBefore:    day, NotAfter: day.AddDate(100, 0, 0),
		SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func ecdsaSigner(t testing.TB, curve elliptic.Curve) *sign.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &sign.Signer{Key: key, Certificate: certify(t, key)}
}

func testModule() []byte {
	return moduletest.ELF(&module.Info{Name: "plasma", Machine: elf.EM_X86_64, License: "GPL", Vermagic: "6.12.117 SMP mod_unload "})
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// files writes the signer's key and certificate for programs.
func files(t testing.TB, s *sign.Signer) (key, cert string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}))
}

func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func signers(t testing.TB) map[string]*sign.Signer {
	other, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*sign.Signer{
		"rsa-2048":   rsaSigner(t),
		"rsa-3072":   {Key: other, Certificate: certify(t, other)},
		"ecdsa-p256": ecdsaSigner(t, elliptic.P256()),
		"ecdsa-p384": ecdsaSigner(t, elliptic.P384()),
		"ecdsa-p521": ecdsaSigner(t, elliptic.P521()),
	}
}

var hashes = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

func TestSignIsDeterministic(t *testing.T) {
	for name, s := range signers(t) {
		first, err := s.Sign(testModule())
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.Sign(first) // replaces
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%s: signed twice, two results", name)
		}
	}
}

func TestVerify(t *testing.T) {
	mine, other := rsaSigner(t), ecdsaSigner(t, elliptic.P256())
	signed, err := mine.Sign(testModule())
	if err != nil {
		t.Fatal(err)
	}
	plain, sig, err := sign.Split(signed)
	if err != nil {
		t.Fatal(err)
	}
	if sig.Signer != "Plasma lab modules" || sig.Hash != "sha256" || sig.Algorithm != "rsa" || sig.Serial.Cmp(mine.Certificate.SerialNumber) != 0 || sig.KeyID != nil {
		t.Errorf("signature is %+v", sig)
	}
	if err := sig.Verify(plain, []*x509.Certificate{other.Certificate, mine.Certificate}); err != nil {
		t.Error(err)
	}
	err = sig.Verify(plain, []*x509.Certificate{other.Certificate})
	if !errors.Is(err, sign.ErrSigner) || !strings.HasPrefix(fmt.Sprint(err), "signer is not known: Plasma lab modules, serial number ") {
		t.Errorf("with another's certificate: %v", err)
	}
	changed := bytes.Clone(plain)
	changed[100] ^= 1
	err = sig.Verify(changed, []*x509.Certificate{mine.Certificate})
	if !errors.Is(err, sign.ErrSignature) || !strings.HasSuffix(fmt.Sprint(err), ", rsa with sha256") {
		t.Errorf("changed module: %v", err)
	}
	// Another key under the same name and number.
	forged := *mine.Certificate
	forged.PublicKey = other.Key.Public()
	if err := sig.Verify(plain, []*x509.Certificate{&forged}); !errors.Is(err, sign.ErrSignature) {
		t.Errorf("forged certificate: %v", err)
	}
}

func TestSplitErrors(t *testing.T) {
	signed, err := rsaSigner(t).Sign(testModule())
	if err != nil {
		t.Fatal(err)
	}
	patch := func(fromEnd int, b byte) []byte {
		out := bytes.Clone(signed)
		out[len(out)-28-fromEnd] = b
		return out
	}
	marker := "~Module signature appended~\n"
	for _, tc := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"unsigned", testModule(), sign.ErrUnsigned, "module is not signed"},
		{"empty", nil, sign.ErrUnsigned, "module is not signed"},
		{"cut", signed[:len(signed)-1], sign.ErrUnsigned, "module is not signed"},
		{"only the marker", []byte(marker), sign.ErrFormat, "damaged module signature: 0 bytes in front of the marker, want 12 of a trailer"},
		{"older type", patch(10, 1), sign.ErrFormat, "damaged module signature: type 1, want 2 (PKCS#7)"},
		{"algorithm", patch(12, 1), sign.ErrFormat, "damaged module signature: fields of its trailer are set that must be 0"},
		{"length", patch(4, 0xff), sign.ErrFormat, fmt.Sprintf("damaged module signature: %d bytes long, but the file has only %d for it and the module", 0xff000000+len(signed)-len(testModule())-40, len(signed)-40)},
		{"no module", trail(make([]byte, 5)), sign.ErrFormat, "damaged module signature: 5 bytes long, but the file has only 5 for it and the module"},
		{"garbage", append([]byte("x"), trail([]byte("garbage"))...), sign.ErrFormat, "damaged module signature: asn1: "},
		{"no signature", append([]byte("x"), trail(nil)...), sign.ErrFormat, "damaged module signature: asn1: "},
	} {
		_, _, err := sign.Split(tc.data)
		if !errors.Is(err, tc.want) || !strings.HasPrefix(fmt.Sprint(err), tc.text) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.text)
		}
	}
	if plain, _, _ := sign.Split(testModule()); !bytes.Equal(plain, testModule()) {
		t.Error("Split of an unsigned module does not return it")
	}
}

func TestSignErrors(t *testing.T) {
	good := rsaSigner(t)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]sign.Signer{
		"unsuitable key: want a private key and its certificate":                   {},
		"unsuitable key: hash SHA-1, want SHA-256, SHA-384 or SHA-512":             {Key: good.Key, Certificate: good.Certificate, Hash: crypto.SHA1},
		"unsuitable key: ed25519.PublicKey, want RSA or ECDSA":                     {Key: edwards, Certificate: certify(t, edwards)},
		"unsuitable key: ECDSA on P-224, want P-256, P-384 or P-521":               {Key: p224, Certificate: certify(t, p224)},
		"unsuitable key: RSA with 1024 bits, want 2048 to 4096":                    {Key: small, Certificate: good.Certificate},
		"unsuitable key: the certificate of Plasma lab modules is for another key": {Key: ecdsaSigner(t, elliptic.P256()).Key, Certificate: good.Certificate},
		"sign with key of Plasma lab modules: the token was removed":               {Key: removed{good.Key}, Certificate: good.Certificate},
		"damaged module signature: type 1, want 2 (PKCS#7)":                        {Key: good.Key, Certificate: good.Certificate},
	} {
		data := testModule()
		if strings.HasPrefix(want, "damaged") {
			data = append(data, trail(nil)...)
			data[len(data)-28-10] = 1
		}
		if _, err := s.Sign(data); fmt.Sprint(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// removed is a key that is elsewhere.
type removed struct{ crypto.Signer }

func (removed) Sign(random io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	if random == nil {
		return nil, errors.New("no randomness")
	}
	return nil, errors.New("the token was removed")
}

func FuzzSplit(f *testing.F) {
	for _, s := range []*sign.Signer{rsaSigner(f), ecdsaSigner(f, elliptic.P384())} {
		signed, err := s.Sign([]byte("module"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(signed)
	}
	f.Add(append([]byte("x"), trail([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})...))
	f.Add([]byte("~Module signature appended~\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Most of what is tried is in the signature, not in what is around it.
		for _, d := range [][]byte{data, append([]byte("x"), trail(data[:min(len(data), 1<<16-1)])...)} {
			plain, sig, err := sign.Split(d)
			if err != nil {
				if !errors.Is(err, sign.ErrFormat) && !errors.Is(err, sign.ErrUnsigned) {
					t.Errorf("%v wraps neither ErrFormat nor ErrUnsigned", err)
				}
				continue
			}
			if len(plain) == 0 || (sig.Serial == nil) == (sig.KeyID == nil) || sig.String() == "" {
				t.Errorf("%d bytes of module, signature %+v", len(plain), sig)
			}
			if err := sig.Verify(plain, []*x509.Certificate{rsaSigner(t).Certificate}); err == nil && len(plain) != len("module") {
				t.Errorf("a forged signature verifies")
			}
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s, data := rsaSigner(b), make([]byte, 8<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := s.Sign(data); err != nil {
			b.Fatal(err)
		}
	}
}

package sign_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/sign"
)

// signFile returns the kernel's own program.
func signFile(t testing.TB) string {
	t.Helper()
	pattern := filepath.Join(oracle.Artifact(t, "KILN_TEST_DEBS"), "linux-kbuild-6.12*_amd64.deb")
	debs, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(debs) == 0 {
		debs = []string{oracle.File(t, pattern)}
	}
	dir := t.TempDir()
	run(t, oracle.Tool(t, "dpkg-deb"), "-x", debs[0], dir)
	found, err := filepath.Glob(filepath.Join(dir, "usr/lib/linux-kbuild-*/scripts/sign-file"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s has %d of scripts/sign-file, %v", debs[0], len(found), err)
	}
	return found[0]
}

// With RSA the kernel's program makes the same bytes. ECDSA is random there: all
// but the signature's value is the same, and OpenSSL takes it.
func TestSignFile(t *testing.T) {
	program := signFile(t)
	for name, s := range signers(t) {
		key, cert := files(t, s)
		for hashName, hash := range hashes {
			t.Run(name+"/"+hashName, func(t *testing.T) {
				s.Hash = hash
				got, err := s.Sign(testModule())
				if err != nil {
					t.Fatal(err)
				}
				path := write(t, "plasma.ko", testModule())
				run(t, program, hashName, key, cert, path)
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				comparable := func(signed []byte) []byte { return signed }
				if !strings.HasPrefix(name, "rsa") {
					comparable = func(signed []byte) []byte { return withoutValue(t, signed) }
				}
				if g, w := comparable(got), comparable(want); !bytes.Equal(g, w) {
					t.Fatalf("the module signed differs from that of sign-file:\n%x\n%x", g, w)
				}
				for who, signed := range map[string][]byte{"sign-file": want, "kiln": got} {
					plain, sig, err := sign.Split(signed)
					if err != nil {
						t.Fatalf("%s: %v", who, err)
					}
					if !bytes.Equal(plain, testModule()) {
						t.Errorf("%s: Split changed the module", who)
					}
					if err := sig.Verify(plain, []*x509.Certificate{s.Certificate}); err != nil {
						t.Errorf("%s: %v", who, err)
					}
					checkOpenSSL(t, signed, plain, cert)
				}
			})
		}
	}
}

// withoutValue returns a signed module with an empty signature value: an ECDSA
// value's length depends on its leading zeros, and so do all lengths around it.
func withoutValue(t *testing.T, signed []byte) []byte {
	t.Helper()
	plain, _, err := sign.Split(signed)
	if err != nil {
		t.Fatal(err)
	}
	trailer := signed[len(signed)-40:]
	der := signed[len(plain) : len(signed)-40]
	if n := len(der); int(trailer[10])<<8|int(trailer[11]) != n {
		t.Fatalf("the signature has %d bytes, its trailer says %x", n, trailer[8:12])
	}
	return bytes.Join([][]byte{plain, emptyLast(t, der), trailer[:8], trailer[12:]}, nil)
}

// emptyLast returns a series of DER values with the last one emptied, which is
// the last within the last as long as that holds others.
func emptyLast(t *testing.T, der []byte) []byte {
	t.Helper()
	var out []byte
	for len(der) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			t.Fatalf("signature: %v", err)
		}
		der = rest
		if len(rest) == 0 {
			inner := []byte{}
			if v.IsCompound {
				inner = emptyLast(t, v.Bytes)
			}
			v = asn1.RawValue{Class: v.Class, Tag: v.Tag, IsCompound: v.IsCompound, Bytes: inner}
		}
		again, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, again...)
	}
	return out
}

// checkOpenSSL verifies a signature, which is between the plain module and the
// last 40 bytes.
func checkOpenSSL(t *testing.T, signed, plain []byte, cert string) {
	t.Helper()
	der := signed[len(plain) : len(signed)-40]
	out := run(t, oracle.Tool(t, "openssl"), "cms", "-verify", "-binary", "-inform", "DER", "-in", write(t, "sig.der", der),
		"-content", write(t, "content", plain), "-certfile", cert, "-noverify", "-nointern", "-out", os.DevNull)
	if !strings.Contains(strings.ToLower(out), "verification successful") {
		t.Errorf("openssl: %s", out)
	}
}

// kmod reads who signed, and with what.
func TestModinfo(t *testing.T) {
	modinfo := oracle.Tool(t, "modinfo")
	for name, s := range signers(t) {
		for hashName, hash := range hashes {
			s.Hash = hash
			signed, err := s.Sign(testModule())
			if err != nil {
				t.Fatal(err)
			}
			compareModinfo(t, modinfo, name+"/"+hashName, signed)
		}
	}
}

func compareModinfo(t *testing.T, modinfo, name string, signed []byte) {
	t.Helper()
	_, sig, err := sign.Split(signed)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	out := run(t, modinfo, write(t, "plasma.ko", signed))
	fields := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.TrimSpace(value)
	}
	serial := strings.ReplaceAll(strings.ToUpper(fmt.Sprintf("% x", sig.Serial.Bytes())), " ", ":")
	// A first bit that is set makes ASN.1 put a zero in front, which kmod prints.
	got := strings.TrimPrefix(fields["sig_key"], "00:")
	if fields["sig_id"] != "PKCS#7" || fields["signer"] != sig.Signer || got != serial || fields["sig_hashalgo"] != sig.Hash {
		t.Errorf("%s: modinfo prints\n%swant signer %s, sig_key %s, sig_hashalgo %s", name, out, sig.Signer, serial, sig.Hash)
	}
}

// A distribution's own modules are signed, by a key that is thrown away.
func TestDistribution(t *testing.T) {
	list := os.Getenv("KILN_TEST_KERNELS")
	if list == "" {
		t.Skip("SKIPPED: KILN_TEST_KERNELS is not set to directories of unpacked kernel packages")
	}
	modinfo := oracle.Tool(t, "modinfo")
	for _, root := range filepath.SplitList(list) {
		found, _ := filepath.Glob(filepath.Join(root, "lib/modules/*/kernel/drivers/net/d*.ko.xz"))
		if len(found) == 0 {
			t.Fatalf("%s has no module drivers/net/d*.ko.xz", root)
		}
		for _, path := range found {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if data, err = module.Decompress(path, data, 64<<20); err != nil {
				t.Fatal(err)
			}
			compareModinfo(t, modinfo, path, data)
			plain, sig, err := sign.Split(data)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if err := sig.Verify(plain, []*x509.Certificate{rsaSigner(t).Certificate}); !errors.Is(err, sign.ErrSigner) {
				t.Errorf("%s: %v, want a signer that is not known", path, err)
			}
		}
	}
}

// OpenSSL makes what sign-file does not: signatures that name the key by its
// identifier, and such with signed attributes, which the kernel refuses.
func TestForeignSignatures(t *testing.T) {
	openssl := oracle.Tool(t, "openssl")
	s := ecdsaSigner(t, elliptic.P256())
	key, cert := files(t, s)
	content := write(t, "plasma.ko", testModule())
	make := func(args ...string) []byte {
		sig := filepath.Join(t.TempDir(), "sig.der")
		run(t, openssl, append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-in", content, "-signer", cert,
			"-inkey", key, "-md", "sha256", "-out", sig}, args...)...)
		der, err := os.ReadFile(sig)
		if err != nil {
			t.Fatal(err)
		}
		return trail(der)
	}
	for _, tc := range []struct {
		args []string
		want error
	}{
		{[]string{"-noattr", "-nocerts"}, nil},
		{[]string{"-noattr", "-nocerts", "-keyid"}, nil},
		{[]string{"-noattr"}, nil}, // with the certificate
		{[]string{"-nocerts"}, sign.ErrSignature},
	} {
		_, sig, err := sign.Split(append(testModule(), make(tc.args...)...))
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
			continue
		}
		if err := sig.Verify(testModule(), []*x509.Certificate{s.Certificate}); !errors.Is(err, tc.want) {
			t.Errorf("%v: %v, want %v", tc.args, err, tc.want)
		}
		if tc.want != nil {
			continue
		}
		if err := sig.Verify([]byte("x"), []*x509.Certificate{s.Certificate}); !errors.Is(err, sign.ErrSignature) {
			t.Errorf("%v: of another module: %v", tc.args, err)
		}
	}
	_, sig, err := sign.Split(append(testModule(), make("-noattr", "-keyid")...))
	if err != nil {
		t.Fatal(err)
	}
	if got := sig.String(); got != "key 01:02:03" {
		t.Errorf("signer is %s, want key 01:02:03", got)
	}
	_, _, err = sign.Split(append(testModule(), make("-noattr", "-nodetach")...))
	if want := "damaged module signature: has content of its own, want one that is detached"; fmt.Sprint(err) != want {
		t.Errorf("with content: %v, want %s", err, want)
	}
}

// trail returns a signature with what follows it in a module.
func trail(der []byte) []byte {
	n := len(der)
	out := append(bytes.Clone(der), 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, byte(n>>8), byte(n))
	return append(out, "~Module signature appended~\n"...)
}

package selfsigned

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kilnhq/kiln/internal/oracle"
)

func TestNew(t *testing.T) {
	cert, key, f, err := New(rand.Reader, "kiln")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil || Of(c.Raw) != f || c.IsCA {
		t.Errorf("%+v, %v", c, err)
	}
	for _, now := range []time.Time{time.Unix(1, 0), time.Now(), time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			t.Errorf("not valid at %v", now)
		}
	}
	openssl := exec.Command(oracle.Tool(t, "openssl"), "x509", "-noout", "-fingerprint", "-sha256")
	openssl.Stdin = strings.NewReader(string(cert))
	out, err := openssl.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, printed, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	if got, err := Parse(printed); err != nil || got != f {
		t.Errorf("openssl says %s, want %v, %v", printed, f, err)
	}
	if _, _, _, err := New(iotest.ErrReader(errors.New("none")), "kiln"); err == nil || err.Error() != "random numbers: none" {
		t.Errorf("error %v", err)
	}
}

func TestParse(t *testing.T) {
	f := Of([]byte("x"))
	for _, s := range []string{f.String(), strings.TrimPrefix(f.String(), prefix), f.String() + "=", " " + f.String() + "\n", hex.EncodeToString(f[:]), strings.ToUpper(hex.EncodeToString(f[:]))} {
		if got, err := Parse(s); err != nil || got != f {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if f.String() != "SHA256:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE" { // echo -n x | openssl sha256 -binary | base64
		t.Errorf("got %v", f)
	}
	for _, s := range []string{"", "SHA256:", "MD5:00", f.String()[:20], f.String() + "A", strings.Repeat("0", 62)} {
		if _, err := Parse(s); err == nil || !strings.HasPrefix(err.Error(), "fingerprint ") {
			t.Errorf("%q: error %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Of(nil).String())
	f.Add("00:11")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(p.String()); err != nil || again != p {
			t.Errorf("%q became %v, and that %v, %v", s, p, again, err)
		}
	})
}

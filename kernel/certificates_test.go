package kernel

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// testCertificate returns a certificate of more than 255 bytes, as all are.
func testCertificate(t *testing.T, name string) []byte {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{strings.Repeat("o", 200)}}}
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// bzImageWith returns an image with a payload, and what is needed to find it.
func bzImageWith(t *testing.T, payload []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	payload = append(z.EncodeAll(payload, nil), 1, 2, 3, 4)
	img := make([]byte, 3*512+16)
	img[0x1f1] = 2
	binary.LittleEndian.PutUint32(img[0x248:], 16)
	binary.LittleEndian.PutUint32(img[0x24c:], uint32(len(payload)))
	return append(img, payload...)
}

func TestCertificates(t *testing.T) {
	a, b := testCertificate(t, "a"), testCertificate(t, "b")
	vmlinux := bytes.Join([][]byte{{0x30, 0x82, 0x30, 0x82}, a, []byte("0\x82\x00\x040\x82xx"), a, b, {0x30, 0x82, 0xff}}, nil)
	p := &Package{Arch: "amd64", Vmlinuz: bytes.NewReader(bzImageWith(t, vmlinux))}
	got, err := p.Certificates()
	if err != nil || len(got) != 2 || got[0].Subject.CommonName != "a" || got[1].Subject.CommonName != "b" {
		t.Errorf("bzImage: %v, %v", got, err)
	}
	p = &Package{Arch: "arm64", Vmlinuz: bytes.NewReader(vmlinux)}
	if got, err = p.Certificates(); err != nil || len(got) != 2 {
		t.Errorf("Image: %v, %v", got, err)
	}
	cut := bzImageWith(t, vmlinux)
	p = &Package{Arch: "amd64", Vmlinuz: bytes.NewReader(cut[:len(cut)-9])}
	if _, err := p.Certificates(); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "payload of") {
		t.Errorf("cut: %v", err)
	}
	cut[len(cut)-20] ^= 0xff
	p = &Package{Arch: "amd64", Vmlinuz: bytes.NewReader(cut)}
	if _, err := p.Certificates(); !errors.Is(err, ErrFormat) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzCertificates(f *testing.F) {
	f.Add([]byte("0\x82\x00\x040\x82xx"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		certificates(data)
		bzImagePayload(data)
	})
}

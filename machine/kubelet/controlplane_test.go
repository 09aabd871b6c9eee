package kubelet

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

func TestIsOld(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: begin, NotAfter: begin.Add(100 * time.Hour)}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for after, want := range map[time.Duration]bool{0: false, 49 * time.Hour: false, 51 * time.Hour: true, 200 * time.Hour: true} {
		if got, err := IsOld(certificate, begin.Add(after)); err != nil || got != want {
			t.Errorf("after %v: %t, %v", after, got, err)
		}
	}
	if _, err := IsOld([]byte("x"), begin); err == nil || err.Error() != "certificate of the API server: not PEM" {
		t.Errorf("got %v", err)
	}
}

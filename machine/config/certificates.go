package config

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// Certificates returns the X.509 certificates of a text in PEM: at least one,
// and nothing else. What is between them is left out.
func Certificates(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s, want CERTIFICATE blocks only", blockType(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case strings.Contains(string(rest), "-----BEGIN"):
		return nil, fmt.Errorf("the PEM block after certificate %d is damaged", len(certs))
	case len(certs) == 0:
		return nil, errors.New("no certificate, want PEM with CERTIFICATE blocks")
	}
	return certs, nil
}

// blockType describes a PEM block without repeating what may be anything.
func blockType(s string) string {
	if strings.HasSuffix(s, "PRIVATE KEY") {
		return "a private key"
	}
	return "a block of another type"
}

// Signer returns the key of the pair, which must be that of the first
// certificate. The error does not quote it.
func (p *KeyPair) Signer() (crypto.Signer, error) {
	certs, err := Certificates(p.Certificate)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(p.Key.Reveal()))
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no key, want PEM with a PRIVATE KEY block (PKCS #8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the key is damaged, want PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key is a %T, which cannot sign", key)
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(certs[0].PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	return signer, nil
}

func checkCertificates(doc *strictyaml.Document, where, text string) []*x509.Certificate {
	certs, err := Certificates(text)
	if err != nil {
		doc.Add(where, "%v", err)
	}
	return certs
}

func (t *TrustedRoots) check(doc *strictyaml.Document) {
	if !isName(t.Name) {
		doc.Add("name", "%q, want %s", t.Name, wantName)
	}
	checkCertificates(doc, "certificates", t.Certificates)
}

func (a *API) check(doc *strictyaml.Document) {
	for i, name := range a.Names {
		if !isDomain(name) && !isAddress(name) {
			doc.Add(item("names", i), "%q, want a name or an address, without port", name)
		}
	}
	certs := checkCertificates(doc, "issuer.certificate", a.Issuer.Certificate)
	if len(certs) > 0 {
		if !certs[0].IsCA {
			doc.Add("issuer.certificate", "the first one is not that of a certification authority")
		}
		if _, err := a.Issuer.Signer(); err != nil {
			doc.Add("issuer.key", "%v", err)
		}
	}
	for i, c := range checkCertificates(doc, "clientCAs", a.ClientCAs) {
		if !c.IsCA {
			doc.Add("clientCAs", "certificate %d is not that of a certification authority", i+1)
		}
	}
}

package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"
)

// A Signature is that of a module.
type Signature struct {
	// Signer is the common name of the issuer of the signer's certificate, which
	// is the signer's own if it is self-signed. It is "" if KeyID is set.
	Signer string
	Serial *big.Int // serial number of the signer's certificate; nil if KeyID is set
	KeyID  []byte   // subject key identifier of that certificate, in signatures that name it by it

	Hash      string // as modinfo prints it: "sha256"
	Algorithm string // of the key: "rsa" or "ecdsa"

	digest    algorithm
	issuer    []byte // DER
	value     []byte
	attribute bool // has signed attributes
}

// String names the signer, for messages.
func (s *Signature) String() string {
	if s.KeyID != nil {
		return "key " + colons(s.KeyID)
	}
	return fmt.Sprintf("%s, serial number %s", s.Signer, colons(s.Serial.Bytes()))
}

func colons(b []byte) string {
	return strings.ReplaceAll(strings.ToUpper(fmt.Sprintf("% x", b)), " ", ":")
}

// Split divides an uncompressed module into its ELF file, which aliases data, and
// its signature. Without a signature the ELF file is all of data and the error
// wraps ErrUnsigned; a damaged one is an error that wraps ErrFormat.
func Split(data []byte) (module []byte, sig *Signature, err error) {
	rest, ok := bytes.CutSuffix(data, []byte(marker))
	if !ok {
		return data, nil, ErrUnsigned
	}
	if len(rest) < trailerSize {
		return nil, nil, fmt.Errorf("%w: %d bytes in front of the marker, want %d of a trailer", ErrFormat, len(rest), trailerSize)
	}
	var t trailer
	if _, err := binary.Decode(rest[len(rest)-trailerSize:], binary.BigEndian, &t); err != nil {
		return nil, nil, fmt.Errorf("%w: trailer: %w", ErrFormat, err)
	}
	rest = rest[:len(rest)-trailerSize]
	if t.IDType != idPKCS7 {
		return nil, nil, fmt.Errorf("%w: type %d, want %d (PKCS#7)", ErrFormat, t.IDType, idPKCS7)
	}
	if t.Algo|t.Hash|t.SignerLen|t.KeyIDLen != 0 {
		return nil, nil, fmt.Errorf("%w: fields of its trailer are set that must be 0", ErrFormat)
	}
	if uint64(t.SigLen) >= uint64(len(rest)) { // as the kernel, that leaves no empty module
		return nil, nil, fmt.Errorf("%w: %d bytes long, but the file has only %d for it and the module", ErrFormat, t.SigLen, len(rest))
	}
	module, der := rest[:len(rest)-int(t.SigLen)], rest[len(rest)-int(t.SigLen):]
	sig, err = parse(der)
	if err != nil {
		return nil, nil, err
	}
	return module, sig, nil
}

// parse reads a CMS signature.
func parse(der []byte) (*Signature, error) {
	fail := func(format string, args ...any) (*Signature, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
	}
	var ci contentInfo
	rest, err := asn1.Unmarshal(der, &ci)
	if err != nil {
		return fail("%w", err)
	}
	if len(rest) != 0 {
		return fail("%d bytes behind it", len(rest))
	}
	sd := ci.Content
	switch {
	case !ci.Type.Equal(oidSignedData):
		return fail("content type %s, want %s (signed data)", ci.Type, oidSignedData)
	case !sd.Content.Type.Equal(oidData):
		return fail("signs content of type %s, want %s (data)", sd.Content.Type, oidData)
	case len(sd.Content.Data.FullBytes) != 0:
		return fail("has content of its own, want one that is detached")
	case len(sd.Signers) != 1:
		return fail("%d signers, want 1", len(sd.Signers))
	}
	si := sd.Signers[0]
	s := &Signature{value: si.Signature, attribute: len(si.Attributes.FullBytes) != 0}
	if s.digest, err = digestAlgorithm(si.Digest.Algorithm); err != nil {
		return nil, err
	}
	s.Hash = s.digest.name
	if s.Algorithm, err = s.digest.keyAlgorithm(si.SignatureAlgorithm.Algorithm); err != nil {
		return nil, err
	}
	if si.Signer.Class == asn1.ClassContextSpecific && si.Signer.Tag == 0 && !si.Signer.IsCompound {
		if len(si.Signer.Bytes) == 0 {
			return fail("empty key identifier")
		}
		s.KeyID = si.Signer.Bytes
		return s, nil
	}
	var id issuerSerial
	if rest, err := asn1.Unmarshal(si.Signer.FullBytes, &id); err != nil || len(rest) != 0 {
		return fail("signer's issuer and serial number: %v", err)
	}
	var rdn pkix.RDNSequence
	if rest, err := asn1.Unmarshal(id.Issuer.FullBytes, &rdn); err != nil || len(rest) != 0 {
		return fail("signer's issuer: %v", err)
	}
	var name pkix.Name
	name.FillFromRDNSequence(&rdn)
	s.Signer, s.Serial, s.issuer = commonName(name), id.Serial, id.Issuer.FullBytes
	return s, nil
}

// By reports whether the signature names the certificate as the signer's. It
// does not verify.
func (s *Signature) By(cert *x509.Certificate) bool {
	if s.KeyID != nil {
		return bytes.Equal(s.KeyID, cert.SubjectKeyId)
	}
	return bytes.Equal(s.issuer, cert.RawIssuer) && s.Serial.Cmp(cert.SerialNumber) == 0
}

// Verify checks that the signature is of module, the ELF file, by the key of one
// of the certificates, as the kernel does: neither dates nor usages matter. The
// error wraps ErrSigner if none of them is the signer's, else ErrSignature.
func (s *Signature) Verify(module []byte, certs []*x509.Certificate) error {
	var cert *x509.Certificate
	for _, c := range certs {
		if s.By(c) {
			cert = c
			break
		}
	}
	if cert == nil {
		return fmt.Errorf("%w: %s", ErrSigner, s)
	}
	if s.attribute {
		return fmt.Errorf("%w: it has signed attributes, which the kernel refuses", ErrSignature)
	}
	h := s.digest.hash.New()
	h.Write(module)
	digest := h.Sum(nil)
	var ok bool
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		ok = s.Algorithm == "rsa" && rsa.VerifyPKCS1v15(key, s.digest.hash, digest, s.value) == nil
	case *ecdsa.PublicKey:
		ok = s.Algorithm == "ecdsa" && ecdsa.VerifyASN1(key, digest, s.value)
	}
	if !ok {
		return fmt.Errorf("%w: %s, %s with %s", ErrSignature, s, s.Algorithm, s.Hash)
	}
	return nil
}

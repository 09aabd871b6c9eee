// Package sign signs Linux kernel modules and reads their signatures, as the
// kernel's scripts/sign-file and kernel/module/signing.c of Linux 6.12 do.
//
// A signed module is the module's ELF file followed by
//
//	signature    CMS (PKCS#7, RFC 5652), DER
//	12 bytes     struct module_signature of include/linux/module_signature.h:
//	             algo, hash (0), id_type (2: PKCS#7), signer_len, key_id_len,
//	             3 bytes of padding (0), then the signature's length in bytes,
//	             32 bits, most significant byte first
//	28 bytes     "~Module signature appended~\n"
//
// The signature is a ContentInfo with a SignedData without content, without
// certificates and with one SignerInfo that names its key by the issuer and the
// serial number of the certificate, and that signs the digest of the module
// itself: the kernel refuses signed attributes in the signatures of modules.
//
// What is signed is the ELF file. A module is signed first and compressed then,
// and stripping it or changing it otherwise takes the signature away.
package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"   // of old signatures
	_ "crypto/sha256" // of signatures
	_ "crypto/sha3"   // of signatures since Linux 6.7
	_ "crypto/sha512" // of signatures
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// Errors that errors of this package wrap.
var (
	ErrUnsigned  = errors.New("module is not signed")
	ErrFormat    = errors.New("damaged module signature")
	ErrSigner    = errors.New("signer is not known")      // the kernel's ENOKEY
	ErrSignature = errors.New("signature does not match") // the kernel's EKEYREJECTED
	ErrKey       = errors.New("unsuitable key")
)

// marker ends a signed module.
const marker = "~Module signature appended~\n"

// trailer is struct module_signature.
type trailer struct {
	Algo, Hash, IDType, SignerLen, KeyIDLen uint8
	_                                       [3]uint8
	SigLen                                  uint32 // big-endian
}

const (
	trailerSize = 12
	idPKCS7     = 2 // enum pkey_id_type
)

// A Signer signs modules.
type Signer struct {
	// Key is the private key: RSA, or ECDSA on P-256, P-384 or P-521, the last of
	// which kernels take since 6.10. Keys may be elsewhere, such as in a hardware
	// token; those of crypto/rsa and crypto/ecdsa sign deterministically.
	Key crypto.Signer

	// Certificate is what the kernel has to trust. It is that of Key.
	Certificate *x509.Certificate

	// Hash is what the module is digested with: SHA-256, SHA-384 or SHA-512; 0 is
	// SHA-256. A kernel needs it built in.
	Hash crypto.Hash
}

// Sign returns the ELF file module with a signature appended, in new memory. A
// signature that module has already is replaced.
func (s *Signer) Sign(module []byte) ([]byte, error) {
	plain, _, err := Split(module)
	if err != nil && !errors.Is(err, ErrUnsigned) {
		return nil, err
	}
	sig, err := s.sign(plain)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(plain)+len(sig)+trailerSize+len(marker))
	out = append(out, plain...)
	out = append(out, sig...)
	out, err = binary.Append(out, binary.BigEndian, trailer{IDType: idPKCS7, SigLen: uint32(len(sig))})
	if err != nil {
		return nil, err
	}
	return append(out, marker...), nil
}

// sign returns the CMS signature of data.
func (s *Signer) sign(data []byte) ([]byte, error) {
	hash := s.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	if err := s.check(hash); err != nil {
		return nil, err
	}
	digestOID, signatureOID, null := oids(hash, s.Key.Public())
	h := hash.New()
	h.Write(data)
	raw, err := s.Key.Sign(s.random(), h.Sum(nil), hash)
	if err != nil {
		return nil, fmt.Errorf("sign with key of %s: %w", commonName(s.Certificate.Subject), err)
	}
	sid, err := asn1.Marshal(issuerSerial{asn1.RawValue{FullBytes: s.Certificate.RawIssuer}, s.Certificate.SerialNumber})
	if err != nil {
		return nil, fmt.Errorf("%w: certificate's issuer and serial number: %w", ErrKey, err)
	}
	digest := pkix.AlgorithmIdentifier{Algorithm: digestOID}
	signature := pkix.AlgorithmIdentifier{Algorithm: signatureOID}
	if null {
		signature.Parameters = asn1.NullRawValue
	}
	return asn1.Marshal(contentInfo{oidSignedData, signedData{
		Version: 1,
		Digests: []pkix.AlgorithmIdentifier{digest},
		Content: content{Type: oidData},
		Signers: []signerInfo{{
			Version:            1,
			Signer:             asn1.RawValue{FullBytes: sid},
			Digest:             digest,
			SignatureAlgorithm: signature,
			Signature:          raw,
		}},
	}})
}

// check refuses what the kernel would not take.
func (s *Signer) check(hash crypto.Hash) error {
	if s.Key == nil || s.Certificate == nil {
		return fmt.Errorf("%w: want a private key and its certificate", ErrKey)
	}
	switch hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("%w: hash %s, want SHA-256, SHA-384 or SHA-512", ErrKey, hash)
	}
	public, ok := s.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return fmt.Errorf("%w: %T, want RSA or ECDSA", ErrKey, s.Key.Public())
	}
	switch p := s.Key.Public().(type) {
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < 2048 || n > 4096 {
			return fmt.Errorf("%w: RSA with %d bits, want 2048 to 4096", ErrKey, n)
		}
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fmt.Errorf("%w: ECDSA on %s, want P-256, P-384 or P-521", ErrKey, p.Params().Name)
		}
	default:
		return fmt.Errorf("%w: %T, want RSA or ECDSA", ErrKey, p)
	}
	if !public.Equal(s.Certificate.PublicKey) {
		return fmt.Errorf("%w: the certificate of %s is for another key", ErrKey, commonName(s.Certificate.Subject))
	}
	return nil
}

// random returns what the key takes randomness from: nothing, with which ECDSA
// is deterministic (RFC 6979), or what keys elsewhere want.
func (s *Signer) random() io.Reader {
	switch s.Key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
		return nil
	}
	return rand.Reader
}

// The structures of RFC 5652, as far as modules have them.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      content
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []signerInfo  `asn1:"set"`
	}
	content struct {
		Type asn1.ObjectIdentifier
		Data asn1.RawValue `asn1:"optional,tag:0"`
	}
	signerInfo struct {
		Version            int
		Signer             asn1.RawValue // issuerSerial, or a key identifier as [0]
		Digest             pkix.AlgorithmIdentifier
		Attributes         asn1.RawValue `asn1:"optional,tag:0"`
		SignatureAlgorithm pkix.AlgorithmIdentifier
		Signature          []byte
		Unsigned           asn1.RawValue `asn1:"optional,tag:1"`
	}
	issuerSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

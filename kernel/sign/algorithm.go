package sign

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// algorithm is a hash that the kernel knows in signatures.
type algorithm struct {
	hash       crypto.Hash
	name       string                // as modinfo prints it
	oid        asn1.ObjectIdentifier // of the digest
	rsa, ecdsa asn1.ObjectIdentifier // of signatures with it
}

// algorithms returns them all. RFC 3279, RFC 5758 and, for SHA-3, NIST's list.
func algorithms() []algorithm {
	nist := func(arc, n int) asn1.ObjectIdentifier {
		return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, arc, n}
	}
	pkcs1 := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, n} }
	ecdsa := func(n ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 2, 840, 10045, 4}, n...)
	}
	return []algorithm{
		{crypto.SHA1, "sha1", asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, pkcs1(5), ecdsa(1)},
		{crypto.SHA224, "sha224", nist(2, 4), pkcs1(14), ecdsa(3, 1)},
		{crypto.SHA256, "sha256", nist(2, 1), pkcs1(11), ecdsa(3, 2)},
		{crypto.SHA384, "sha384", nist(2, 2), pkcs1(12), ecdsa(3, 3)},
		{crypto.SHA512, "sha512", nist(2, 3), pkcs1(13), ecdsa(3, 4)},
		{crypto.SHA3_256, "sha3-256", nist(2, 8), nist(3, 14), nist(3, 10)},
		{crypto.SHA3_384, "sha3-384", nist(2, 9), nist(3, 15), nist(3, 11)},
		{crypto.SHA3_512, "sha3-512", nist(2, 10), nist(3, 16), nist(3, 12)},
	}
}

// oids returns what identifies the digest and the signature, and whether the
// latter has NULL as its parameters. The hash and the key are supported ones.
func oids(hash crypto.Hash, key crypto.PublicKey) (digest, signature asn1.ObjectIdentifier, null bool) {
	for _, a := range algorithms() {
		if a.hash != hash {
			continue
		}
		if _, ok := key.(*rsa.PublicKey); ok {
			return a.oid, oidRSA, true
		}
		return a.oid, a.ecdsa, false
	}
	return nil, nil, false
}

// digestAlgorithm returns the algorithm with the identifier of a digest.
func digestAlgorithm(id asn1.ObjectIdentifier) (algorithm, error) {
	for _, a := range algorithms() {
		if a.oid.Equal(id) {
			return a, nil
		}
	}
	return algorithm{}, fmt.Errorf("%w: digest algorithm %s is not one that the kernel has", ErrFormat, id)
}

// keyAlgorithm returns "rsa" or "ecdsa".
func (a algorithm) keyAlgorithm(id asn1.ObjectIdentifier) (string, error) {
	switch {
	case id.Equal(oidRSA), id.Equal(a.rsa):
		return "rsa", nil
	case id.Equal(a.ecdsa):
		return "ecdsa", nil
	}
	return "", fmt.Errorf("%w: signature algorithm %s with digest %s, want RSA or ECDSA with the same digest", ErrFormat, id, a.name)
}

// commonName returns the last common name of a name, or the whole name if it has
// none.
func commonName(n pkix.Name) string {
	if n.CommonName != "" {
		return n.CommonName
	}
	return n.String()
}

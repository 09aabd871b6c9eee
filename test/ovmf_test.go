package test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/internal/oracle"
)

// The vendors of variables and the type of a signature list, of the UEFI
// specification, sections 3.3, 32.4.1 and 32.6.3, and of EDK II.
var (
	globalVariable = uuid.MustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	imageSecurity  = uuid.MustParse("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	certX509       = uuid.MustParse("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	shimLock       = uuid.MustParse("605dab50-e046-4300-abb6-3dd810dd8b23")
	authVariables  = uuid.MustParse("aaf32c78-947b-439a-a180-2e144ec37792")
)

// Attributes of variables: non-volatile, for boot services, for the running
// system, and authenticated by time.
const (
	plainAttributes = 0x07
	authAttributes  = 0x27
)

// variable is one of UEFI's.
type variable struct {
	vendor     uuid.UUID
	name       string
	attributes uint32
	data       []byte
}

// signatureLists is an EFI_SIGNATURE_LIST for each certificate.
func signatureLists(certs ...*x509.Certificate) []byte {
	var b []byte
	owner := uuid.NewSHA1(uuid.NameSpaceURL, []byte("kiln test"))
	for _, c := range certs {
		n := uint32(len(c.Raw)) + 16
		b = append(b, guid(certX509)...)
		b = binary.LittleEndian.AppendUint32(b, 28+n)
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, n)
		b = append(b, guid(owner)...)
		b = append(b, c.Raw...)
	}
	return b
}

// guid is how UEFI writes one: the first three fields little-endian.
func guid(u uuid.UUID) []byte {
	b := bytes.Clone(u[:])
	for _, r := range [][2]int{{0, 3}, {1, 2}, {4, 5}, {6, 7}} {
		b[r[0]], b[r[1]] = b[r[1]], b[r[0]]
	}
	return b
}

// writeVars writes a file of UEFI variables for OVMF: that of the package ovmf
// with some more. The file is a firmware volume of 72 bytes of header, then a
// store: its type, 12 bytes, and the variables, each aligned to 4 bytes.
func writeVars(t *testing.T, vars []variable) string {
	t.Helper()
	data, err := os.ReadFile(oracle.File(t, "/usr/share/OVMF/OVMF_VARS_4M.fd"))
	if err != nil {
		t.Fatal(err)
	}
	const store, first, header, magic = 0x48, 0x64, 60, 0x55aa
	if !bytes.Equal(data[store:store+16], guid(authVariables)) {
		t.Fatal("OVMF_VARS_4M.fd has no store of authenticated variables")
	}
	le := binary.LittleEndian
	at := first
	for le.Uint16(data[at:]) == magic {
		at += header + int(le.Uint32(data[at+36:])) + int(le.Uint32(data[at+40:]))
		at = (at + 3) &^ 3
	}
	for _, v := range vars {
		name, err := binary.Append(nil, le, append(utf16.Encode([]rune(v.name)), 0))
		if err != nil {
			t.Fatal(err)
		}
		b := []byte{0xaa, 0x55, 0x3f, 0} // VAR_ADDED, as written in full
		b = le.AppendUint32(b, v.attributes)
		b = append(b, make([]byte, 8+16+4)...) // count, time stamp, index of a key
		b = le.AppendUint32(b, uint32(len(name)))
		b = le.AppendUint32(b, uint32(len(v.data)))
		b = append(b, guid(v.vendor)...)
		b = append(append(b, name...), v.data...)
		for _, c := range data[at : at+len(b)] {
			if c != 0xff {
				t.Fatal("OVMF_VARS_4M.fd is in use where a variable would go")
			}
		}
		copy(data[at:], b)
		at = (at + len(b) + 3) &^ 3
	}
	path := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

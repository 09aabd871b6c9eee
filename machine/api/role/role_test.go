package role

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"testing"

	"github.com/kilnhq/kiln/machine/config/identity"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		organisations []string
		want          Role
		err           string
	}{
		{[]string{"kiln:reader"}, Reader, ""},
		{[]string{"Example Ltd", "kiln:operator"}, Operator, ""},
		{[]string{"kiln:admin"}, Admin, ""},
		{nil, None, "the certificate names no role: organisations [], want one of [kiln:reader kiln:operator kiln:admin]"},
		{[]string{"admin"}, None, `the certificate names no role: organisations ["admin"], want one of [kiln:reader kiln:operator kiln:admin]`},
		{[]string{"kiln:admin", "kiln:root"}, None, `the certificate names no role: organisation "kiln:root" is none of [kiln:reader kiln:operator kiln:admin]`},
		{[]string{"kiln:reader", "kiln:admin"}, None, "the certificate names no role: it names kiln:reader and kiln:admin, want one"},
		{[]string{"kiln:Admin"}, None, `the certificate names no role: organisation "kiln:Admin" is none of [kiln:reader kiln:operator kiln:admin]`},
		{[]string{"kiln:"}, None, `the certificate names no role: organisation "kiln:" is none of [kiln:reader kiln:operator kiln:admin]`},
	} {
		got, err := Of(&x509.Certificate{Subject: pkix.Name{Organization: c.organisations}})
		if got != c.want || c.err == "" && err != nil || c.err != "" && (!errors.Is(err, ErrNone) || err.Error() != c.err) {
			t.Errorf("%q: %v, %v, want %v, %s", c.organisations, got, err, c.want, c.err)
		}
	}
}

// The roles are those that certificates are made with, in their order.
func TestIssuedRoles(t *testing.T) {
	most := Admin
	for _, r := range identity.Roles() {
		got, err := Of(&x509.Certificate{Subject: pkix.Name{Organization: []string{"kiln:" + string(r)}}})
		if err != nil || got != most {
			t.Errorf("%s is %v, %v, want %v", r, got, err, most)
		}
		most--
	}
	if most != None {
		t.Errorf("%v is issued to nobody", most)
	}
}

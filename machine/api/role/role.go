// Package role says what the holder of a client certificate may do on a node.
//
// The certificate's subject names the role as one of its organisations (the
// attribute O of X.520): kiln:reader, kiln:operator or kiln:admin. Each may do
// what the ones before it may. Other organisations mean nothing, but those that
// begin with "kiln:" and are no role, or more than one role, are refused.
package role

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// A Role is what somebody may do. More is greater.
type Role int

const (
	None     Role = iota
	Reader        // sees what is no secret
	Operator      // also stops and starts services and the machine
	Admin         // also changes the system and sees secrets
)

const prefix = "kiln:"

// ErrNone is wrapped by the errors of Of.
var ErrNone = errors.New("the certificate names no role")

// All returns the roles, least first.
func All() []Role { return []Role{Reader, Operator, Admin} }

// String returns the organisation that stands for r.
func (r Role) String() string {
	switch r {
	case Reader:
		return prefix + "reader"
	case Operator:
		return prefix + "operator"
	case Admin:
		return prefix + "admin"
	}
	return "no role"
}

// Of returns the role that a certificate names.
func Of(c *x509.Certificate) (Role, error) {
	found := None
	for _, o := range c.Subject.Organization {
		if !strings.HasPrefix(o, prefix) {
			continue
		}
		r := parse(o)
		if r == None {
			return None, fmt.Errorf("%w: organisation %q is none of %v", ErrNone, o, All())
		}
		if found != None {
			return None, fmt.Errorf("%w: it names %v and %v, want one", ErrNone, found, r)
		}
		found = r
	}
	if found == None {
		return None, fmt.Errorf("%w: organisations %q, want one of %v", ErrNone, c.Subject.Organization, All())
	}
	return found, nil
}

func parse(organisation string) Role {
	for _, r := range All() {
		if r.String() == organisation {
			return r
		}
	}
	return None
}

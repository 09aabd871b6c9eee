package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseContextsFaults(t *testing.T) {
	certificate, key := testPair(t)
	quoted := func(s string) string { return fmt.Sprintf("%q", s) }
	context := "{nodes: [%s], ca: " + quoted(certificate) + ", identity: {certificate: " + quoted(certificate) + ", key: " + quoted(key) + "}}"
	all := func(nodes string) string { return doc("Contexts", "contexts:\n  a: "+fmt.Sprintf(context, nodes)+"\n") }
	for _, in := range []string{"a", "a.example:1", "192.0.2.1, '192.0.2.1:1', '2001:db8::1', '[2001:db8::1]:65535'", ""} {
		c, err := ParseContexts("n.yaml", []byte(all(in)))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if s := fmt.Sprintf("%+v", c); strings.Contains(s, "PRIVATE") {
			t.Errorf("a key is in %s", s)
		}
	}
	for _, tt := range []struct{ in, want string }{
		{"", "n.yaml: 0 documents, want one of kind Contexts"},
		{all("a") + "---\n" + all("b"), "n.yaml: 2 documents, want one of kind Contexts"},
		{doc("Time", ""), `n.yaml:2:7: kind: "Time", want Contexts`},
		{doc("Contexts", ""), `key "contexts" is missing`},
		{doc("Contexts", "contexts: {}\n"), `contexts: empty, want at least one`},
		{doc("Contexts", "contexts: {a: {}}\n"), `n.yaml:3:15: key "ca" is missing in contexts.a`},
		{strings.Replace(all("a"), "  a:", "  a b:", 1), `contexts.a b: want a name of letters`},
		{all("a:0"), `contexts.a.nodes[0]: "a:0", want a name or an address`},
		{all("'[192.0.2.1]:1'"), `want a name or an address, with or without port`},
		{all("'2001:db8::1:70000'"), `want a name or an address, with or without port`},
		{strings.Replace(all("a"), "contexts:", "current: b\ncontexts:", 1), `current: there is no context "b"`},
		{strings.Replace(all("a"), "BEGIN PRIVATE", "BEGIN", 1), `contexts.a.identity.key: no key, want PEM with a PRIVATE KEY block`},
	} {
		_, err := ParseContexts("n.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

// What is wrong with the identity of a node.
func TestIssuer(t *testing.T) {
	certificate, key := testPair(t)
	text := func(issuer, key, clients string) string {
		return doc("API", fmt.Sprintf("issuer: {certificate: %q, key: %q}\nclientCAs: %q\n", issuer, key, clients))
	}
	c := parse(t, text(certificate+certificate, key, certificate+"a comment\n"+certificate))
	if c.API.Port != 50000 {
		t.Errorf("port %d", c.API.Port)
	}
	if _, err := c.API.Issuer.Signer(); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct{ in, want string }{
		{text(certificate, "x", certificate), "issuer.key: no key, want PEM with a PRIVATE KEY block (PKCS #8)"},
		{text(certificate, strings.Replace(key, "MC4", "AAA", 1), certificate), "issuer.key: the key is damaged, want PKCS #8"},
		{text(certificate, strings.Replace(key, "AAAAAAAA", "AAAABAAA", 1), certificate), "issuer.key: the key is not that of the certificate"},
		{text(key, key, certificate), "issuer.certificate: a private key, want CERTIFICATE blocks only"},
		{text(certificate, key, "x"), "clientCAs: no certificate"},
	} {
		_, err := Parse("m.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

// validator returns the schema, which is itself checked against the schema of
// schemas.
func validator(t testing.TB) *jsonschema.Schema {
	t.Helper()
	data, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", value); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// refused returns what the schema says of the documents of a stream.
func refused(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	loader, err := yaml.NewLoader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for {
		var v any
		if err := loader.Load(&v); err != nil {
			return nil // the end, or what only Parse can refuse
		}
		data, err := json.Marshal(v)
		if v == nil || err != nil {
			continue
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(value); err != nil {
			return err
		}
	}
}

// examples returns the blocks of YAML in the documentation.
func examples(t testing.TB) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, part := range strings.Split(string(data), "```yaml\n")[1:] {
		block, _, ok := strings.Cut(part, "```")
		if !ok {
			t.Fatal("a block without end")
		}
		list = append(list, filled(t, block))
	}
	return list
}

// filled returns an example with certificates and keys where it has dots.
func filled(t testing.TB, block string) string {
	certificate, key := testPair(t)
	for _, text := range []string{certificate, key} {
		first, _, _ := strings.Cut(text, "\n")
		name := strings.TrimPrefix(first, "-----BEGIN ")
		indent := regexp.MustCompile(`(?m)^( *)` + first + `\n +…\n *-----END ` + name + `$`)
		block = indent.ReplaceAllStringFunc(block, func(found string) string {
			spaces := found[:strings.Index(found, "-")]
			return spaces + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+spaces)
		})
	}
	return block
}

// testPair returns the certificate and key of a CA in PEM, always the same.
func testPair(t testing.TB) (certificate, key string) {
	t.Helper()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(nil, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// Every kind has an example in the documentation, and every example is valid.
func TestExamples(t *testing.T) {
	s := validator(t)
	all := Config{}
	for _, in := range examples(t) {
		if strings.Contains(in, "kind: Contexts") {
			if _, err := ParseContexts("example", []byte(in)); err != nil {
				t.Errorf("%s\n%v", in, err)
			}
			continue
		}
		c, err := Parse("example", []byte(in))
		if err != nil {
			t.Errorf("%s\n%v", in, err)
			continue
		}
		if err := refused(t, s, in); err != nil {
			t.Errorf("%s\n%v", in, err)
		}
		roundTrip(t, c)
		for i := range kinds {
			if f := reflect.ValueOf(c).Elem().Field(i); !f.IsZero() {
				reflect.ValueOf(&all).Elem().Field(i).Set(f)
			}
		}
	}
	for i, kind := range kinds {
		if reflect.ValueOf(all).Field(i).IsZero() {
			t.Errorf("no example of %s", kind.Name())
		}
	}
}

// What the schema refuses Parse refuses, and for shapes the other way round.
func TestSchemaAgrees(t *testing.T) {
	s := validator(t)
	both := 0
	faults(func(in, want string) {
		if refused(t, s, in) != nil {
			both++ // TestFaults has that Parse refuses all of them
		}
	})
	if both < 20 {
		t.Errorf("the schema refuses %d of the documents", both)
	}
	for _, in := range []string{
		"apiVersion: v1\nkind: Time\n", "kind: Time\n", "apiVersion: v1alpha1\n", doc("Tim", ""), doc("5", ""),
		doc("Time", "server: [a]\n"), doc("Time", "servers: a\n"), doc("Time", "servers: [5]\n"), doc("Time", "servers: [~]\n"), doc("Time", "disabled: 1\n"),
		doc("Time", "disabled: 'true'\n"), doc("Time", "disabled:\n"), doc("Time", "bootWait: 5\n"), doc("Hostname", ""), doc("Hostname", "hostname: ''\n"),
		doc("Link", "name: a\nmtu: '1500'\n"), doc("Link", "name: a\nmtu: 1.5\n"), doc("Link", "name: a\nmtu: 5\n"), doc("Link", "name: a\nvlan: {id: 5}\n"),
		doc("Link", "name: a\nvlan: {id: 0, link: a}\n"), doc("Link", "name: a\nvlan: []\n"), doc("Link", "name: a\nbond: {members: []}\n"), doc("Link", "name: a\ndhcp: {x: 1}\n"),
		doc("Link", "name: a\nroutes: [{to: 5}]\n"), doc("Kernel", "sysctls: {a: [1]}\n"), doc("Kernel", "sysctls: {a: 1.5}\n"), doc("Kernel", "sysctls: []\n"),
		doc("Service", "name: a\nimage: a\nenvironment: {A: 5}\n"), doc("Service", "name: a\nimage: a\nrestart: Always\n"), doc("Service", "name: a\nimage: a\nuser: a\n"),
		doc("Service", "name: a\nimage: a\nresources: {cpus: a}\n"), doc("Service", "name: a\nimage: a\nresources: {memory: 5}\n"), doc("File", "path: /var/a\nmode: [1]\n"),
		doc("File", "path: /var/a\ncontent: 5\n"), doc("Kubelet", "config: [a]\n"), doc("StaticPod", "name: a\npod: {}\n"), doc("API", "issuer: {}\nclientCAs: x\n"),
		doc("Resolver", "nameservers: ['1.1.1.1', '1.1.1.2', '1.1.1.3', '1.1.1.4']\n"),
	} {
		err := refused(t, s, in)
		if err == nil {
			t.Errorf("%s\nis valid for the schema", in)
		}
		if _, err := Parse("m.yaml", []byte(in)); err == nil {
			t.Errorf("%s\nis valid for Parse", in)
		}
	}
}

// Every field says what it means.
func TestFieldsDescribed(t *testing.T) {
	var walk func(t reflect.Type, where string)
	seen := map[reflect.Type]bool{}
	walk = func(of reflect.Type, where string) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice || of.Kind() == reflect.Map {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || seen[of] {
			return
		}
		seen[of] = true
		for i := range of.NumField() {
			f := of.Field(i)
			if !f.IsExported() {
				continue
			}
			if doc := f.Tag.Get("doc"); !strings.HasSuffix(doc, ".") && !strings.HasSuffix(doc, "…") {
				t.Errorf("%s.%s: description %q", where, f.Name, doc)
			}
			walk(f.Type, fmt.Sprintf("%s.%s", where, f.Name))
		}
	}
	walk(reflect.TypeFor[Config](), "Config")
}

package config

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

// Contexts are what clients have of nodes: ~/.config/kiln/nodes.yaml, one YAML
// document with apiVersion: v1alpha1 and kind: Contexts.
type Contexts struct {
	Current  string             `yaml:"current" doc:"Context that is used if none is named."`
	Contexts map[string]Context `yaml:"contexts" check:"required" doc:"Contexts by their names."`
}

// A Context is some nodes and the identity that a client has there.
type Context struct {
	Nodes    []string `yaml:"nodes" doc:"Names or addresses of nodes, with or without port."`
	CA       string   `yaml:"ca" check:"required" doc:"X.509 certificates in PEM that issue the nodes' certificates."`
	Identity KeyPair  `yaml:"identity" check:"required" doc:"The client's certificate and key."`
}

// ParseContexts reads contexts. name stands for them in the error, which is a
// *strictyaml.Error with all that is wrong.
func ParseContexts(name string, data []byte) (*Contexts, error) {
	docs, err := strictyaml.Split(name, data)
	if err != nil {
		return nil, err
	}
	if len(docs) != 1 {
		return nil, strictyaml.Join([]strictyaml.Problem{{File: name, Text: fmt.Sprintf("%d documents, want one of kind Contexts", len(docs))}})
	}
	var c Contexts
	doc := docs[0]
	if version, ok := doc.Text("apiVersion"); ok && version != Version {
		doc.Add("apiVersion", "%q, want %s", version, Version)
	}
	if kind, ok := doc.Text("kind"); ok && kind != "Contexts" {
		doc.Add("kind", "%q, want Contexts", kind)
	} else {
		doc.Decode(&c)
		tidy(reflect.ValueOf(&c).Elem())
		c.check(doc)
	}
	if err := strictyaml.Join(doc.Problems()); err != nil {
		return nil, err
	}
	return &c, nil
}

func (c *Contexts) check(doc *strictyaml.Document) {
	names := sortedKeys(c.Contexts)
	if _, ok := c.Contexts[c.Current]; !ok && c.Current != "" {
		doc.Add("current", "there is no context %q%s", c.Current, spelling.Hint(c.Current, names))
	}
	for _, name := range names {
		context, where := c.Contexts[name], "contexts."+name
		if !isWord(name, "-_.@") {
			doc.Add(where, "want a name of letters, digits, '-', '_', '.' and '@'")
		}
		for i, node := range context.Nodes {
			if !isEndpoint(node) {
				doc.Add(item(where+".nodes", i), "%q, want a name or an address, with or without port", node)
			}
		}
		checkCertificates(doc, where+".ca", context.CA)
		if certs := checkCertificates(doc, where+".identity.certificate", context.Identity.Certificate); certs != nil {
			if _, err := context.Identity.Signer(); err != nil {
				doc.Add(where+".identity.key", "%v", err)
			}
		}
	}
}

// isEndpoint reports whether s is HOST, HOST:PORT, an address, or [IPV6]:PORT.
func isEndpoint(s string) bool {
	if isDomain(s) || isAddress(s) {
		return true
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return false
	}
	if strings.HasPrefix(s, "[") {
		addr, err := netip.ParseAddr(host)
		return err == nil && addr.Is6()
	}
	return isDomain(host)
}

// EncodeContexts returns c as YAML, with its secrets.
func EncodeContexts(c *Contexts) ([]byte, error) {
	n := encoder{}.mapping(reflect.ValueOf(c).Elem())
	n.Content = append([]*yaml.Node{text("apiVersion"), text(Version), text("kind"), text("Contexts")}, n.Content...)
	return yaml.Dump(n, yaml.WithLineWidth(-1))
}

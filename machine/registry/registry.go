// Package registry makes the files by which containerd and other programs know how
// to reach container registries, and whom to trust, of a machine configuration.
//
// containerd reads, for a host HOST of an image's name, each time anew,
//
//	certs.d/HOST/hosts.toml      what is asked instead, in this order, and the registry itself
//	certs.d/_default/hosts.toml  the same for hosts without a directory
//
// see its docs/hosts.md. Credentials it has in its own configuration, which it
// reads when it starts, and which nobody else may read.
package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/machine/config"
)

// Where containerd has the hosts' directories, where its own credentials are, and
// those for what asks it to get images.
const (
	HostsDir   = "/etc/containerd/certs.d"
	DaemonFile = "/run/containerd/conf.d/10-registries.toml"
	ClientFile = "/run/kiln/registries.json"
)

// caFile has the certificates that a host's may be issued by.
const caFile = "ca.crt"

// anyHost is the name of the document for hosts without one, and defaultDir of
// their directory.
const (
	anyHost    = "*"
	defaultDir = "_default"
)

// answering returns the host that answers for a registry.
func answering(registry string) string {
	if standard, host := imagename.Default(); registry == standard {
		return host
	}
	return registry
}

// Hosts returns the files of HostsDir, by their paths in it.
func Hosts(c *config.Config) map[string][]byte {
	byHost := map[string]*config.Registry{}
	for i := range c.Registries {
		byHost[c.Registries[i].Name] = &c.Registries[i]
	}
	files := map[string][]byte{}
	for i := range c.Registries {
		r := &c.Registries[i]
		dir := directory(r.Name)
		files[dir+"/hosts.toml"] = hosts(r, byHost)
		if r.CA != "" {
			files[dir+"/"+caFile] = []byte(r.CA)
		}
	}
	return files
}

func directory(name string) string {
	if name == anyHost {
		return defaultDir
	}
	return name
}

// hosts writes a hosts.toml. What comes before the first table is about the
// registry itself, which is asked last. A registry that is never to be asked has
// the last of its mirrors in that place.
func hosts(r *config.Registry, byHost map[string]*config.Registry) []byte {
	var b bytes.Buffer
	b.WriteString("# Of the machine configuration.\n")
	mirrors := r.Mirrors
	switch n := len(mirrors); {
	case r.NoFallback && n > 0:
		last := mirrors[n-1]
		mirrors = mirrors[:n-1]
		fmt.Fprintf(&b, "server = %s\ncapabilities = ['pull', 'resolve']\n", quote(last.URL))
		server(&b, "", r, last, byHost)
	case r.Name != anyHost && (r.CA != "" || r.InsecureSkipVerify):
		fmt.Fprintf(&b, "server = %s\n", quote("https://"+answering(r.Name)))
		verification(&b, "", r, r)
	default:
		verification(&b, "", r, r)
	}
	for _, m := range mirrors {
		fmt.Fprintf(&b, "\n[host.%s]\n  capabilities = ['pull', 'resolve']\n", quote(m.URL))
		server(&b, "  ", r, m, byHost)
	}
	return b.Bytes()
}

// server writes what is to be known of a mirror.
func server(b *bytes.Buffer, indent string, of *config.Registry, m config.Mirror, byHost map[string]*config.Registry) {
	if m.OverridePath {
		fmt.Fprintf(b, "%soverride_path = true\n", indent)
	}
	if r := hostOf(m.URL, byHost); r != nil {
		verification(b, indent, of, r)
	}
}

// verification writes how a host, which r is about, is known by its certificate, for
// the directory of another one.
func verification(b *bytes.Buffer, indent string, of, r *config.Registry) {
	if r.CA != "" {
		file := caFile
		if r != of {
			file = "../" + directory(r.Name) + "/" + caFile
		}
		fmt.Fprintf(b, "%sca = %s\n", indent, quote(file))
	}
	if r.InsecureSkipVerify {
		fmt.Fprintf(b, "%sskip_verify = true\n", indent)
	}
}

// hostOf returns the document about the host of a URL, nil if there is none. A port
// that is that of the scheme may be said or not.
func hostOf(address string, byHost map[string]*config.Registry) *config.Registry {
	u, err := url.Parse(address)
	if err != nil { // which has been seen to
		return nil
	}
	if r := byHost[u.Host]; r != nil {
		return r
	}
	usual := map[string]string{"https": "443", "http": "80"}[u.Scheme]
	switch u.Port() {
	case usual:
		return byHost[strings.TrimSuffix(u.Host, ":"+usual)]
	case "":
		return byHost[net.JoinHostPort(u.Hostname(), usual)]
	}
	return nil
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Credentials are those for one host.
type Credentials struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
}

// credentials returns those of all hosts, by the names that they are asked by.
func credentials(c *config.Config) map[string]Credentials {
	all := map[string]Credentials{}
	for _, r := range c.Registries {
		if r.Auth == nil {
			continue
		}
		a := Credentials{Username: r.Auth.Username}
		if !r.Auth.Password.IsZero() {
			a.Password = r.Auth.Password.Reveal()
		}
		if !r.Auth.IdentityToken.IsZero() {
			a.IdentityToken = r.Auth.IdentityToken.Reveal()
		}
		all[r.Name] = a
		if host := answering(r.Name); host != r.Name {
			all[host] = a
		}
	}
	return all
}

// Daemon returns a part of containerd's configuration with all credentials, nil if
// there are none. It is a secret.
func Daemon(c *config.Config) []byte {
	all := credentials(c)
	if len(all) == 0 {
		return nil
	}
	var hosts []string
	for host := range all {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	var b bytes.Buffer
	b.WriteString("# Of the machine configuration.\nversion = 4\n")
	for _, host := range hosts {
		a := all[host]
		fmt.Fprintf(&b, "\n[plugins.'io.containerd.cri.v1.images'.registry.configs.%s.auth]\n", quote(host))
		for _, v := range []struct{ key, value string }{{"username", a.Username}, {"password", a.Password}, {"identitytoken", a.IdentityToken}} {
			if v.value != "" {
				fmt.Fprintf(&b, "  %s = %s\n", v.key, quote(v.value))
			}
		}
	}
	return b.Bytes()
}

// Client returns all credentials by host, as JSON, for what asks containerd to get
// images; nil if there are none. It is a secret.
func Client(c *config.Config) []byte {
	all := credentials(c)
	if len(all) == 0 {
		return nil
	}
	data, err := json.Marshal(all)
	if err != nil { // a map of strings
		return nil
	}
	return append(data, '\n')
}

// Bundle returns the certificates that programs trust: those of the image, and
// those of the configuration after them.
func Bundle(image []byte, c *config.Config) []byte {
	out := slices.Clone(image)
	for _, r := range c.TrustedRoots {
		if n := len(out); n > 0 && out[n-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(out, "\n# "+strings.Map(printable, r.Name)+"\n"...)
		out = append(out, r.Certificates...)
	}
	if n := len(out); n > 0 && out[n-1] != '\n' {
		out = append(out, '\n')
	}
	return out
}

// printable keeps a name on its line.
func printable(r rune) rune {
	if r < ' ' {
		return ' '
	}
	return r
}

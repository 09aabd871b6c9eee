package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// doc returns a document of a kind.
func doc(kind, body string) string {
	return "apiVersion: v1alpha1\nkind: " + kind + "\n" + body
}

// stream returns a stream of documents.
func stream(docs ...string) string { return strings.Join(docs, "---\n") }

func parse(t testing.TB, text string) *Config {
	t.Helper()
	c, err := Parse("m.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParse(t *testing.T) {
	c := parse(t, stream(
		doc("Link", "name: eth1\nmtu: 9000\naddresses: [192.0.2.1/24, 2001:db8::1/64]\nroutes: [{via: 192.0.2.254}]\n"),
		doc("Link", "name: eth0\ndhcp4: true\n"),
		"# nothing\n",
		doc("Kernel", "sysctls: {net.ipv4.ip_forward: 1}\nmodules: [{name: tun}]\n"),
		doc("File", "path: /var/a\nmode: 0600\ncontent: aGVsbG8=\nencoding: base64\n"),
		doc("Service", "name: web\nimage: nginx\nuser: 0\nresources: {memory: 64MiB, cpus: 0.5}\n"),
	))
	if len(c.Links) != 2 || c.Links[0].Name != "eth0" || c.Links[1].Name != "eth1" {
		t.Fatalf("links are %+v", c.Links)
	}
	eth1 := c.Links[1]
	if got := eth1.Routes[0].Destination().String(); got != "0.0.0.0/0" {
		t.Errorf("destination %s", got)
	}
	if eth1.MTU != 9000 || eth1.Addresses[1].String() != "2001:db8::1/64" {
		t.Errorf("eth1 is %+v", eth1)
	}
	want := NewLink("eth0")
	want.DHCP4 = true
	if !reflect.DeepEqual(c.Links[0], want) {
		t.Errorf("eth0 is %+v, want %+v", c.Links[0], want)
	}
	if c.Kernel.Sysctls["net.ipv4.ip_forward"] != "1" {
		t.Errorf("kernel is %+v", c.Kernel)
	}
	if data, err := c.Files[0].Data(); err != nil || string(data) != "hello" || c.Files[0].Mode != 0o600 {
		t.Errorf("file is %+v, %q, %v", c.Files[0], data, err)
	}
	s := c.Services[0]
	if *s.User != 0 || s.Group != nil || s.Resources.Memory != 64<<20 || s.Resources.CPUs != 0.5 || s.Restart != RestartAlways || s.StopTimeout.String() != "10s" {
		t.Errorf("service is %+v", s)
	}
	if c.Hostname != nil || c.API != nil {
		t.Error("documents that are not there")
	}
}

func TestSysctlFile(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":               "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
	} {
		if got := SysctlFile(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// All problems are found at once, in order of position.
func TestAllProblems(t *testing.T) {
	_, err := Parse("m.yaml", []byte(`apiVersion: v1alpha1
kind: Link
name: eth0
mtu: 20
adresses: []
addresses: [192.0.2.1]
routes:
- {to: 10.0.0.1/8, via: 192.0.2.9}
- {to: 2001:db8::/32, via: 192.0.2.9, metric: x}
vlan: {id: 4095}
---
apiVersion: v1
kind: Hostnam
---
kind: Service
name: Web
image: UPPER/case:x
restart: on-failur
environment: {A-B: "x", C: 5}
---
apiVersion: v1alpha1
kind: Link
name: eth0
---
apiVersion: v1alpha1
kind: File
path: /etc/passwd
mode: 4755
`))
	const want = `m.yaml:4:6: mtu: 20, want 68 to 65535
m.yaml:5:1: unknown key "adresses"; did you mean "addresses"?
m.yaml:6:13: addresses[0]: "192.0.2.1", want an address with its prefix length such as 192.0.2.1/24 or 2001:db8::1/64
m.yaml:8:8: routes[0].to: 10.0.0.1/8 has bits of a host, want 10.0.0.0/8
m.yaml:9:28: routes[1].via: 192.0.2.9 is IPv4, the destination 2001:db8::/32 IPv6; want one family
m.yaml:9:47: routes[1].metric: "x", want an integer
m.yaml:10:7: key "link" is missing in vlan
m.yaml:10:12: vlan.id: 4095, want 1 to 4094
m.yaml:12:13: apiVersion: "v1", want v1alpha1
m.yaml:13:7: kind: unknown kind "Hostnam"; did you mean "Hostname"?
m.yaml:15:1: key "apiVersion" is missing
m.yaml:16:7: name: "Web", want a name of at most 63 lower-case letters, digits and '-'
m.yaml:17:8: image: "UPPER/case:x" is no reference of an image: could not parse reference: UPPER/case:x
m.yaml:18:10: restart: unknown value "on-failur"; did you mean "on-failure"?
m.yaml:19:20: environment.A-B: want a name of letters, digits and '_', not a digit first
m.yaml:19:28: environment.C: a secret, want a string, in quotes
m.yaml:23:7: name: Link eth0 again; it is already on line 3
m.yaml:27:7: path: "/etc/passwd", want a path below /var without . and ..
m.yaml:28:7: mode: 4755: want permissions in octal, 0000 to 0777`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, ok := err.(*strictyaml.Error); !ok {
		t.Errorf("the error is a %T", err)
	}
}

func TestLimits(t *testing.T) {
	bomb := "apiVersion: v1alpha1\nkind: Kubelet\nconfig:\n  a: &a [x, x]\n  b: &b [*a, *a]\n  c: [*b, *b]\n"
	var files strings.Builder
	for i := range 1025 {
		files.WriteString(doc("File", fmt.Sprintf("path: /var/%d\n---\n", i)))
	}
	var keys strings.Builder // which the library would compare with each other
	for i := range 60000 {
		fmt.Fprintf(&keys, "  \"k%d \": a\n", i)
	}
	for _, tt := range []struct{ name, in, want string }{
		{"map", doc("Service", "name: a\nimage: a\nenvironment:\n"+keys.String()), "environment.k0 : want a name of letters"},
		{"aliases", bomb, "m.yaml:5:10: config.b[0]: an alias: anchors and aliases are not supported; write the value out"},
		{"size", strings.Repeat("#", 1<<20+1), "m.yaml: 1048577 bytes, want at most 1048576"},
		{"nothing", "# only a comment\n---\n", "m.yaml: no document, want at least one with apiVersion: v1alpha1 and a kind"},
		{"list", "- a\n", "m.yaml:1:1: a list, want a mapping"},
		{"documents", files.String(), "more than 1024 documents"},
		{"problems", strings.Repeat("a: 1\nb: 1\n---\n", 1024), "more than 1000 problems; the others are left out"},
		{"keys", doc("Hostname", "hostname: a\n"+strings.Repeat("x: 1\n", 100000)), "more than 1000 problems; the others are left out"},
		{"depth", doc("Kubelet", "config: {a: "+strings.Repeat("[", 100)+strings.Repeat("]", 100)+"}\n"), "nested more than 64 deep"},
		{"great depth", strings.Repeat("[", 1<<20), "m.yaml:"},
		{"syntax", doc("Hostname", "hostname: [\n"), "m.yaml:4:"},
		{"syntax, later", doc("Hostname", "hostnam: a\n---\nx: [\n"), `unknown key "hostnam"`},
		{"null", doc("Hostname", "hostname:\n"), "m.yaml:3:10: hostname: nothing, want a string, in quotes"},
		{"merge", doc("Hostname", "<<: {hostname: a}\n"), "a key that is not a string"},
		{"tag", doc("Time", "servers: !x [a]\n"), `servers: the tag "!x", want none`},
		{"infinity", doc("Service", "name: a\nimage: a\nresources: {cpus: .inf}\n"), "resources.cpus: .inf, want a number"},
		{"binary", doc("Kubelet", "config: {a: !!binary aGk=}\n"), "want what JSON can say"},
	} {
		_, err := Parse("m.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			text := fmt.Sprint(err)
			t.Errorf("%s: got %s\nwant %s", tt.name, text[:min(len(text), 500)], tt.want)
		}
	}
}

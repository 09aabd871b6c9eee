package config

import (
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	before := parse(t, stream(
		doc("Hostname", "hostname: a\n"),
		doc("Link", "name: eth0\nmtu: 1500\naddresses: [192.0.2.1/24]\n"),
		doc("File", "path: /var/a\ncontent: x\n"),
		doc("Registry", "name: a.example\nauth: {identityToken: x}\n"),
		doc("Kubelet", "config: {featureGates: {a: 1, b: [1, 2]}}\n"),
	))
	after := parse(t, stream(
		doc("Kubelet", "config: {featureGates: {a: '1', b: []}}\nclusterDomain: cluster.local\n"),
		doc("Link", "name: eth0\nmtu: 9000\naddresses: [192.0.2.1/24, 192.0.2.2/24]\nacceptRA: false\n"),
		doc("Time", ""),
		doc("File", "path: /var/a\ncontent: y\n"),
		doc("File", "path: /var/b\ncontent: |\n  y\n"),
		doc("Registry", "name: a.example\nauth: {identityToken: y}\n"),
	))
	var got []string
	for _, c := range Diff(before, after) {
		got = append(got, c.String())
	}
	const want = `- Hostname
~ Link/eth0 mtu: 1500 -> 9000
+ Link/eth0 addresses[1]: 192.0.2.2/24
+ Link/eth0 acceptRA: false
+ Time
~ File//var/a content: (secret) -> (secret)
+ File//var/b
~ Registry/a.example auth.identityToken: (secret) -> (secret)
~ Kubelet config.featureGates.a: 1 -> 1
- Kubelet config.featureGates.b[0]: 1
- Kubelet config.featureGates.b[1]: 2
+ Kubelet config.featureGates.b: []`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	if d := Diff(after, after); len(d) != 0 {
		t.Errorf("differs from itself: %v", d)
	}
}

// Long values and those of several lines are not shown whole.
func TestDiffShort(t *testing.T) {
	a := parse(t, doc("Kubelet", "labels: {a: ''}\n"))
	b := parse(t, doc("Kubelet", "labels: {a: x}\nconfig: {featureGates: {a: "+strings.Repeat("x", 100)+", b: \"1\\n2\"}}\n"))
	got := Diff(a, b)
	if len(got) != 3 || got[0].String() != `~ Kubelet labels.a: ""… (0 bytes) -> x` ||
		got[1].New != `"`+strings.Repeat("x", 64)+`"… (100 bytes)` || got[2].New != `"1\n2"… (3 bytes)` {
		t.Errorf("%q", got)
	}
}

// The digest is of what is said, not of how.
func TestDigest(t *testing.T) {
	digest := func(text string) string {
		d, err := Digest(parse(t, text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a := digest(stream(doc("Link", "name: a\nacceptRA: true\nroutes: []\n"), doc("Link", "name: b\nmac: 52-54-00-00-00-0A\n"), doc("Time", "bootWait: 30s\n")))
	b := digest(stream("# comment\nkind: Time\napiVersion: v1alpha1\n", doc("Link", "mac: '52:54:00:00:00:0a'\nname: b\n"), doc("Link", "name: 'a'\n")))
	if a != b || !strings.HasPrefix(a, "sha256:") || len(a) != 7+64 {
		t.Errorf("%s and %s", a, b)
	}
	one, two := digest(doc("File", "path: /var/a\ncontent: x\n")), digest(doc("File", "path: /var/a\ncontent: y\n"))
	if one == two {
		t.Error("the digest is not of secrets")
	}
}

package config

import (
	"strings"
	"testing"
)

// faults calls f for documents with one fault each, and the problem.
func faults(f func(in, want string)) {
	for kind, table := range map[string][][2]string{
		"Hostname": {
			{"", `1:1: key "hostname" is missing`},
			{"hostname: ''\n", `3:11: hostname: empty, want at least one`},
			{"hostname: a_b\n", `3:11: hostname: "a_b", want labels of letters`},
			{"hostname: 192.0.2.1\n", `is an address, want a name`},
			{"hostname: " + strings.Repeat("a.", 33) + "a\n", `hostname: 67 bytes, want at most 64`},
			{"hostname: 5\n", `hostname: 5, want a string, in quotes`},
			{"hostname: [a]\n", `hostname: a list, want a single value`},
		},
		"Install": {
			{"image: a\n", `1:1: disk: missing, want the path of a disk, or a selector`},
			{"disk: /dev/sda\nselector: size > 1GB\n", `4:11: selector: next to disk, want one of them`},
			{"disk: /etc/../dev/sda\n", `disk: "/etc/../dev/sda", want the path of a device`},
			{"selector: siz > 1\n", `3:11: selector: disk selector, column 1`},
			{"disk: /dev/sda\nkernelArgs: [a, '']\n", `4:17: kernelArgs[1]: "", want an argument`},
			{"disk: /dev/sda\nforce: yes\n", `force: "yes", want true or false`},
		},
		"Volume": {{"name: STATE\n", `name: unknown value "STATE"; known: EPHEMERAL`}},
		"Resolver": {
			{"nameservers: []\n", `nameservers: missing, want name servers, search domains or both`},
			{"nameservers: [1.1]\n", `nameservers[0]: 1.1, want an address such as`},
			{"nameservers: ['']\n", `nameservers[0]: "", want an address such as`},
			{"nameservers: [0.0.0.0]\n", `nameservers[0]: 0.0.0.0, want the address of a server`},
			{"nameservers: [192.0.2.1, 192.0.2.1]\n", `3:26: nameservers[1]: 192.0.2.1 again`},
			{"nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4]\n", `nameservers: 4 items, want at most 3`},
			{"search: [a..b]\n", `search[0]: "a..b", want a domain`},
			{"search: [a, a]\n", `search[1]: "a" again`},
		},
		"Hosts": {
			{"entries: []\n", `entries: empty, want at least one`},
			{"entries: [{names: [a]}]\n", `3:11: key "address" is missing in entries[0]`},
			{"entries: [{address: 192.0.2.1, names: [a b]}]\n", `3:40: entries[0].names[0]: "a b", want a name`},
			{"entries: [{address: 192.0.2.1, names: [a]}, {address: 192.0.2.1, names: [b]}]\n", `entries[1].address: 192.0.2.1 again; it is in entries[0]`},
			{"entries: [{address: 'fe80::1%eth0', names: [a]}]\n", `want an address without zone`},
		},
		"Time": {
			{"servers: ['a:123']\n", `servers[0]: "a:123", want the name or address of a server, without port`},
			{"servers: [a, a]\n", `servers[1]: "a" again`},
			{"disabled: true\nservers: [a]\n", `servers: next to disabled: true`},
			{"bootWait: 30\n", `bootWait: 30: want a duration with a unit`},
			{"bootWait: 2h\n", `bootWait: 2h0m0s, want 0s to 1h0m0s`},
		},
		"Kernel": {
			{"sysctls: {net.ipv4..x: 1}\n", `sysctls.net.ipv4..x: want a name such as net.ipv4.ip_forward`},
			{"sysctls: {proc.x: 1}\n", `3:19: sysctls.proc.x: want a name`},
			{"sysctls: {net.//.//.x: 1}\n", `want a name such as`},
			{"sysctls: {kernel.x: 1, kernel.x: 2}\n", `key "kernel.x" again; it is already on line 3`},
			{"sysctls: {kernel.x: true}\n", `sysctls.kernel.x: true, want a string`},
			{"sysctls: {kernel.x: \"a\\nb\"}\n", `sysctls.kernel.x: "a\nb", want one line of text`},
			{"modules: [{name: a/b.ko}]\n", `modules[0].name: "a/b.ko", want the name of a module`},
			{"modules: [{name: ip-x}, {name: ip_x}]\n", `modules[1].name: module ip_x again`},
			{"modules: [{name: x, parameters: \"a\\nb\"}]\n", `modules[0].parameters: "a\nb", want one line`},
		},
		"File": {
			{"path: /var/../etc/x\n", `path: "/var/../etc/x", want a path below /var`},
			{"path: /var\n", `path: "/var", want a path below /var`},
			{"path: var/x\n", `path: "var/x", want a path below /var`},
			{"path: /var/x\nmode: 04755\n", `mode: 04755: want permissions in octal`},
			{"path: /var/x\nuser: -1\n", `user: -1, want 0 to 4294967294`},
			{"path: /var/x\nencoding: base64\ncontent: '*'\n", `content: not base64: illegal base64 data at input byte 0`},
			{"path: /var/x\nencoding: hex\n", `encoding: unknown value "hex"; known: base64, text`},
			{"path: /var/x\ncontent: (secret)\n", `content: the placeholder of a secret, want the secret itself`},
		},
		"TrustedRoots": {
			{"name: a b\ncertificates: x\n", `name: "a b", want a name`},
			{"name: a\ncertificates: x\n", `certificates: no certificate, want PEM`},
			{"name: a\ncertificates: |\n  -----BEGIN CERTIFICATE-----\n  AAAA\n  -----END CERTIFICATE-----\n", `certificates: certificate 1: x509`},
			{"name: a\ncertificates: |\n  -----BEGIN CERTIFICATE-----\n", `certificates: the PEM block after certificate 0 is damaged`},
			{"name: a\ncertificates: |\n  -----BEGIN EC PRIVATE KEY-----\n  AAAA\n  -----END EC PRIVATE KEY-----\n", `certificates: a private key, want CERTIFICATE blocks only`},
		},
		"Registry": {
			{"name: a/b\n", `name: "a/b", want a host with or without port, or *`},
			{"name: '*'\nauth: {identityToken: x}\n", `auth: credentials for any host`},
			{"name: a.example\nauth: {username: x}\n", `auth: want user name and password, or an identity token`},
			{"name: a.example\nauth: {username: x, password: y, identityToken: z}\n", `auth: an identity token next to`},
			{"name: a.example\nauth: {username: x, password: 5}\n", `auth.password: a secret, want a string, in quotes`},
			{"name: a.example\nmirrors: [{url: ftp://x}]\n", `mirrors[0].url: "ftp://x", want a URL such as`},
			{"name: a.example\nmirrors: [{url: 'https://u:p@x'}]\n", `mirrors[0].url: has credentials, want them as auth`},
			{"name: a.example\nmirrors: [{url: 'https://x'}, {url: 'https://x'}]\n", `mirrors[1].url: "https://x" again`},
			{"name: a.example\nnoFallback: true\n", `noFallback: without mirrors there is nothing else to ask`},
		},
		"Service": {
			{"name: a\nimage: ':'\n", `image: ":" is no reference of an image`},
			{"name: a\nimage: a\nworkingDir: b\n", `workingDir: "b", want an absolute path`},
			{"name: a\nimage: a\nargs: [\"\\0\"]\n", `args[0]: "\x00" has a zero byte`},
			{"name: a\nimage: a\nmounts: [{source: /var/x}]\n", `key "target" is missing in mounts[0]`},
			{"name: a\nimage: a\nmounts: [{source: /var/x, target: /}]\n", `mounts[0].target: "/", want an absolute path`},
			{"name: a\nimage: a\nmounts: [{target: /x}]\n", `mounts[0].source: "", want an absolute path`},
			{"name: a\nimage: a\nmounts: [{source: /a, target: /x}, {source: /b, target: /x}]\n", `mounts[1].target: "/x" again`},
			{"name: a\nimage: a\nmounts: [{type: tmpfs, source: /a, target: /x}]\n", `mounts[0].source: "/a", want it for bind only`},
			{"name: a\nimage: a\nmounts: [{source: /a, target: /x, size: 1MiB}]\n", `mounts[0].size: 1MiB, want it for tmpfs only`},
			{"name: a\nimage: a\nmounts: [{type: tmpfs, target: /x, size: 1Mi}]\n", `mounts[0].size: "1Mi": size "1Mi": want a whole number with a unit`},
			{"name: a\nimage: a\nports: [{host: 1, container: 1}]\n", `ports: network is host, want ports for bridge only`},
			{"name: a\nimage: a\nnetwork: bridge\nports: [{host: 0, container: 1}]\n", `ports[0].host: 0, want 1 to 65535`},
			{"name: a\nimage: a\ncapabilities: [NET_ADMIN]\n", `capabilities[0]: unknown capability "NET_ADMIN"`},
			{"name: a\nimage: a\ncapabilities: [CAP_KILL, CAP_KILL]\n", `capabilities[1]: CAP_KILL again`},
			{"name: a\nimage: a\nprivileged: true\ncapabilities: [CAP_KILL]\n", `capabilities: next to privileged: true`},
			{"name: a\nimage: a\nresources: {memory: 1MiB}\n", `resources.memory: 1MiB, want at least 4MiB`},
			{"name: a\nimage: a\nresources: {cpus: -1}\n", `resources.cpus: -1, want 0 to 4096`},
			{"name: a\nimage: a\nwaitFor: {services: [a]}\n", `waitFor.services[0]: the service itself`},
			{"name: a\nimage: a\nwaitFor: {paths: [x]}\n", `waitFor.paths[0]: "x", want an absolute path`},
			{"name: a\nimage: a\nuser: -5\n", `user: -5, want 0 to 4294967294`},
		},
		"Kubelet": {
			{"nodeName: A\n", `nodeName: "A", want a DNS subdomain in lower case`},
			{"nodeSubnets: [10.1.1.1/8]\n", `nodeSubnets[0]: 10.1.1.1/8, want a network such as 10.0.0.0/8`},
			{"labels: {'a b': c}\n", `labels.a b: "a b" is no name of a label`},
			{"labels: {a: '-'}\n", `labels.a: "-", want at most 63`},
			{"labels: {a: 1}\n", `labels.a: 1, want a string, in quotes`},
			{"taints: [{key: a, effect: NoRun}]\n", `taints[0].effect: unknown value "NoRun"`},
			{"taints: [{key: a, effect: NoExecute}, {key: a, effect: NoExecute}]\n", `taints[1].key: "a" with effect NoExecute again`},
			{"clusterDNS: [224.0.0.1]\n", `clusterDNS[0]: 224.0.0.1, want the address of a service`},
			{"clusterDomain: A\n", `clusterDomain: "A", want a domain in lower case`},
			{"config: {kind: Pod}\n", `config.kind: want KubeletConfiguration, or none`},
			{"config: {maxPod: 50}\n", `config.maxPod: unknown field; did you mean "maxPods"?`},
			{"config: {logging: {x: y}, evictionHard: {a: b}, memorySwap: {a: b}}\n", `config.memorySwap.a: unknown field; known: swapBehavior`},
			{"config: {reservedMemory: [{numa: 1}]}\n", `config.reservedMemory[0].numa: unknown field`},
			{"config: {readOnlyPort: 10255}\n", `config.readOnlyPort: is kiln's own, want none`},
			{"sandboxImage: 'a b'\n", `sandboxImage: "a b" is no reference of an image`},
			{"config: {a: 1, a: 2}\n", `key "a" again; it is already on line 3`},
			{"config: {1: 2}\n", `a key in config that is not a string`},
			{"config: {a: .nan}\n", `config.a: ".nan", want what JSON can say`},
		},
		"ControlPlane": {
			{"cluster: {kind: InitConfiguration}\n", `cluster.kind: want ClusterConfiguration, or none`},
			{"init: {apiVersion: kubeadm.k8s.io/v1beta3}\n", `init.apiVersion: want kubeadm.k8s.io/v1beta4, or none`},
			{"init: {nodeRegistration: {name: a}}\n", `init.nodeRegistration.name: want the Kubelet's nodeName instead`},
		},
		"API": {
			{"issuer: {certificate: x}\nclientCAs: y\n", `key "key" is missing in issuer`},
			{"issuer: {certificate: x, key: y}\nclientCAs: y\nport: 70000\n", `port: 70000, want 1 to 65535`},
			{"issuer: {certificate: x, key: y}\nclientCAs: y\nnames: ['a:1']\n", `names[0]: "a:1", want a name or an address, without port`},
		},
	} {
		for _, tt := range table {
			f(doc(kind, tt[0]), tt[1])
		}
	}
}

func TestFaults(t *testing.T) {
	faults(func(in, want string) {
		_, err := Parse("m.yaml", []byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", in, err, want)
		}
	})
}

// What documents have to do with each other.
func TestCross(t *testing.T) {
	link := func(name, body string) string { return doc("Link", "name: "+name+"\n"+body) }
	pod := func(name, pod string) string {
		return doc("StaticPod", "name: "+name+"\npod: {apiVersion: v1, kind: Pod, metadata: {name: "+pod+"}, spec: {containers: [{name: a}]}}\n")
	}
	service := func(name, body string) string { return doc("Service", "name: "+name+"\nimage: x\n"+body) }
	for _, tt := range []struct{ name, in, want string }{
		{"twice", stream(doc("Time", ""), doc("Time", "")), "m.yaml:4:1: Time again; it is already on line 1"},
		{"bond without member", stream(link("eth0", ""), link("bond0", "bond: {members: [eth1]}\n")), `bond.members[0]: there is no link "eth1"; did you mean "eth0"?`},
		{"member of two", stream(link("e", ""), link("b0", "bond: {members: [e]}\n"), link("b1", "bridge: {members: [e]}\n")), `bridge.members[0]: "e" is a member of b0 already`},
		{"member twice", stream(link("e", ""), link("b0", "bond: {members: [e, e]}\n")), `bond.members[1]: "e" again`},
		{"member with addresses", stream(link("e", "dhcp4: true\n"), link("b0", "bond: {members: [e]}\n")), `"e" has addresses, routes or DHCP of its own, want them on b0`},
		{"bond of bonds", stream(link("e", ""), link("b0", "bond: {members: [e]}\n"), link("b1", "bond: {members: [b0]}\n")), `"b0" is a bond itself`},
		{"bridge of bridges", stream(link("b0", "bridge: {}\n"), link("b1", "bridge: {members: [b0]}\n")), `"b0" is a bridge, want other links`},
		{"VLAN of nothing", link("v", "vlan: {id: 5, link: e}\n"), `vlan.link: there is no link "e"`},
		{"VLAN of itself", link("v", "vlan: {id: 5, link: v}\n"), `vlan.link: the link itself, want the one below`},
		{"VLAN twice", stream(link("e", ""), link("v", "vlan: {id: 5, link: e}\n"), link("w", "vlan: {id: 5, link: e}\n")), `vlan.id: VLAN 5 of e is on v already`},
		{"VLAN with more", stream(link("e", "mtu: 1500\n"), link("v", "mtu: 9000\nvlan: {id: 5, link: e}\n")), `mtu: 9000, want at most 1500, that of e`},
		{"circle", stream(link("a", "vlan: {id: 5, link: b}\n"), link("b", "vlan: {id: 6, link: a}\n")), `m.yaml:3:7: name: the link is below itself: a > b > a`},
		{"two kinds", link("a", "bond: {members: [b]}\nbridge: {}\n"), `more than one of bond, vlan, bridge and dummy`},
		{"match of a bridge", link("a", "bridge: {}\nmatch: {driver: x}\n"), `match: next to bridge`},
		{"match of nothing", link("a", "match: {}\n"), `match: empty, want mac, driver or path`},
		{"same match", stream(link("a", "match: {mac: '52:54:00:00:00:01'}\n"), link("b", "match: {mac: 52-54-00-00-00-01}\n")), `match.mac: 52:54:00:00:00:01 is on a already`},
		{"group address", link("a", "mac: '01:00:00:00:00:01'\n"), `is the address of a group`},
		{"bad hardware address", link("a", "mac: '52:54'\n"), `want a hardware address such as 52:54:00:12:34:56`},
		{"same address", stream(link("a", "addresses: [192.0.2.1/24]\n"), link("b", "addresses: [192.0.2.1/25]\n")), `addresses[0]: 192.0.2.1 is on a already`},
		{"network", link("a", "addresses: [192.0.2.0/24]\n"), `192.0.2.0/24 is the network, want the address of the node in it`},
		{"broadcast", link("a", "addresses: [192.0.2.255/24]\n"), `is the broadcast address`},
		{"multicast", link("a", "addresses: [ff02::1/64]\n"), `want an address that a machine can have`},
		{"small for IPv6", link("a", "mtu: 1000\naddresses: [2001:db8::1/64]\n"), `mtu: 1000, want at least 1280 for IPv6`},
		{"two default routes", stream(link("a", "dhcp4: true\nroutes: [{via: 192.0.2.1}]\n"), link("b", "dhcp4: true\nroutes: [{to: 0.0.0.0/0, via: 192.0.2.1}]\n")), `routes[0]: a route to 0.0.0.0/0 with metric 0 is on a already`},
		{"no route", link("a", "routes: [{metric: 5}]\n"), `routes[0]: neither to nor via`},
		{"route to itself", link("a", "addresses: [192.0.2.1/24]\nroutes: [{via: 192.0.2.1}]\n"), `is an address of the link itself`},
		{"unreachable gateway", link("a", "acceptRA: false\nroutes: [{via: '2001:db8::1'}]\n"), `2001:db8::1 is in no network of the link's addresses`},
		{"other source", link("a", "routes: [{to: 10.0.0.0/8, source: '2001:db8::1'}]\n"), `routes[0].source: 2001:db8::1 is IPv6, the destination 10.0.0.0/8 IPv4`},
		{"long name", link("a123456789012345", ""), `name: "a123456789012345", want the name of an interface: 1 to 15 bytes`},
		{"slash", link("a/b", ""), `want the name of an interface`},
		{"primary", stream(link("e", ""), link("b0", "bond: {members: [e], primary: f}\n")), `bond.primary: "f" is no member`},
		{"primary of LACP", stream(link("e", ""), link("b0", "bond: {members: [e], primary: e, mode: 802.3ad}\n")), `bond.primary: mode is 802.3ad, want it for active-backup, balance-tlb, balance-alb only`},
		{"delay", stream(link("e", ""), link("b0", "bond: {members: [e], upDelay: 150ms}\n")), `bond.upDelay: 150ms, want a multiple of miiMonitor, 100ms`},
		{"too few links", stream(link("e", ""), link("b0", "bond: {members: [e], mode: 802.3ad, minLinks: 2}\n")), `bond.minLinks: 2 of 1 members`},
		{"file below file", stream(doc("File", "path: /var/a\n"), doc("File", "path: /var/a/b/c\n")), `path: "/var/a/b/c" is below "/var/a", which is a File itself`},
		{"port twice", stream(service("a", "network: bridge\nports: [{host: 80, container: 1}]\n"), service("b", "network: bridge\nports: [{host: 80, container: 2}]\n")), `ports[0].host: 80/tcp is service a's already`},
		{"services in a circle", stream(service("a", "waitFor: {services: [b]}\n"), service("b", "waitFor: {services: [a]}\n")), `waitFor.services: the service waits for itself: a > b > a`},
		{"pod without kubelet", pod("a", "x"), `a static pod without a Kubelet document`},
		{"control plane without kubelet", doc("ControlPlane", ""), "a control plane without a Kubelet document, want one"},
		{"pod twice", stream(doc("Kubelet", ""), pod("a", "x"), pod("b", "x")), `pod.metadata.name: pod default/x is that of a already`},
		{"no pod", stream(doc("Kubelet", ""), doc("StaticPod", "name: a\npod: {kind: Job}\n")), "pod.apiVersion: want v1"},
	} {
		_, err := Parse("m.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
	parse(t, stream(link("e", ""), link("f", ""), link("b0", "bond: {members: [e, f]}\n"), link("br", "bridge: {members: [b0]}\naddresses: [192.0.2.1/24]\n"),
		link("v", "vlan: {id: 5, link: br}\nroutes: [{to: 10.0.0.0/8, via: 203.0.113.1, onLink: true}]\n"), link("w", "vlan: {id: 5, link: br, protocol: 802.1ad}\n")))
}

package kubelet

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/config"
)

func parse(t *testing.T, documents ...string) *config.Config {
	t.Helper()
	var text strings.Builder
	for _, d := range documents {
		text.WriteString("---\napiVersion: v1alpha1\nkind: " + d + "\n")
	}
	c, err := config.Parse("test.yaml", []byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func addresses(list ...string) []netip.Addr {
	var a []netip.Addr
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func object(t *testing.T, data []byte, err error) map[string]any {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// at returns what is at a path of keys.
func at(v any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// A kubelet without a cluster has no server.
func TestStandalone(t *testing.T) {
	c := parse(t, "Kubelet\nconfig: {maxPods: 50, seccompDefault: false}\nclusterDomain: example.org\nlabels: {b: '2', a: '1'}")
	n := Node{Hostname: "Node1", Addresses: addresses("192.0.2.1")}
	data, err := Configuration(c, n)
	v := object(t, data, err)
	for path, want := range map[string]any{
		"enableServer": false, "readOnlyPort": 0.0, "healthzBindAddress": "127.0.0.1", "authentication.anonymous.enabled": false,
		"authentication.webhook.enabled": false, "maxPods": 50.0, "seccompDefault": false, "clusterDomain": "example.org",
		"staticPodPath": "/etc/kubernetes/manifests", "cgroupDriver": "cgroupfs", "clusterDNS": nil, "authentication.x509": nil,
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
	} {
		if got := at(v, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	want := []string{"--config=/run/x", "--hostname-override=node1", "--node-ip=192.0.2.1", "--node-labels=a=1,b=2"}
	if got := Args(c, n, "/run/x"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestCluster(t *testing.T) {
	c := parse(t, "Kubelet\nnodeName: a\nnodeSubnets: [198.51.100.0/24]\nclusterDNS: [10.96.0.10]\nbootstrapKubeconfig: x\n"+
		"taints: [{key: k, value: v, effect: NoSchedule}]")
	n := Node{Hostname: "node1", Addresses: addresses("192.0.2.1", "198.51.100.7")}
	data, err := Configuration(c, n)
	v := object(t, data, err)
	for path, want := range map[string]any{
		"enableServer": true, "readOnlyPort": 0.0, "authentication.anonymous.enabled": false, "authentication.webhook.enabled": true,
		"authentication.x509.clientCAFile": "/etc/kubernetes/pki/ca.crt", "authorization.mode": "Webhook", "rotateCertificates": true,
	} {
		if got := at(v, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if dns, _ := v["clusterDNS"].([]any); len(dns) != 1 || dns[0] != "10.96.0.10" {
		t.Errorf("clusterDNS: %v", dns)
	}
	if taints, _ := v["registerWithTaints"].([]any); len(taints) != 1 || at(taints[0], "effect") != "NoSchedule" {
		t.Errorf("taints: %v", taints)
	}
	want := []string{"--config=f", "--hostname-override=a", "--node-ip=198.51.100.7", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf"}
	if got := Args(c, n, "f"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if a := Address(c.Kubelet, addresses("192.0.2.1")); a.IsValid() {
		t.Errorf("an address in no network of the node's: %v", a)
	}
	// One that has joined stays in its cluster when the token is taken away.
	if alone := parse(t, "Kubelet"); InCluster(alone, Node{}) || !InCluster(alone, Node{Joined: true}) {
		t.Error("who has joined is in no cluster, or the other way round")
	}
}

// Pods ask the server that kubeadm makes for names.
func TestClusterDNS(t *testing.T) {
	for networks, want := range map[string]string{
		"{}": "10.96.0.10", "{serviceSubnet: 10.0.0.0/16}": "10.0.0.10", "{serviceSubnet: 'fd00::/108,10.0.0.0/16'}": "fd00::a",
		"{serviceSubnet: 10.0.0.0/30}": "networking.serviceSubnet 10.0.0.0/30: want at least 16 addresses",
		"{serviceSubnet: x}":           `networking.serviceSubnet: netip.ParsePrefix("x"): no '/'`,
	} {
		c := parse(t, "Kubelet", "ControlPlane\ncluster: {networking: "+networks+"}")
		data, err := Configuration(c, Node{})
		if err != nil {
			if err.Error() != want {
				t.Errorf("%s: %v", networks, err)
			}
			continue
		}
		if dns, _ := object(t, data, nil)["clusterDNS"].([]any); len(dns) != 1 || dns[0] != want {
			t.Errorf("%s: %v, want %s", networks, dns, want)
		}
	}
}

func TestInit(t *testing.T) {
	c := parse(t, "Kubelet\nclusterDomain: example.org", "ControlPlane\ncluster: {imageRepository: a.example/k, networking: {podSubnet: 10.1.0.0/16}}\n"+
		"init: {localAPIEndpoint: {bindPort: 443}, nodeRegistration: {taints: [], ignorePreflightErrors: [NumCPU]}, skipPhases: [addon]}")
	data, err := Init(c, Node{Hostname: "node1", Addresses: addresses("192.0.2.1")}, "v1.36.3")
	if err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(string(data), "\n---\n")
	cluster, initial := object(t, []byte(first), nil), object(t, []byte(second), nil)
	for path, want := range map[string]any{
		"kind": "ClusterConfiguration", "apiVersion": "kubeadm.k8s.io/v1beta4", "kubernetesVersion": "v1.36.3", "imageRepository": "a.example/k",
		"networking.podSubnet": "10.1.0.0/16", "networking.dnsDomain": "example.org",
	} {
		if got := at(cluster, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	for path, want := range map[string]any{
		"kind": "InitConfiguration", "localAPIEndpoint.advertiseAddress": "192.0.2.1", "localAPIEndpoint.bindPort": 443.0,
		"nodeRegistration.name": "node1", "nodeRegistration.criSocket": "unix:///run/containerd/containerd.sock",
	} {
		if got := at(initial, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	ignored, _ := at(initial, "nodeRegistration.ignorePreflightErrors").([]any)
	if !slices.Contains(ignored, any("NumCPU")) || !slices.Contains(ignored, any("FileExisting-cp")) || slices.Contains(ignored, any("Swap")) {
		t.Errorf("ignored: %v", ignored)
	}
	if taints, ok := at(initial, "nodeRegistration.taints").([]any); !ok || len(taints) != 0 {
		t.Error("the taints are not those of the configuration")
	}
}

func TestPods(t *testing.T) {
	c := parse(t, "Kubelet", "StaticPod\nname: a\npod: {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: c}]}}")
	files, err := Pods(c.StaticPods)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	for name, data := range files {
		if name != "kiln-a.json" || !IsPod(name) || at(object(t, data, nil), "metadata.name") != "b" {
			t.Errorf("%s: %s", name, data)
		}
	}
	if IsPod("etcd.yaml") {
		t.Error("a file of kubeadm's is taken for one from the configuration")
	}
}

func TestCA(t *testing.T) {
	const kubeconfig = `apiVersion: v1
kind: Config
current-context: x
contexts:
- {name: y, context: {cluster: other, user: u}}
- {name: x, context: {cluster: mine, user: u}}
clusters:
- {name: other, cluster: {certificate-authority-data: b3RoZXI=}}
- {name: mine, cluster: {server: "https://192.0.2.1:6443", certificate-authority-data: CA}}
`
	mine := base64.StdEncoding.EncodeToString([]byte("mine"))
	if got, err := CA([]byte(strings.Replace(kubeconfig, "CA}", mine+"}", 1))); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := CA([]byte(strings.Replace(kubeconfig, "CA}", "''}", 1))); !errors.Is(err, ErrKubeconfig) {
		t.Errorf("without a certificate: %v", err)
	}
	for text, want := range map[string]string{
		"secret: [": "kubeconfig: not YAML",
		strings.Replace(kubeconfig, "CA}", "'*'}", 1): "kubeconfig: certificate-authority-data: illegal base64",
	} {
		if _, err := CA([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestRuntime(t *testing.T) {
	if got := Runtime(parse(t, "Kubelet").Kubelet); got != "" {
		t.Errorf("%s", got)
	}
	if got := Runtime(parse(t, "Kubelet\nsandboxImage: a.example/pause:1").Kubelet); !strings.Contains(got, "  sandbox = 'a.example/pause:1'\n") {
		t.Errorf("%s", got)
	}
}

// Package kubelet turns what the machine configuration says of Kubernetes into
// what its programs are started with: the kubelet's KubeletConfiguration
// (kubelet.config.k8s.io/v1beta1), its arguments and static pods, and, for the
// first machine of a cluster, kubeadm's InitConfiguration and
// ClusterConfiguration (kubeadm.k8s.io/v1beta4).
//
// All of these are JSON, which is YAML as well. It decides and writes nothing: see
// machine/node for that.
//
// A kubelet without a cluster runs static pods, and nobody can talk to it: its
// server is off, and what says that it is healthy listens on the loopback
// interface. In a cluster it serves the API server, which it asks who may do what.
package kubelet

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/machine/config"
)

// Where the parts are, on a node.
const (
	// Dir is /etc/kubernetes, as kubeadm and others know it.
	Dir         = "/etc/kubernetes"
	ManifestDir = Dir + "/manifests"
	Kubeconfig  = Dir + "/kubelet.conf"
	AdminConfig = Dir + "/admin.conf"
	Bootstrap   = Dir + "/bootstrap-kubelet.conf"
	CAFile      = Dir + "/pki/ca.crt"

	// ServerCertificate is that of the API server on this node.
	ServerCertificate = Dir + "/pki/apiserver.crt"

	RuntimeURL   = "unix:///run/containerd/containerd.sock"
	HealthURL    = "http://127.0.0.1:10248/healthz"
	PluginDir    = "/var/lib/kubelet/volumeplugins"
	defaultCIDR  = "10.96.0.0/12" // of services, if nobody says otherwise
	configFormat = "kubelet.config.k8s.io/v1beta1"
)

// A Node is what is known of the machine.
type Node struct {
	Hostname  string
	Addresses []netip.Addr // the first that the configuration does not exclude is the node's
	Joined    bool         // it has a kubeconfig
}

// InCluster reports whether the kubelet of c belongs to a cluster, or is to.
func InCluster(c *config.Config, n Node) bool {
	return n.Joined || c.ControlPlane != nil || c.Kubelet.BootstrapKubeconfig.Reveal() != ""
}

// Address returns that of the node in its cluster; one that is not valid if there
// is none yet.
func Address(k *config.Kubelet, addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if len(k.NodeSubnets) == 0 || slices.ContainsFunc(k.NodeSubnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return a
		}
	}
	return netip.Addr{}
}

// Name returns the name of the node in its cluster.
func Name(k *config.Kubelet, hostname string) string {
	if k.NodeName != "" {
		return k.NodeName
	}
	return strings.ToLower(hostname)
}

// Args returns the arguments of the kubelet, whose configuration is in the file.
func Args(c *config.Config, n Node, file string) []string {
	k := c.Kubelet
	args := []string{"--config=" + file, "--hostname-override=" + Name(k, n.Hostname)}
	if a := Address(k, n.Addresses); a.IsValid() {
		args = append(args, "--node-ip="+a.String())
	}
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(k.Labels)) {
		labels = append(labels, key+"="+k.Labels[key])
	}
	if labels != nil {
		args = append(args, "--node-labels="+strings.Join(labels, ","))
	}
	if InCluster(c, n) {
		args = append(args, "--kubeconfig="+Kubeconfig)
	}
	if k.BootstrapKubeconfig.Reveal() != "" {
		args = append(args, "--bootstrap-kubeconfig="+Bootstrap)
	}
	return args
}

// Configuration returns the KubeletConfiguration.
func Configuration(c *config.Config, n Node) ([]byte, error) {
	k := c.Kubelet
	cluster := InCluster(c, n)
	object := map[string]any{
		"seccompDefault":     true,
		"rotateCertificates": true,
	}
	maps.Copy(object, k.Config)
	maps.Copy(object, map[string]any{
		"apiVersion":               configFormat,
		"kind":                     "KubeletConfiguration",
		"staticPodPath":            ManifestDir,
		"containerRuntimeEndpoint": RuntimeURL,
		"cgroupDriver":             "cgroupfs", // there is no systemd to ask
		"volumePluginDir":          PluginDir,  // the default is in /usr
		"clusterDomain":            k.ClusterDomain,
		"enableServer":             cluster,
		"readOnlyPort":             0,
		"healthzBindAddress":       "127.0.0.1",
		"healthzPort":              10248,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": cluster},
		},
		"authorization": map[string]any{"mode": "AlwaysAllow"}, // nobody is authenticated
	})
	if cluster {
		object["authorization"] = map[string]any{"mode": "Webhook"}
		object["authentication"].(map[string]any)["x509"] = map[string]any{"clientCAFile": CAFile}
	}
	dns, err := clusterDNS(c)
	if err != nil {
		return nil, err
	}
	if len(dns) > 0 {
		object["clusterDNS"] = dns
	}
	var taints []map[string]any
	for _, t := range k.Taints {
		taints = append(taints, map[string]any{"key": t.Key, "value": t.Value, "effect": string(t.Effect)})
	}
	if taints != nil {
		object["registerWithTaints"] = taints
	}
	return json.MarshalIndent(object, "", " ")
}

// clusterDNS returns the addresses that pods ask for names: with a control plane
// of its own kubeadm gives the tenth address of services to the cluster's server.
func clusterDNS(c *config.Config) ([]netip.Addr, error) {
	if len(c.Kubelet.ClusterDNS) > 0 || c.ControlPlane == nil {
		return c.Kubelet.ClusterDNS, nil
	}
	subnets := defaultCIDR
	if networking, ok := c.ControlPlane.Cluster["networking"].(map[string]any); ok {
		if s, ok := networking["serviceSubnet"].(string); ok && s != "" {
			subnets = s
		}
	}
	first, _, _ := strings.Cut(subnets, ",")
	p, err := netip.ParsePrefix(first)
	if err != nil {
		return nil, fmt.Errorf("networking.serviceSubnet: %w", err)
	}
	a := p.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	if !p.Contains(a) {
		return nil, fmt.Errorf("networking.serviceSubnet %v: want at least 16 addresses", p)
	}
	return []netip.Addr{a}, nil
}

// prefix is what the names of the files of static pods from the configuration
// begin with: others may have files there as well.
const prefix = "kiln-"

// Pods returns the files of the static pods, by name.
func Pods(pods []config.StaticPod) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, p := range pods {
		data, err := json.MarshalIndent(p.Pod, "", " ")
		if err != nil {
			return nil, fmt.Errorf("static pod %s: %w", p.Name, err)
		}
		files[prefix+p.Name+".json"] = data
	}
	return files, nil
}

// IsPod reports whether a file of that name is one of Pods, now or formerly.
func IsPod(name string) bool { return strings.HasPrefix(name, prefix) }

// ErrKubeconfig is the error for a kubeconfig that has no certificate of the
// cluster in it.
var ErrKubeconfig = errors.New("no certificate-authority-data of a cluster")

// CA returns the certificate of the cluster that a kubeconfig is for, in PEM.
func CA(kubeconfig []byte) ([]byte, error) {
	var v struct {
		Current  string `yaml:"current-context"`
		Contexts []struct {
			Name    string
			Context struct{ Cluster string }
		}
		Clusters []struct {
			Name    string
			Cluster struct {
				CA string `yaml:"certificate-authority-data"`
			}
		}
	}
	if err := yaml.Load(kubeconfig, &v); err != nil {
		return nil, errors.New("kubeconfig: not YAML") // the error would have parts of it
	}
	cluster := ""
	for _, c := range v.Contexts {
		if c.Name == v.Current {
			cluster = c.Context.Cluster
		}
	}
	for _, c := range v.Clusters {
		if (cluster == "" || c.Name == cluster) && c.Cluster.CA != "" {
			pem, err := base64.StdEncoding.DecodeString(c.Cluster.CA)
			if err != nil {
				return nil, fmt.Errorf("kubeconfig: certificate-authority-data: %w", err)
			}
			return pem, nil
		}
	}
	return nil, fmt.Errorf("kubeconfig: %w", ErrKubeconfig)
}

// Runtime returns what containerd's configuration, in TOML, has of the kubelet's:
// the image of the pods' sandboxes. It is empty if nothing is said.
func Runtime(k *config.Kubelet) string {
	if k.SandboxImage == "" {
		return ""
	}
	// A reference has nothing that TOML's quotes would not take as it is.
	return fmt.Sprintf("[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = '%s'\n", k.SandboxImage)
}

package kubelet

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"time"

	"github.com/kilnhq/kiln/machine/config"
)

const kubeadmFormat = "kubeadm.k8s.io/v1beta4"

// ignored are kubeadm's checks that mean nothing here: what a former attempt has
// left is no obstacle to the next one; there is nothing that installs programs, and
// no file with the kernel's configuration.
func ignored() []any {
	return []any{
		"DirAvailable--etc-kubernetes-manifests", "DirAvailable--var-lib-etcd",
		"FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml", "FileAvailable--etc-kubernetes-manifests-kube-controller-manager.yaml",
		"FileAvailable--etc-kubernetes-manifests-kube-scheduler.yaml", "FileAvailable--etc-kubernetes-manifests-etcd.yaml",
		"FileExisting-cp", "FileExisting-losetup",
		"Port-6443", "Port-10250", "Port-10257", "Port-10259", "Port-2379", "Port-2380",
		"SystemVerification",
	}
}

// Init returns what 'kubeadm init' is given: a ClusterConfiguration and an
// InitConfiguration. version is that of the programs on the node, such as v1.36.3;
// without it kubeadm asks the Internet for the newest.
func Init(c *config.Config, n Node, version string) ([]byte, error) {
	cluster := map[string]any{"kubernetesVersion": version}
	maps.Copy(cluster, c.ControlPlane.Cluster)
	networking := map[string]any{"dnsDomain": c.Kubelet.ClusterDomain}
	merge(networking, cluster["networking"])
	cluster["networking"] = networking
	cluster["apiVersion"], cluster["kind"] = kubeadmFormat, "ClusterConfiguration"

	initial := map[string]any{}
	maps.Copy(initial, c.ControlPlane.Init)
	endpoint := map[string]any{}
	if a := Address(c.Kubelet, n.Addresses); a.IsValid() {
		endpoint["advertiseAddress"] = a.String()
	}
	merge(endpoint, initial["localAPIEndpoint"])
	registration := map[string]any{}
	merge(registration, initial["nodeRegistration"])
	registration["criSocket"], registration["name"] = RuntimeURL, Name(c.Kubelet, n.Hostname)
	if more, ok := registration["ignorePreflightErrors"].([]any); ok {
		registration["ignorePreflightErrors"] = append(ignored(), more...)
	} else {
		registration["ignorePreflightErrors"] = ignored()
	}
	initial["localAPIEndpoint"], initial["nodeRegistration"] = endpoint, registration
	initial["apiVersion"], initial["kind"] = kubeadmFormat, "InitConfiguration"

	var parts [][]byte
	for _, o := range []map[string]any{cluster, initial} {
		data, err := json.MarshalIndent(o, "", " ")
		if err != nil {
			return nil, err
		}
		parts = append(parts, data)
	}
	return bytes.Join(parts, []byte("\n---\n")), nil
}

// merge copies what v has, if it is an object, into o.
func merge(o map[string]any, v any) {
	if v, ok := v.(map[string]any); ok {
		maps.Copy(o, v)
	}
}

// IsOld reports whether half of the time that a certificate in PEM is valid is over.
func IsOld(certificate []byte, now time.Time) (bool, error) {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return false, errors.New("certificate of the API server: not PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false, err
	}
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)), nil
}

package config

import (
	_ "embed"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

func (k *Kubelet) check(doc *strictyaml.Document) {
	if k.NodeName != "" && !isSubdomain(k.NodeName) {
		doc.Add("nodeName", "%q, want a DNS subdomain in lower case", k.NodeName)
	}
	for i, p := range k.NodeSubnets {
		if p != p.Masked() || p.Addr().Is4In6() {
			doc.Add(item("nodeSubnets", i), "%v, want a network such as %v", p, p.Masked())
		}
	}
	for _, key := range sortedKeys(k.Labels) {
		switch {
		case !isQualified(key):
			doc.Add("labels."+key, "%q is no name of a label", key)
		case !isLabelValue(k.Labels[key]):
			doc.Add("labels."+key, "%q, want at most 63 letters, digits, '-', '_' and '.'", k.Labels[key])
		}
	}
	type taint struct {
		key    string
		effect TaintEffect
	}
	seen := map[taint]bool{}
	for i, t := range k.Taints {
		where := item("taints", i)
		switch {
		case !isQualified(t.Key):
			doc.Add(where+".key", "%q is no key of a taint", t.Key)
		case seen[taint{t.Key, t.Effect}]:
			doc.Add(where+".key", "%q with effect %s again", t.Key, t.Effect)
		}
		seen[taint{t.Key, t.Effect}] = true
		if !isLabelValue(t.Value) {
			doc.Add(where+".value", "%q, want at most 63 letters, digits, '-', '_' and '.'", t.Value)
		}
	}
	for i, a := range k.ClusterDNS {
		if !isUnicast(a) || a.Zone() != "" {
			doc.Add(item("clusterDNS", i), "%v, want the address of a service", a)
		}
	}
	if !isSubdomain(k.ClusterDomain) {
		doc.Add("clusterDomain", "%q, want a domain in lower case", k.ClusterDomain)
	}
	if k.SandboxImage != "" {
		checkImage(doc, "sandboxImage", k.SandboxImage)
	}
	checkEnvelope(doc, "config", k.Config, "kubelet.config.k8s.io/v1beta1", "KubeletConfiguration")
	checkFields(doc, "config", k.Config, kubeletFields())
	for _, key := range sortedKeys(k.Config) {
		if slices.Contains(ownKubeletFields(), key) {
			doc.Add("config."+key, "is kiln's own, want none")
		}
	}
}

// ownKubeletFields are those that follow from the rest, and those that decide who
// may talk to the kubelet.
func ownKubeletFields() []string {
	return []string{
		"authentication", "authorization", "cgroupDriver", "clusterDNS", "clusterDomain", "containerRuntimeEndpoint",
		"enableServer", "healthzBindAddress", "healthzPort", "imageServiceEndpoint", "podLogsDir", "readOnlyPort",
		"registerWithTaints", "staticPodPath", "staticPodURL", "staticPodURLHeader", "volumePluginDir",
	}
}

//go:embed kubelet-fields.txt
var kubeletFieldList string

func kubeletFields() map[string][]string {
	fields := map[string][]string{}
	for line := range strings.Lines(kubeletFieldList) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			where, name := "", line
			if i := strings.LastIndexByte(line, '.'); i >= 0 {
				where, name = line[:i], line[i+1:]
			}
			fields[where] = append(fields[where], name)
		}
	}
	return fields
}

// checkFields reports the keys of o that are none of the fields, which are lists by
// the path that they are at.
func checkFields(doc *strictyaml.Document, where string, o Object, fields map[string][]string) {
	var check func(where, path string, v any)
	check = func(where, path string, v any) {
		known := fields[path]
		if known == nil {
			return
		}
		switch v := v.(type) {
		case []any:
			for i := range v {
				check(item(where, i), path, v[i])
			}
		case map[string]any:
			for _, key := range sortedKeys(v) {
				if path == "" && (key == "apiVersion" || key == "kind") {
					continue
				}
				if !slices.Contains(known, key) {
					doc.Add(where+"."+key, "unknown field%s", spelling.Hint(key, known))
					continue
				}
				check(where+"."+key, strings.TrimPrefix(path+"."+key, "."), v[key])
			}
		}
	}
	check(where, "", map[string]any(o))
}

// checkEnvelope reports an object that says it is another one.
func checkEnvelope(doc *strictyaml.Document, where string, o Object, apiVersion, kind string) {
	for key, want := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		if got, ok := o[key]; ok && got != want {
			doc.Add(where+"."+key, "want %s, or none", want)
		}
	}
}

func (c *ControlPlane) check(doc *strictyaml.Document) {
	checkEnvelope(doc, "cluster", c.Cluster, "kubeadm.k8s.io/v1beta4", "ClusterConfiguration")
	checkEnvelope(doc, "init", c.Init, "kubeadm.k8s.io/v1beta4", "InitConfiguration")
	registration, _ := c.Init["nodeRegistration"].(map[string]any)
	for key, instead := range map[string]string{
		"criSocket": "is kiln's own, want none", "name": "want the Kubelet's nodeName instead", "kubeletExtraArgs": "want the Kubelet's config instead",
	} {
		if _, ok := registration[key]; ok {
			doc.Add("init.nodeRegistration."+key, "%s", instead)
		}
	}
}

func (p *StaticPod) check(doc *strictyaml.Document) {
	if !isSubdomain(p.Name) {
		doc.Add("name", "%q, want a DNS subdomain in lower case", p.Name)
	}
	for key, want := range map[string]string{"apiVersion": "v1", "kind": "Pod"} {
		if p.Pod[key] != want {
			doc.Add("pod."+key, "want %s", want)
		}
	}
	if _, name := p.PodName(); !isSubdomain(name) {
		doc.Add("pod.metadata.name", "want a DNS subdomain in lower case")
	}
	if namespace, _ := p.PodName(); !isName(namespace) {
		doc.Add("pod.metadata.namespace", "want %s", wantName)
	}
	spec, _ := p.Pod["spec"].(map[string]any)
	if containers, _ := spec["containers"].([]any); len(containers) == 0 {
		doc.Add("pod.spec.containers", "want a list with at least one container")
	}
}

// PodName returns the namespace and name of the pod.
func (p *StaticPod) PodName() (namespace, name string) {
	metadata, _ := p.Pod["metadata"].(map[string]any)
	name, _ = metadata["name"].(string)
	if value, ok := metadata["namespace"]; ok {
		namespace, _ = value.(string)
		return namespace, name
	}
	return "default", name
}

// isSubdomain reports whether s is a domain name in lower case.
func isSubdomain(s string) bool { return isDomain(s) && strings.ToLower(s) == s }

// isQualified reports whether s is a name, which a domain and '/' may be before.
func isQualified(s string) bool {
	if domain, rest, ok := strings.Cut(s, "/"); ok {
		if !isSubdomain(domain) {
			return false
		}
		s = rest
	}
	return s != "" && isLabelValue(s)
}

// isLabelValue reports whether s can be the value of a label in Kubernetes.
func isLabelValue(s string) bool {
	if s == "" {
		return true
	}
	return len(s) <= 63 && isWord(s, "-_.") && isWord(s[:1], "") && isWord(s[len(s)-1:], "")
}

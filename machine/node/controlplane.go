//go:build linux

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/kubelet"
	"github.com/kilnhq/kiln/machine/service"
)

// initialize makes kubeadm set up the cluster that begins with this node, unless it
// has. It is tried again until it succeeds: what one attempt has made the next one
// uses.
func (k *keeper) initialize(c *config.Config, node kubelet.Node) (wait string, err error) {
	if exists(initialized) {
		return "", nil
	}
	n := k.node
	for _, s := range n.services.List() {
		if s.Name != kubeadmName {
			continue
		}
		if s.State != service.Done {
			return "for kubeadm", nil
		}
		n.event("kubelet", "cluster", "has begun", nil)
		return "", os.WriteFile(initialized, nil, 0o600)
	}
	version, err := n.kubernetesVersion()
	if err != nil {
		return "", err
	}
	data, err := kubelet.Init(c, node, version)
	if err != nil {
		return "", err
	}
	file := filepath.Join(n.options.RunDir, "kubeadm.yaml")
	if _, err := replaceFile(file, data, 0o600); err != nil {
		return "", err
	}
	if err := k.prepareKernel(); err != nil {
		n.remark("kubelet", "%v", err)
	}
	return "for kubeadm", n.services.Add(service.Spec{
		Name: kubeadmName, Path: kubeadmProgram, Args: []string{"init", "--config=" + file},
		Env: []string{programPath, "HOME=/run"}, After: []string{"containerd"}, Restart: service.OnFailure,
		Cgroup: filepath.Join(groupRoot, systemGroup, kubeadmName),
	})
}

// kubernetesVersion is that of the extension.
func (n *Node) kubernetesVersion() (string, error) {
	list, err := n.Extensions(context.Background())
	if err != nil {
		return "", err
	}
	for _, e := range list.Extensions {
		if e.Name == "kubernetes" {
			return "v" + e.Version, nil
		}
	}
	return "", errors.New("a control plane without kubernetesVersion: no extension has the name kubernetes, whose version would be it")
}
